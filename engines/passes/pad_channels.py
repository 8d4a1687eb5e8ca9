"""Round the channels between convolutions up, with zeros, to what kernels store together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from saccade.engines.passes.constants import constant, initializer

MULTIPLE = 8  # ONNX Runtime blocks channels where they are a multiple of 4; tensor cores want 8 in float16
_POINTWISE = frozenset({"Add", "Mul", "Sub", "Relu", "Sigmoid", "HardSigmoid", "HardSwish", "Gelu", "Clip"})


@dataclass(frozen=True, slots=True)
class _Region:
    """Maps of the same channels: all that is computed from `writers` point by point until `readers`.

    In the order they are found: with sets, two exports of a model would have their weights in different ones.
    """

    maps: tuple[ir.Value, ...]
    writers: tuple[ir.Node, ...]
    readers: tuple[ir.Node, ...]


def pad_channels(model: ir.Model) -> int:
    """Give maps whose channels are no multiple of `MULTIPLE` more of them, which nothing reads.

    Only maps (N, C, H, W) that ungrouped convolutions write and read, with pointwise operators in between, so
    that the answers stay: the writers have weights of zero for a new channel, and so have the readers. ONNX
    Runtime keeps its blocked layout then, where 85 channels made it convert the maps around them, and run
    their convolutions at half the speed. Returns the number of regions.
    """
    changed = 0
    seen: set[ir.Value] = set()
    for node in list(model.graph):
        if node.op_type == "Conv" and node.outputs[0] not in seen:
            channels = _channels(node.outputs[0])
            region = _region(node.outputs[0], channels) if channels and channels % MULTIPLE else None
            if region is not None and channels is not None:
                seen.update(region.maps)
                _pad(model, region, -channels % MULTIPLE)
                changed += 1
    return changed


def _region(start: ir.Value, channels: int) -> _Region | None:
    """All maps joined to `start`; None where one of them is anything else than described above."""
    maps, writers, readers = dict[ir.Value, None](), dict[ir.Node, None](), dict[ir.Node, None]()
    waiting = [start]
    while waiting:
        value = waiting.pop()
        if value in maps:
            continue
        maps[value] = None
        writer = value.producer()
        if writer is None or value.is_graph_output() or _channels(value) != channels:
            return None
        if _is_plain(writer):
            writers[writer] = None
        elif writer.op_type in _POINTWISE:
            waiting += [each for each in writer.inputs if each is not None and not _is_scalar(each)]
        else:
            return None
        for reader, index in value.uses():
            if index == 0 and _is_plain(reader):
                readers[reader] = None
            elif reader.op_type in _POINTWISE:
                waiting.append(reader.outputs[0])
            else:
                return None
    return _Region(tuple(maps), tuple(writers), tuple(readers))


def _channels(value: ir.Value) -> int | None:
    """C of a map (N, C, H, W); None where it is not known, or not a map."""
    if value.shape is None or len(value.shape) != 4:
        return None
    channels = value.shape[1]
    return channels if isinstance(channels, int) else None


def _is_plain(node: ir.Node) -> bool:
    """Whether it is a convolution by constants that reads every channel for every channel."""
    if node.op_type != "Conv" or any(constant(each) is None for each in node.inputs[1:]):
        return False
    return "group" not in node.attributes or node.attributes["group"].as_int() == 1


def _is_scalar(value: ir.Value) -> bool:
    known = constant(value)
    return known is not None and known.size == 1


def _pad(model: ir.Model, region: _Region, more: int) -> None:
    for writer in region.writers:
        for index in range(1, len(writer.inputs)):
            _pad_input(model, writer, index, 0, more)
    for reader in region.readers:
        _pad_input(model, reader, 1, 1, more)
    for value in region.maps:
        assert value.shape is not None
        lead, channels, *sides = value.shape
        assert isinstance(channels, int)
        value.shape = ir.Shape([lead, channels + more, *sides])


def _pad_input(model: ir.Model, node: ir.Node, index: int, axis: int, more: int) -> None:
    """Put `more` zeros after the weights or biases of input `index`, along `axis`."""
    given = node.inputs[index]
    values = constant(given)
    assert given is not None
    assert values is not None
    name = f"{given.name}_{('out', 'in')[axis]}_padded"
    node.replace_input_with(index, initializer(model, name, _with_zeros(values, axis, more)))


def _with_zeros(values: NDArray[Any], axis: int, more: int) -> NDArray[Any]:
    widths = [(0, more if each == axis else 0) for each in range(values.ndim)]
    return np.pad(values, widths)
