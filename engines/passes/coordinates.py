"""Which nodes of a graph compute boxes, anchors, regions and the scores that rank them."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

# What takes coordinates: the inputs that are some, None for all.
_SEEDS: dict[str, tuple[int, ...] | None] = {
    "BatchedNMS": None,
    "NonMaxSuppression": None,
    "RoiAlign": (1,),
}
# Layers that coordinates are read from, or pooled by: their numbers are features.
_FEATURES = frozenset(
    [
        "Conv",
        "ConvTranspose",
        "MatMul",
        "Gemm",
        "Einsum",
        "LayerNormalization",
        "GroupNormalization",
        "RoiAlign",
        "GridSample",
        "MaxPool",
        "AveragePool",
        "GlobalAveragePool",
        "Resize",
    ]
)


def coordinate_nodes(graph: ir.Graph) -> set[ir.Node]:
    """The nodes joined to a suppression or to regions without a layer of features in between.

    A picture is a thousand pixels wide: float16 has no half pixels there and bfloat16 steps of eight. The
    set is empty for graphs that detect nothing.
    """
    found: set[ir.Node] = set()
    waiting = [node for node in graph if node.op_type in _SEEDS]
    while waiting:
        node = waiting.pop()
        if node not in found:
            found.add(node)
            waiting += [each for each in _joined(node) if not _gives_features(each)]
    return found


def _gives_features(node: ir.Node) -> bool:
    return node.op_type in _FEATURES or (node.domain != "" and node.op_type not in _SEEDS)


def _joined(node: ir.Node) -> Iterator[ir.Node]:
    """Nodes that share a float with `node`: producers, other readers, and readers of its results."""
    taken = _SEEDS.get(node.op_type)
    inputs = node.inputs if taken is None else [node.inputs[index] for index in taken]
    results = () if node.op_type in _SEEDS else node.outputs
    for value in (*inputs, *results):
        if value is None or value.dtype != ir.DataType.FLOAT or value.is_initializer():
            continue
        producer = value.producer()
        if producer is not None:
            if _gives_features(producer):
                continue  # others may read the same features as features
            yield producer
        yield from (use.node for use in value.uses())


def coordinate_sources(graph: ir.Graph) -> list[str]:
    """The features that the first boxes and scores are read from: all that comes before any choice is made.

    Behind a suppression, rounding may change which box a row shows; these tensors it changes little.
    """
    nodes = coordinate_nodes(graph)
    chosen: set[ir.Value] = set()
    found: dict[str, None] = {}
    for node in graph:
        inputs = [value for value in node.inputs if value is not None]
        if node.op_type in _SEEDS or chosen.intersection(inputs):
            chosen.update(node.outputs)
        if node in nodes:
            for value in inputs:
                producer = value.producer()
                if producer is not None and producer not in nodes and value.dtype == ir.DataType.FLOAT:
                    found |= {} if value in chosen else {str(value.name): None}
    return list(found)
