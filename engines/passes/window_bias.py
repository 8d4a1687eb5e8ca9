"""Keep one copy of an attention bias that is the same for every window, and none of one that is zero."""

from __future__ import annotations

import onnx_ir as ir

from saccade.engines.passes.constants import constant, initializer


def share_window_bias(model: ir.Model) -> int:
    """Shrink constant biases (windows, heads, queries, keys) that do not depend on the window.

    Swin blocks without shift have a mask of zeros beside their position bias; local semantic attention has
    nothing but such a mask. Returns the number of additions shrunk or removed.
    """
    changed = 0
    for add in list(model.graph):
        if add.op_type != "Add" or len(add.inputs) != 2:
            continue
        logits, bias = add.inputs
        values = constant(bias)
        if logits is None or bias is None or values is None or values.ndim != 4:
            continue
        if add.outputs[0].is_graph_output() or not _is_broadcast_into(logits, values.shape):
            continue
        if not values.any():
            ir.convenience.replace_all_uses_with(add.outputs[0], logits)
            model.graph.remove(add, safe=True)
        elif len(values) > 1 and (values == values[:1]).all():
            add.replace_input_with(1, initializer(model, f"{bias.name}_shared", values[:1].copy()))
        else:
            continue
        changed += 1
    return changed


def _is_broadcast_into(logits: ir.Value, shape: tuple[int, ...]) -> bool:
    """Whether `logits` surely keeps its shape when a constant of `shape` is added to it."""
    if logits.shape is None or len(logits.shape) < len(shape):
        return False
    return all(size in (1, logits.shape[axis - len(shape)]) for axis, size in enumerate(shape))
