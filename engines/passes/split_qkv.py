"""Cut a joint projection into queries, keys and values with one Split."""

from __future__ import annotations

import onnx_ir as ir

from saccade.engines.passes.constants import constant, initializer

_UNBOUND = (2, 0, 3, 1, 4)  # (B, N, 3, heads, head_dim) with the three in front
_HEADS_FIRST = (0, 2, 1, 3)
_PARTS = 3


def split_qkv(model: ir.Model) -> int:
    """Reshape, Transpose, three pairs of Slice and Squeeze -> Split, then Reshape and Transpose of each part.

    So timm's attention arrives: the reshaped projection is unbound along an axis of three. Returns the number
    of projections cut.
    """
    changed = 0
    for transpose in list(model.graph):
        if transpose.op_type == "Transpose" and tuple(transpose.attributes["perm"].as_ints()) == _UNBOUND:
            changed += _cut(model, transpose)
    return changed


def _cut(model: ir.Model, transpose: ir.Node) -> bool:
    reshape = transpose.inputs[0].producer() if transpose.inputs[0] else None
    if reshape is None or reshape.op_type != "Reshape":
        return False
    projected, shape = reshape.inputs[0], constant(reshape.inputs[1])
    parts = _parts(transpose.outputs[0])
    if projected is None or shape is None or len(shape) != len(_UNBOUND) or shape[2] != _PARTS:
        return False
    if (shape == 0).any() or (shape[1:] < 0).any() or parts is None:
        return False
    if projected.shape is None or tuple(projected.shape[1:]) != (shape[1], shape[2:].prod()):
        return False
    split = ir.node("Split", [projected], {"axis": -1, "num_outputs": _PARTS}, num_outputs=_PARTS)
    split.name = f"{transpose.name}_split"
    sizes = initializer(model, f"{reshape.outputs[0].name}_part", shape[[0, 1, 3, 4]])
    made = [split]
    for value, part in zip(split.outputs, parts, strict=True):
        old = part.outputs[0]
        heads = ir.node("Reshape", [value, sizes], name=f"{old.name}_heads")
        moved = ir.node("Transpose", heads.outputs, {"perm": _HEADS_FIRST}, name=f"{old.name}_moved")
        result = moved.outputs[0]
        result.shape, result.type = old.shape, old.type
        ir.convenience.replace_all_uses_with(old, result)
        made += [heads, moved]
    for node in made:
        node.metadata_props.update(transpose.metadata_props)  # the module they come from
    model.graph.insert_after(transpose, made)
    for part in parts:
        before = part.inputs[0].producer() if part.inputs[0] else None
        model.graph.remove(part, safe=True)
        if before is not None:
            model.graph.remove(before, safe=True)
    model.graph.remove(transpose, safe=True)
    return True


def _parts(unbound: ir.Value) -> list[ir.Node] | None:
    """The Squeeze of the first, second and third Slice of `unbound`; None where it is used in another way."""
    found: dict[int, ir.Node] = {}
    for cut, _ in unbound.uses():
        after = [node for node, _ in cut.outputs[0].uses()]
        if cut.op_type != "Slice" or len(after) != 1 or after[0].op_type != "Squeeze":
            return None
        bounds = [constant(each) for each in (*cut.inputs[1:4], after[0].inputs[1])]
        if len(cut.inputs) > 4 and not _is_one(cut.inputs[4]):
            return None
        if any(each is None or each.size != 1 for each in bounds):
            return None
        start, end, axis, squeezed = (int(each.item()) for each in bounds if each is not None)
        if end != start + 1 or (axis, squeezed) != (0, 0) or after[0].outputs[0].is_graph_output():
            return None
        found[start] = after[0]
    return [found[i] for i in range(_PARTS)] if sorted(found) == list(range(_PARTS)) else None


def _is_one(step: ir.Value | None) -> bool:
    values = constant(step)
    return values is not None and values.size == 1 and values.item() == 1
