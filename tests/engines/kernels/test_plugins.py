"""TensorRT's own bindings take the plugins: they register, describe their output and give their launch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.engines import tensorrt_stubs
from tests.engines.kernels.cases import DETECTION, SMALL, Case

from saccade.engines.kernels import plugins, ptx
from saccade.engines.kernels.registry import KERNELS
from saccade.models.operators import PLUGIN_ATTRIBUTES

CASES = (*SMALL[::3], *DETECTION)

DATA_TYPE_OF = {dtype: name for name, dtype in plugins.DATA_TYPES.items()}

# Symbolic sizes are private to the bindings, whose versions are pinned: a double that holds plain ints.
EVALUATE = """
import json
import numpy as np
import tensorrt as trt
import tensorrt.plugin as trtp
from tensorrt_bindings.plugin import _lib, _tensor
from saccade.engines.kernels import plugins

OPERATIONS = {
    trt.DimensionOperation.SUM: lambda a, b: a + b,
    trt.DimensionOperation.SUB: lambda a, b: a - b,
    trt.DimensionOperation.PROD: lambda a, b: a * b,
    trt.DimensionOperation.FLOOR_DIV: lambda a, b: a // b,
}

class Constant:
    def __init__(self, value):
        self.value = value
    def is_constant(self):
        return True
    def get_constant_value(self):
        return self.value

class Builder:
    def constant(self, value):
        return Constant(value)
    def operation(self, operation, a, b):
        return OPERATIONS[operation](a.value, b.value)

def described(shape, dtype):
    desc = trtp.TensorDesc(trtp.ShapeExprs.from_tuple(tuple(shape)), dtype)
    desc.shape = trtp.Shape(tuple(shape))
    return desc

def number(expression):
    return expression._expr.get_constant_value()

plugins.register(int(sys.argv[1]))
registry = trt.get_plugin_registry()
answers = []
for operator, shapes, attributes, dtype, tile in json.loads(sys.argv[2]):
    creator = registry.get_creator(operator, "1", "saccade")
    held = [np.array([value], np.int64) for value in attributes.values()]  # a field does not own its buffer
    fields = [
        trt.PluginField(name, array, trt.PluginFieldType.INT64)
        for name, array in zip(attributes, held, strict=True)
    ]
    plugin = creator.create_plugin(
        operator, "saccade", trt.PluginFieldCollection(fields), trt.TensorRTPhase.BUILD,
        trt.QuickPluginCreationRequest.STRICT_AOT,
    )
    kind = getattr(trt.DataType, {"float32": "FLOAT", "float16": "HALF", "bfloat16": "BF16"}[dtype])
    ranks = [len(shape) for shape in shapes]
    answered = plugin.get_output_data_types([kind] * len(shapes), ranks)  # sizes are not known yet
    definition = _lib.QDP_REGISTRY[f"saccade::{operator}"]
    _tensor.SymIntExpr._exprBuilder = Builder()
    inputs = [described(shape, kind) for shape in shapes]
    output = definition.register_func(*inputs, **plugin.attrs)
    combinations = definition.autotune_func(*inputs, *plugin.attrs.values(), (output,))
    name, text, launch, scalars = definition.aot_impl_func(*inputs, *plugin.attrs.values(), (output,), tile)
    answers.append({
        "fields": [field.name for field in creator.field_names],
        "attributes": plugin.attrs,
        "answered": [t.name for t in answered],
        "output": [number(size) for size in output.shape_expr],
        "types": [[t.name for t in c.types] for c in combinations[0]._get_combinations()],
        "tactics": combinations[0]._tactics,
        "entry": name,
        "ptx": len(text),
        "grid": [number(getattr(launch, f"grid_{axis}")) for axis in "xyz"],
        "block": [number(getattr(launch, f"block_{axis}")) for axis in "xyz"],
        "shared": number(launch.shared_mem),
        "scalars": [number(value) for value in scalars],
        "types_of_scalars": sorted({type(scalar).__name__ for scalar in scalars}),
    })
    _tensor.SymIntExpr._exprBuilder = None
