"""Channels of one size, so that a single int8 scale does for all of them; the network computes the same.

A norm's affine part, or a convolution in front of a ReLU, can make a channel smaller by a factor that the
layers behind it put into their weights. Factors are powers of two: nothing is rounded. They are SmoothQuant's
(Xiao et al., arXiv:2211.10438, eq. 4, with alpha 1/2), relative to the median channel.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from saccade.engines.engine import Arrays
from saccade.engines.passes.constants import constant
from saccade.engines.passes.outputs import with_outputs, with_types
from saccade.engines.scratch import opened

Channels = NDArray[np.float32]

MOST = 2.0**16  # a factor beyond this belongs to a channel that is as good as dead
_KEEP_CHANNELS = frozenset({"AveragePool", "MaxPool", "GlobalAveragePool", "Flatten", "Reshape", "Squeeze"})


@dataclass(frozen=True)
class Joint:
    """Where channels can be scaled and scaled back.

    value: what is made small. axis: of its channels. written: inputs of the writer, by index, along axis 0.
    readers: each node with the axis of its weight, input 1, that multiplies the channels.
    """

    value: ir.Value
    axis: int
    writer: ir.Node
    written: tuple[int, ...]
    readers: tuple[tuple[ir.Node, int], ...]


def equalize(model: onnx.ModelProto, feeds: Sequence[Arrays]) -> tuple[onnx.ModelProto, int]:
    """`model` with equal channels, and in how many joints. feeds: what the channels' sizes are seen on."""
    read = ir.from_proto(model)
    found = list(joints(read.graph))
    if not found:
        return model, 0
    for joint, size in zip(found, _sizes(model, found, feeds), strict=True):
        _rescale(read.graph, joint, _factors(size, _weights(joint)))
    return ir.to_proto(read), len(found)


def joints(graph: ir.Graph) -> Iterator[Joint]:
    """Norms that only linear layers read, and convolutions that only convolutions read, behind a ReLU."""
    for node in graph:
        result = node.outputs[0]
        if node.op_type == "LayerNormalization" and len(node.inputs) == 3:
            products = [(use.node, use.idx) for use in result.uses()]
            if products and all(_is_linear(each, index) for each, index in products):
                yield Joint(result, -1, node, (1, 2), tuple((each, 0) for each, _ in products))
        elif node.op_type == "Conv" and constant(node.inputs[1]) is not None:
            (*readers,) = result.uses()
            if len(readers) == 1 and readers[0].node.op_type == "Relu":
                rectified = readers[0].node.outputs[0]
                behind = _behind(rectified)
                if behind:
                    written = (1, 2) if len(node.inputs) > 2 else (1,)
                    yield Joint(rectified, 1, node, written, behind)


def _is_linear(node: ir.Node, index: int) -> bool:
    return node.op_type == "MatMul" and index == 0 and constant(node.inputs[1]) is not None


def _behind(value: ir.Value) -> tuple[tuple[ir.Node, int], ...]:
    """What multiplies the channels of `value`; empty where something else reads them."""
    found: list[tuple[ir.Node, int]] = []
    if value.is_graph_output():
        return ()
    for use in value.uses():
        node = use.node
        if node.op_type in _KEEP_CHANNELS or _is_mean(node):
            further = _behind(node.outputs[0])
            if not further or (
                node.op_type == "Reshape" and any(each.op_type == "Conv" for each, _ in further)
            ):
                return ()
            found += further
        elif (
            node.op_type == "Conv"
            and use.idx == 0
            and _groups(node) == 1
            and constant(node.inputs[1]) is not None
        ):
            found.append((node, 1))
        elif node.op_type == "Gemm" and use.idx == 0 and constant(node.inputs[1]) is not None:
            transposed = "transB" in node.attributes and node.attributes["transB"].as_int() == 1
            found.append((node, 1 if transposed else 0))
        else:
            return ()
    return tuple(found)


def _is_mean(node: ir.Node) -> bool:
    """Of all pixels of a map (N, C, H, W)."""
    if node.op_type != "ReduceMean" or len(node.inputs) < 2:
        return False
    axes = constant(node.inputs[1])
    return axes is not None and {int(axis) for axis in axes} in ({2, 3}, {-1, -2})


def _groups(node: ir.Node) -> int:
    return node.attributes["group"].as_int() if "group" in node.attributes else 1


def _sizes(model: onnx.ModelProto, found: Sequence[Joint], feeds: Sequence[Arrays]) -> list[Channels]:
    """The largest magnitude of every channel of every joint."""
    names = [str(joint.value.name) for joint in found]
    sizes: list[Channels] = []
    with opened(with_outputs(with_types(model), names)) as engine:
        for feed in feeds:
            results = engine.run(feed)
            seen = [
                np.abs(np.moveaxis(results[name], joint.axis, 0))
                .reshape(results[name].shape[joint.axis], -1)
                .max(1)
                for name, joint in zip(names, found, strict=True)
            ]
            sizes = [np.maximum(*pair) for pair in zip(sizes, seen, strict=True)] if sizes else seen
    return sizes


def _weights(joint: Joint) -> Channels:
    """The largest weight that each channel is multiplied by."""
    largest = []
    for node, axis in joint.readers:
        weights = constant(node.inputs[1])
        assert weights is not None
        largest.append(np.abs(np.moveaxis(weights, axis, 0)).reshape(weights.shape[axis], -1).max(1))
    return np.maximum.reduce(largest)


def _factors(sizes: Channels, weights: Channels) -> Channels:
    """What to divide the channels by."""
    alive = (sizes > 0) & (weights > 0)
    if len(sizes) != len(weights) or not alive.any():
        return np.ones_like(sizes)
    logarithm = np.zeros(len(sizes))
    logarithm[alive] = 0.5 * (np.log2(sizes[alive]) - np.log2(weights[alive]))
    centred = np.where(alive, logarithm - np.median(logarithm[alive]), 0.0)
    return np.clip(np.exp2(np.rint(centred)), 1 / MOST, MOST).astype(np.float32)


def _rescale(graph: ir.Graph, joint: Joint, factors: Channels) -> None:
    if (factors == 1).all():
        return
    for index in joint.written:
        _replace(graph, joint.writer, index, 0, np.float32(1) / factors)
    for node, axis in joint.readers:
        _replace(graph, node, 1, axis, factors)


def _replace(graph: ir.Graph, node: ir.Node, index: int, axis: int, factors: Channels) -> None:
    """Multiply one constant along `axis`, for `node` alone: others may share it."""
    value = node.inputs[index]
    assert value is not None
    values = constant(value)
    assert values is not None
    shape = [-1 if each == axis else 1 for each in range(values.ndim)]
    tensor = ir.tensor(values * factors.reshape(shape), name=f"{value.name}@{node.name}")
    made = ir.Value(
        name=tensor.name, shape=value.shape, type=ir.TensorType(ir.DataType.FLOAT), const_value=tensor
    )
    graph.register_initializer(made)
    node.replace_input_with(index, made)
