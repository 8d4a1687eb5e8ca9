"""Softmax in float32 inside function bodies, whose types are only known where they are called."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

SOFTMAX = frozenset({"Softmax", "LogSoftmax"})
_BETWEEN = frozenset({"Add", "Sub", "Mul", "Div", "Where"})


def before_softmax(node: ir.Node) -> bool:
    """Whether `node` scales, biases or masks what nothing but a softmax reads.

    Rounding logits twice costs what the float32 softmax is to keep; and unscaled they may not fit float16.
    """
    if node.op_type not in _BETWEEN or node.domain != "" or node.outputs[0].is_graph_output():
        return False
    readers = [use.node for use in node.outputs[0].uses()]
    return bool(readers) and all(reader.op_type in SOFTMAX or before_softmax(reader) for reader in readers)


def keep_softmax_float32(model: ir.Model) -> int:
    """Cast into and out of every softmax of the model's functions, with what `before_softmax` says.

    The result is cast back to the type of the function's first input, so that a body stays right for every
    type: called with float32 its casts change nothing. Returns the number of softmaxes.
    """
    return sum(_rewrite(function) for function in model.functions.values())


def _rewrite(function: ir.Function) -> int:
    softmaxes = [node for node in function if node.op_type in SOFTMAX]
    for softmax in softmaxes:
        island = {softmax, *_ancestors(softmax)}
        for node in [each for each in function if each in island]:
            for index, value in enumerate(node.inputs):
                if value is not None and value.producer() not in island and not _is_condition(node, index):
                    cast = ir.node("Cast", [value], {"to": ir.DataType.FLOAT}, name=f"{value.name}_float32")
                    cast.outputs[0].name = f"{value.name}_float32_for_{node.outputs[0].name}"
                    function.insert_before(node, cast)
                    node.replace_input_with(index, cast.outputs[0])
        result = softmax.outputs[0]
        back = ir.node("CastLike", [result, function.inputs[0]], name=f"{result.name}_back")
        back.outputs[0].name = f"{result.name}_back"
        ir.convenience.replace_all_uses_with(result, back.outputs[0])
        back.replace_input_with(0, result)
        function.insert_after(softmax, back)
    return len(softmaxes)


def _ancestors(node: ir.Node) -> Iterator[ir.Node]:
    for value in node.inputs:
        producer = None if value is None else value.producer()
        if producer is not None and before_softmax(producer):
            yield producer
            yield from _ancestors(producer)


def _is_condition(node: ir.Node, index: int) -> bool:
    return node.op_type == "Where" and index == 0
