"""A float32 graph becomes a float16 or bfloat16 one, with float32 islands where those types do not do.

Precision lives in the graph: TensorRT runs what the types say. Weights and results of most nodes become
`fp16` or `bf16`; graph inputs and outputs stay float32, so that predictors, samples and engines need not know
which graph they hold, and the casts at the border are the first and last thing a runtime fuses away.

Float32 stay, whatever the weights (`convert` says which nodes and why):

- softmax, with the scale, bias and mask between it and the product before it; also inside the bodies of
  `saccade` operators, whose nodes stay nodes;
- sums over many elements: means, norms, pooling to one cell. LayerNormalization stays one node: its
  statistics are float32 by its `stash_type`;
- what computes boxes, anchors and regions, up to the layers that they are read from (`passes.coordinates`);
- operators that have no such type in ONNX, or that NVIDIA's parser refuses in it (HardSwish in bf16);
- readers of constants that do not fit: 1e5 is infinite in float16, an epsilon of 1e-12 is zero.

Further islands are a matter of the weights: `engines.islands` finds them by measuring.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import onnx
import onnx_ir as ir
import onnx_ir.passes.common

from saccade.engines.passes.constants import constant
from saccade.engines.passes.coordinates import coordinate_nodes
from saccade.engines.passes.float32_softmax import SOFTMAX, before_softmax, keep_softmax_float32
from saccade.engines.tensorrt.operators import operator_table
from saccade.errors import ExportError, UsageError
from saccade.models.operators import BATCHED_NMS, DOMAIN

FLOAT = ir.DataType.FLOAT
PASSES = ("convert", "keep_softmax_float32")


@dataclass(frozen=True, slots=True)
class Precision:
    """A floating-point type. roundoff: half the gap between 1 and the next number.

    smallest: the least positive number with all its digits. opset: the lowest in which ONNX's operators
    have the type. tensorrt: its name in NVIDIA's operator table. cpu_kernels: ONNX Runtime opens such graphs
    on a CPU, and runs them in float32.
    """

    name: str
    dtype: ir.DataType
    roundoff: float
    largest: float
    smallest: float
    opset: int
    tensorrt: str
    cpu_kernels: bool


PRECISIONS: Mapping[str, Precision] = MappingProxyType(
    {
        each.name: each
        for each in (
            Precision("fp16", ir.DataType.FLOAT16, 2.0**-11, 65504.0, 2.0**-14, 20, "FP16", True),
            # Conv and HardSwish have it since opset 22, which changes nothing else that exports use.
            Precision(
                "bf16", ir.DataType.BFLOAT16, 2.0**-8, 2.0**127 * (2 - 2.0**-7), 2.0**-126, 22, "BF16", False
            ),
        )
    }
)
_IR_VERSION = {20: 9, 22: 10}

# Sums over many elements, and functions that spread a small range over a large one.
STATISTICS = frozenset(
    [
        "ReduceMean",
        "ReduceSum",
        "ReduceSumSquare",
        "ReduceL1",
        "ReduceL2",
        "ReduceLogSum",
        "ReduceLogSumExp",
        "ReduceProd",
        "CumSum",
        "GlobalAveragePool",
        "BatchNormalization",
        "InstanceNormalization",
        "GroupNormalization",
        "LpNormalization",
        "RMSNormalization",
        "MeanVarianceNormalization",
        "Exp",
        "Log",
        "Pow",
    ]
)
# They say themselves what type they give.
_CASTS = frozenset({"Cast", "CastLike"})


@dataclass(frozen=True)
class Converted:
    """The graph, and why each node among `islands` stays float32. Casts are not counted."""

    model: onnx.ModelProto
    islands: Mapping[str, str]


def precision_named(name: str) -> Precision:
    """UsageError for a name that is none."""
    if name not in PRECISIONS:
        raise UsageError(f"there is no precision {name!r}: choose from {', '.join(PRECISIONS)}")
    return PRECISIONS[name]


def convert(model: onnx.ModelProto, precision: str, float32: Collection[str] = ()) -> Converted:
    """`model` in `precision`. float32: names of further nodes that keep it.

    model: a float32 graph with its weights; it stays as it is. Tensors keep their names. Raises UsageError
    for a precision or node that is unknown, ExportError for a graph with branches or of unknown types.
    """
    chosen = precision_named(precision)
    graph_model = typed(model)
    islands = _islands(graph_model, chosen, frozenset(float32))
    _Rewriter(graph_model, chosen, islands).rewrite()
    keep_softmax_float32(graph_model)
    onnx_ir.passes.common.RemoveUnusedNodesPass()(graph_model)
    return Converted(_finished(graph_model, chosen), {name: why for name, why in islands.items() if why})


def convertible(model: ir.Model, precision: Precision) -> list[str]:
    """Names of the nodes that `convert` would give another type, in the graph's order."""
    stays = _islands(model, precision, frozenset())
    return [str(node.name) for node in model.graph if str(node.name) not in stays]


