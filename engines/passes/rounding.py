"""A float16 or bfloat16 graph as float32 arithmetic in which every result is rounded to that type.

ONNX Runtime's CPU kernels do not run such graphs as they are written: for float16 it casts to float32 and
leaves out the casts between neighbours, so that nothing is rounded and nothing overflows; for bfloat16 it has
no kernels. Casts in a float32 graph it keeps.
"""

from __future__ import annotations

import numpy as np
import onnx
import onnx.inliner
import onnx_ir as ir
import onnx_ir.passes.common

from saccade.engines.passes.constants import constant

FLOAT = ir.DataType.FLOAT
LOW = frozenset({ir.DataType.FLOAT16, ir.DataType.BFLOAT16})
# Their results are numbers that they were given.
_MOVES = frozenset(
    [
        "Reshape",
        "Transpose",
        "Gather",
        "GatherElements",
        "GatherND",
        "Slice",
        "Split",
        "Concat",
        "Squeeze",
        "Unsqueeze",
        "Expand",
        "Flatten",
        "Identity",
        "Relu",
        "MaxPool",
        "Max",
        "Min",
        "Where",
        "Tile",
        "DepthToSpace",
        "SpaceToDepth",
    ]
)


def emulate(model: onnx.ModelProto, opset: int) -> onnx.ModelProto:
    """`model`, whose inputs are float32, in float32 throughout: weights and results rounded.

    Functions are inlined. Sums inside an operator are float32's, as they are in matrix units of GPUs.
    opset: of the result, which needs no types that came later.
    """
    read = ir.from_proto(onnx.inliner.inline_local_functions(model))
    onnx_ir.passes.common.ShapeInferencePass(strict_mode=False)(read)
    graph = read.graph
    for value in graph.initializers.values():
        if value.dtype in LOW:
            _widen(value)
    for node in list(graph):
        for value in node.outputs:
            if value.dtype in LOW:
                _round(graph, node, value, value.dtype)
    read.opset_imports.clear()
    read.opset_imports[""] = opset
    return ir.to_proto(read)


def _widen(value: ir.Value) -> None:
    values = constant(value)
    assert values is not None
    value.const_value = ir.tensor(values.astype(np.float32), name=value.name)
    value.type = ir.TensorType(FLOAT)


def _round(graph: ir.Graph, node: ir.Node, value: ir.Value, dtype: ir.DataType) -> None:
    """Make `value` float32, and rounded unless rounding changes nothing. The name goes to what is rounded."""
    value.type = ir.TensorType(FLOAT)
    is_cast = node.op_type in ("Cast", "CastLike")
    if node.op_type in _MOVES:
        return
    rounded = ir.node("Cast", [node.inputs[0] if is_cast else value], {"to": dtype})
    widened = ir.node("Cast", [rounded.outputs[0]], {"to": FLOAT})
    result, name = widened.outputs[0], value.name
    result.shape, result.type = value.shape, value.type
    ir.convenience.replace_all_uses_with(value, result, replace_graph_outputs=True)
    if is_cast:
        graph.insert_before(node, [rounded, widened])
        graph.remove(node, safe=True)
    else:
        rounded.replace_input_with(0, value)
        graph.insert_after(node, [rounded, widened])
    value.name, result.name = f"{name}_exact", name