print("ANSWERS" + json.dumps(answers))
"""


def stubs(version: str) -> tensorrt_stubs.Stubs:
    try:
        return tensorrt_stubs.bindings(version, registry=True)
    except tensorrt_stubs.Unavailable as reason:
        pytest.skip(str(reason))


def ask(version: str, calls: list[tuple[Case, str, int]], compute_capability: int) -> list[dict[str, Any]]:
    request = [
        [case.operator, case.shapes, dict(case.attributes), dtype, tile] for case, dtype, tile in calls
    ]
    out = stubs(version).run(EVALUATE, str(compute_capability), json.dumps(request))
    answers: list[dict[str, Any]] = json.loads(out.rpartition("ANSWERS")[2])
    return answers


@pytest.mark.slow
@pytest.mark.parametrize("version", tensorrt_stubs.VERSIONS)
def test_every_plugin_registers_and_gives_the_launch_of_its_kernel(version: str) -> None:
    calls = [
        (case, dtype, tile)
        for case in CASES
        for dtype in ("float32", "float16", "bfloat16")
        for tile in KERNELS[case.operator].tiles
    ]
    for (case, dtype, tile), answer in zip(calls, ask(version, calls, 89), strict=True):
        kernel = KERNELS[case.operator]
        head_dim = kernel.head_dim(case.shapes, case.attributes)
        record = ptx.find(kernel.name, dtype, 89, D=head_dim, TILE=tile)
        assert answer == {
            "fields": list(kernel.operator.attributes),
            "attributes": dict(case.attributes),
            "answered": [DATA_TYPE_OF[dtype]],
            "output": list(kernel.output_shape(case.shapes)),
            "types": [[kind] * (len(case.shapes) + 1) for kind in ("FLOAT", "HALF", "BF16")],
            "tactics": list(kernel.tiles),
            "entry": kernel.name,
            "ptx": len(ptx.load(record)),
            "grid": list(kernel.grid(case.shapes, case.attributes, tile)),
            "block": [record.block_x, 1, 1],
            "shared": record.shared_bytes,
            "scalars": list(kernel.scalar_values(case.shapes, case.attributes)),
            "types_of_scalars": ["SymInt32"],
        }, case.label


@pytest.mark.slow
@pytest.mark.parametrize("version", tensorrt_stubs.VERSIONS)
def test_every_tensorrt_name_exists(version: str) -> None:
    names = tensorrt_stubs.names_used(Path(plugins.__file__))
    names |= {f"tensorrt.DataType.{name}" for name in plugins.DATA_TYPES}
    assert "tensorrt.plugin.aot_impl" in names
    assert stubs(version).missing(names | {"tensorrt.NoSuchName"}) == ["tensorrt.NoSuchName"]


REFUSED = """
import tensorrt as trt
import tensorrt.plugin as trtp
from tensorrt_bindings.plugin import _lib
from saccade.engines.kernels import plugins
from saccade.errors import EngineError

def described(shape, largest):
    held = trt.DynamicPluginTensorDesc()
    held.desc.dims, held.max = trt.Dims(shape), trt.Dims(largest)
    desc = trtp.TensorDesc(trtp.ShapeExprs.from_tuple((1,) * len(shape)), trt.DataType.HALF)
    desc.shape = trtp.Shape(held)
    return desc

plugins.register(89)
autotune = _lib.QDP_REGISTRY["saccade::TokenAttention"].autotune_func
for largest in (64, 70_000):
    q, kv = described((-1, 6, 6, 96), (largest, 6, 6, 96)), described((-1, 6, 6, 192), (largest, 6, 6, 192))
    try:
        print(len(autotune(q, kv, 3, (q,))))
    except EngineError as error:
        print(error)
"""


@pytest.mark.slow
@pytest.mark.parametrize("version", tensorrt_stubs.VERSIONS)
def test_a_profile_beyond_what_can_be_launched_is_refused(version: str) -> None:
    served, refused = stubs(version).run(REFUSED).splitlines()[-2:]
    assert served == "1"
    assert "saccade::TokenAttention of [(70000, 6, 6, 96), (70000, 6, 6, 192)]" in refused
    assert "a grid of (3, 1, 70000) programs" in refused
    assert "--binding function" in refused


@pytest.mark.slow
def test_turing_is_offered_no_bfloat16() -> None:
    case = SMALL[0]
    (answer,) = ask(tensorrt_stubs.VERSIONS[-1], [(case, "float16", 64)], 75)
    assert answer["types"] == [[kind] * (len(case.shapes) + 1) for kind in ("FLOAT", "HALF")]


def test_no_attribute_of_a_node_is_one_that_tensorrt_keeps_for_itself() -> None:
    for kernel in KERNELS.values():
        names = {*kernel.operator.attributes, *kernel.operator.inputs}
        assert not names & {"outputs", "stream", "tactic", *PLUGIN_ATTRIBUTES}