def typed(model: onnx.ModelProto) -> ir.Model:
    """`model` with unique node names, constants as initializers, and the type of every float known."""
    read = ir.from_proto(model)
    onnx_ir.passes.common.NameFixPass()(read)
    onnx_ir.passes.common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(read)
    if any(value.dtype is None for node in read.graph for value in node.outputs):
        onnx_ir.passes.common.ShapeInferencePass(strict_mode=False)(read)
    for node in read.graph:
        if any(a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for a in node.attributes.values()):
            raise ExportError(f"{node.name} has branches: graphs with {node.op_type} are not converted")
        for value in node.outputs:
            if value.dtype is None and value.uses():
                raise ExportError(f"the type of {value.name}, of {node.name}, cannot be inferred")
    return read


def _finished(model: ir.Model, precision: Precision) -> onnx.ModelProto:
    """With the opset that has the type, also in the functions, and checked."""
    opset = max(precision.opset, model.opset_imports[""])
    model.opset_imports[""] = opset
    for function in model.functions.values():
        function.opset_imports[""] = opset
    model.ir_version = max(_IR_VERSION.get(opset, 10), model.ir_version or 0)
    result = ir.to_proto(model)
    onnx.checker.check_model(result)
    return result


# --- which nodes stay float32 -----------------------------------------------------------------------------


def _islands(model: ir.Model, precision: Precision, asked: frozenset[str]) -> dict[str, str]:
    """Name -> reason for every node that stays as it is; "" where it has no floats to convert."""
    nodes = {str(node.name): node for node in model.graph}
    for name in asked - set(nodes):
        near = difflib.get_close_matches(name, nodes, n=1)
        raise UsageError(f"the graph has no node {name!r}{f'; did you mean {near[0]!r}?' if near else ''}")
    coordinates = coordinate_nodes(model.graph)
    reasons: dict[str, str] = {}
    for name, node in nodes.items():
        if not any(_is_float(value) for value in (*node.inputs, *node.outputs)) or node.op_type in _CASTS:
            reasons[name] = ""
        elif node in coordinates:
            reasons[name] = "coordinates"
        elif name in asked:
            reasons[name] = "measured"
        elif (reason := _reason(node, model, precision)) is not None:
            reasons[name] = reason
    return reasons


def _reason(node: ir.Node, model: ir.Model, precision: Precision) -> str | None:
    """Why `node` has to stay float32, None where it need not."""
    if node.op_type in SOFTMAX or before_softmax(node):
        return "softmax"
    if node.domain == "" and node.op_type in STATISTICS:
        return "statistics"
    if not any(_follows(node, model, precision)):
        return f"{node.op_type} has no {precision.name}"
    table = operator_table().types
    if node.domain == "" and precision.tensorrt not in table.get(node.op_type, {precision.tensorrt}):
        return f"{node.op_type} has no {precision.name} in TensorRT"
    if any(_misfits(value, precision) for value in node.inputs if value is not None):
        return f"constant outside {precision.name}"
    return None


def _follows(node: ir.Node, model: ir.Model, precision: Precision) -> Iterator[bool]:
    """For every input, then every output: whether it becomes `precision` when the node does."""
    if node.domain != "":
        # The contract of our operators is a body for every type; of others nothing is known.
        generic = node.domain == DOMAIN and node.op_type != BATCHED_NMS.name
        yield from (generic and _is_float(value) for value in (*node.inputs, *node.outputs))
        return
    opset = max(precision.opset, model.opset_imports[""])
    schema = onnx.defs.get_schema(node.op_type, opset)
    types = {
        constraint.type_param_str: constraint.allowed_type_strs for constraint in schema.type_constraints
    }
    wanted = f"tensor({precision.dtype.name.lower()})"
    for values, formals in ((node.inputs, schema.inputs), (node.outputs, schema.outputs)):
        for index, value in enumerate(values):
            kind = formals[min(index, len(formals) - 1)].type_str
            yield _is_float(value) and wanted in types.get(kind, (kind,))


