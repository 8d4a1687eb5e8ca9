"""A plan of a graph that is in memory: built, run once, and gone.

A finished plan is fused and keeps no inner tensors. What is run here is another plan, one in which every
output that the graph names is kept, and across which nothing is fused.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from saccade.engines.engine import Arrays, EngineOptions, open_engine
from saccade.engines.reference import tensor_spec
from saccade.engines.tensorrt import plans
from saccade.engines.tensorrt.builder import Source, build_plan
from saccade.engines.tensorrt.options import BuildOptions
from saccade.engines.tensorrt.progress import Say

FLOATS = frozenset({TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16})
_SHOWN = "@shown"


def run_once(
    model: onnx.ModelProto,
    feeds: Arrays,
    options: BuildOptions,
    what: str,
    *,
    say: Say = lambda phase, fraction: None,
) -> dict[str, NDArray[Any]]:
    """All outputs of `model` by name, those of `FLOATS` as float32, computed on the first GPU.

    model: its outputs have types. options: their profile holds the shapes of `feeds`. what: is run, for
    messages. Nothing of the plan stays but its timings. Raises as `build_plan` and `open_engine`.
    """
    shown = _in_float32(model)
    with tempfile.TemporaryDirectory(prefix="saccade-plan-") as scratch:
        path = Path(scratch) / "graphs" / "model.onnx"
        path.parent.mkdir()
        onnx.save(shown, path)
        inputs = tuple(tensor_spec(value) for value in shown.graph.input)
        outputs = tuple(tensor_spec(value) for value in shown.graph.output)
        source = Source(what, "model", path, {}, inputs, outputs)
        folder, record = build_plan(source, options, Path(scratch) / plans.FOLDER, say=say)
        try:
            files = {"source": folder, "tensorrt": folder}
            with open_engine(files, "tensorrt", EngineOptions(device="cuda")) as engine:
                found = engine.run({spec.name: feeds[spec.name].astype(spec.dtype) for spec in inputs})
        finally:
            plans.forget(record)
    return {name.removesuffix(_SHOWN): values for name, values in found.items()}


def _in_float32(model: onnx.ModelProto) -> onnx.ModelProto:
    """`model` with its floating-point outputs cast: NumPy has no bfloat16, and float32 to float32 is free."""
    copied = onnx.ModelProto()
    copied.CopyFrom(model)
    for value in copied.graph.output:
        kind = value.type.tensor_type
        if kind.elem_type in FLOATS:
            name, value.name, kind.elem_type = value.name, value.name + _SHOWN, TensorProto.FLOAT
            copied.graph.node.append(helper.make_node("Cast", [name], [value.name], to=TensorProto.FLOAT))
    return copied
