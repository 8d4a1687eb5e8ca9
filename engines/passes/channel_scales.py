"""Fold a scale for each channel into the convolution before it."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from saccade.engines.passes.constants import constant, initializer


def fold_channel_scales(model: ir.Model) -> int:
    """Mul(Conv(x, w, b), s) with a constant s of one number for each channel -> Conv(x, w * s, b * s).

    So FastViT's layer scales arrive. ONNX Runtime folds them itself; TensorRT's graph has a layer less for
    each. Returns the number folded.
    """
    changed = 0
    for multiply in list(model.graph):
        if multiply.op_type != "Mul" or multiply.outputs[0].is_graph_output():
            continue
        for given, factor in (multiply.inputs, reversed(multiply.inputs)):
            conv = None if given is None else given.producer()
            scales = constant(factor)
            if conv is not None and scales is not None and _can_take(conv, scales):
                _scale(model, conv, scales.reshape(-1))
                ir.convenience.replace_all_uses_with(multiply.outputs[0], conv.outputs[0])
                model.graph.remove(multiply, safe=True)
                changed += 1
                break
    return changed


def _can_take(conv: ir.Node, scales: NDArray[Any]) -> bool:
    """Whether nothing but the Mul reads the convolution, and `scales` is (C, 1, 1) or (1, C, 1, 1)."""
    if conv.op_type != "Conv" or conv.outputs[0].is_graph_output() or len(conv.outputs[0].uses()) != 1:
        return False
    constants = [constant(each) for each in conv.inputs[1:]]
    if any(each is None for each in constants) or constants[0] is None:
        return False
    channels, rank = len(constants[0]), constants[0].ndim
    sides = (1,) * (rank - 2)
    return scales.shape in ((channels, *sides), (1, channels, *sides))


def _scale(model: ir.Model, conv: ir.Node, scales: NDArray[Any]) -> None:
    for index, given in enumerate(conv.inputs[1:], start=1):
        values = constant(given)
        assert given is not None
        assert values is not None
        scaled = values * scales.reshape(-1, *[1] * (values.ndim - 1))
        name = f"{given.name}_for_{conv.outputs[0].name}_scaled"  # another node may read the same weights
        conv.replace_input_with(index, initializer(model, name, np.asarray(scaled, values.dtype)))
