"""Transpose the last two axes at once, without the detour over three dimensions."""

from __future__ import annotations

import onnx_ir as ir

from saccade.engines.passes.constants import constant, static_size


def join_key_transposes(model: ir.Model) -> int:
    """Reshape to (-1, a, b), Transpose and Reshape back -> one Transpose of (..., a, b).

    PyTorch's exporter writes the transposed keys of scaled_dot_product_attention so, with the shapes computed
    at run time where the batch is free: seven nodes for one. Returns how many are joined.
    """
    changed = 0
    for back in list(model.graph):
        transpose = _producer(back, "Reshape", "Transpose")
        flatten = _producer(transpose, "Transpose", "Reshape")
        if transpose is None or flatten is None or flatten.inputs[0] is None:
            continue
        source, result = flatten.inputs[0], back.outputs[0]
        if list(transpose.attributes["perm"].as_ints()) != [0, 2, 1] or not _swaps(source, flatten, back):
            continue
        assert source.shape is not None
        rank = len(source.shape)
        order = [*range(rank - 2), rank - 1, rank - 2]
        joined = ir.node("Transpose", [source], {"perm": order}, name=transpose.name)
        joined.metadata_props.update(transpose.metadata_props)  # the module it comes from
        joined.outputs[0].shape = ir.Shape([source.shape[axis] for axis in order])
        joined.outputs[0].type = source.type
        model.graph.insert_before(back, [joined])
        ir.convenience.replace_all_uses_with(result, joined.outputs[0])
        model.graph.remove(back, safe=True)
        changed += 1
    return changed


def _producer(node: ir.Node | None, kind: str, before: str) -> ir.Node | None:
    """The node that gives the first input of `node`, where these are a `kind` after a `before`."""
    if node is None or node.op_type != kind or node.outputs[0].is_graph_output() or node.inputs[0] is None:
        return None
    found = node.inputs[0].producer()
    return found if found is not None and found.op_type == before else None


def _swaps(source: ir.Value, flatten: ir.Node, back: ir.Node) -> bool:
    """Whether the Reshapes make (-1, a, b) of `source`, and of (-1, b, a) its shape with b and a swapped."""
    if source.shape is None or len(source.shape) < 3:
        return False
    *lead, rows, columns = _sizes_of(source)
    return (
        _computed(flatten.inputs[1], source) == [-1, rows, columns]
        and _computed(back.inputs[1], source) == [*lead, columns, rows]
        and not any(
            node.attributes["allowzero"].as_int()
            for node in (flatten, back)
            if "allowzero" in node.attributes
        )
    )


def _sizes_of(source: ir.Value) -> list[int | str]:
    """The sizes of `source`, free ones by their axis."""
    assert source.shape is not None
    sizes = (static_size(source, axis) for axis in range(len(source.shape)))
    return [f"axis {axis}" if size is None else size for axis, size in enumerate(sizes)]


def _computed(shape: ir.Value | None, source: ir.Value) -> list[int | str] | None:
    """The elements of `shape` in terms of the sizes of `source`; None where it is made of anything else."""
    known = constant(shape)
    if known is not None:
        return [int(each) for each in known.ravel()]
    node = None if shape is None else shape.producer()
    if node is None:
        return None
    if node.op_type == "Shape":
        plain = "end" not in node.attributes and (
            "start" not in node.attributes or node.attributes["start"].as_int() == 0
        )
        return _sizes_of(source) if node.inputs[0] is source and plain else None
    if node.op_type == "Slice" and len(node.inputs) == 3:
        whole, start, end = (
            _computed(node.inputs[0], source),
            constant(node.inputs[1]),
            constant(node.inputs[2]),
        )
        if whole is None or start is None or end is None:
            return None
        return whole[slice(int(start.item()), int(end.item()))]
    if node.op_type == "Concat":
        parts = [_computed(each, source) for each in node.inputs]
        return None if None in parts else [size for part in parts if part is not None for size in part]
    return None