def _misfits(value: ir.Value, precision: Precision) -> bool:
    """Whether a constant would become infinite, or lose its digits altogether."""
    values = constant(value)
    if values is None or values.dtype != np.float32 or not values.size:
        return False
    magnitudes = np.abs(values[np.isfinite(values)])
    largest = float(magnitudes.max(initial=0.0))
    return largest > precision.largest or 0.0 < largest < precision.smallest


def _is_float(value: ir.Value | None) -> bool:
    return value is not None and value.dtype == FLOAT


# --- the rewrite ------------------------------------------------------------------------------------------


class _Rewriter:
    """Gives nodes outside `islands` the new type, and casts on every edge between two types."""

    def __init__(self, model: ir.Model, precision: Precision, islands: Collection[str]) -> None:
        self._model, self._precision, self._islands = model, precision, islands
        self._cast: dict[tuple[ir.Value, ir.DataType], ir.Value] = {}

    def rewrite(self) -> None:
        nodes = list(self._model.graph)
        plan = [self._follows(node) for node in nodes]  # asked of float32 nodes, so before any changes
        for node, follows in zip(nodes, plan, strict=True):
            for index, value in enumerate(node.inputs):
                if value is not None:
                    self._feed(node, index, value, low=follows[index])
            for value, low in zip(node.outputs, follows[len(node.inputs) :], strict=True):
                if low:
                    value.type = ir.TensorType(self._precision.dtype)
        for index, value in enumerate(self._model.graph.outputs):
            if value.dtype == self._precision.dtype:
                self._give(index, value)

    def _follows(self, node: ir.Node) -> list[bool]:
        stays = str(node.name) in self._islands
        return [not stays and each for each in _follows(node, self._model, self._precision)]

    def _feed(self, node: ir.Node, index: int, value: ir.Value, *, low: bool) -> None:
        """Let `node` read `value` in the type it takes."""
        wanted = self._precision.dtype if low else FLOAT
        if value.dtype in (FLOAT, self._precision.dtype) and value.dtype != wanted:
            node.replace_input_with(index, self._as(value, wanted, node))

    def _as(self, value: ir.Value, dtype: ir.DataType, reader: ir.Node) -> ir.Value:
        """`value` as `dtype`: made once, before its first reader."""
        if (value, dtype) not in self._cast:
            name = f"{value.name}_{dtype.name.lower()}"
            self._cast[value, dtype] = (
                self._constant(value, dtype, name)
                if value.is_initializer()
                else self._computed(value, dtype, name, reader)
            )
        return self._cast[value, dtype]

    def _constant(self, value: ir.Value, dtype: ir.DataType, name: str) -> ir.Value:
        values = constant(value)
        assert values is not None
        tensor = ir.tensor(values.astype(dtype.numpy()), dtype, name=name)
        made = ir.Value(name=name, shape=value.shape, type=ir.TensorType(dtype), const_value=tensor)
        self._model.graph.register_initializer(made)
        return made

    def _computed(self, value: ir.Value, dtype: ir.DataType, name: str, reader: ir.Node) -> ir.Value:
        cast = ir.node("Cast", [value], {"to": dtype}, name=f"{name}/Cast")
        _describe(cast.outputs[0], name, value.shape, dtype)
        self._model.graph.insert_before(reader, cast)
        return cast.outputs[0]

    def _give(self, index: int, value: ir.Value) -> None:
        """The graph's output keeps its name and type: a cast gives it."""
        name, producer = str(value.name), value.producer()
        assert producer is not None
        value.name = f"{name}_{self._precision.dtype.name.lower()}"
        cast = ir.node("Cast", [value], {"to": FLOAT}, name=f"{name}/Cast")
        _describe(cast.outputs[0], name, value.shape, FLOAT)
        self._model.graph.append(cast)
        self._model.graph.outputs[index] = cast.outputs[0]


def _describe(value: ir.Value, name: str, shape: ir.Shape | None, dtype: ir.DataType) -> None:
    value.name, value.shape, value.type = name, shape, ir.TensorType(dtype)
