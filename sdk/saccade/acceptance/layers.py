"""Each semantic-token layer of a running plan beside torch, fed with what the plan fed to that layer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from saccade.engines.engine import Arrays

if TYPE_CHECKING:
    import onnx


@dataclass(frozen=True, slots=True)
class LayerError:
    """One node: largest difference from torch as a share of the layer's largest value, and its limit."""

    node: str
    operator: str
    share: float
    limit: float

    @property
    def agrees(self) -> bool:
        """False also for NaN."""
        return self.share <= self.limit


def has_layers(model: onnx.ModelProto) -> bool:
    """Whether there is an attention node of domain `saccade` in the graph."""
    return any(_is_layer(node) for node in model.graph.node)


def watched(model: onnx.ModelProto) -> onnx.ModelProto:
    """`model`, whose outputs are what its semantic-token layers read and give.

    model: with its weights. A constant that a layer reads is no output.
    """
    from saccade.engines.passes.outputs import computed, with_outputs, with_types

    shown = computed(model)
    names = [
        name
        for node in model.graph.node
        if _is_layer(node)
        for name in (*node.input, *node.output)
        if name in shown
    ]
    return with_outputs(with_types(model), list(dict.fromkeys(names)))


def compare(
    model: onnx.ModelProto, feeds: Arrays, answers: Arrays, *, roundoff: float
) -> Iterator[LayerError]:
    """Every layer of `model` in its order. answers: what the `watched` graph gave for `feeds`, by any engine.

    roundoff: of the plan's arithmetic. Torch computes in float32, from the plan's own numbers.
    """
    import torch

    from saccade.engines.kernels.registry import KERNELS
    from saccade.engines.layers import ROUNDINGS, SUMS
    from saccade.models import attention
    from saccade.models.operators import OPERATORS

    known = {**feeds, **_constants(model)}
    for node in model.graph.node:
        if not _is_layer(node):
            continue
        inputs = [
            torch.from_numpy(np.array(known[name] if name in known else answers[name], np.float32))
            for name in node.input
        ]
        attributes = {each.name: each.i for each in node.attribute}
        own = {name: attributes[name] for name in OPERATORS[node.op_type].attributes}
        with attention.without_kernels(), torch.inference_mode():
            expected = getattr(attention, KERNELS[node.op_type].name)(*inputs, **own).numpy()
        actual = answers[node.output[0]]
        largest = max(float(np.abs(expected).max(initial=0.0)), 1e-30)
        share = float(np.abs(actual - expected).max(initial=0.0)) / largest
        yield LayerError(node.name, node.op_type, share, ROUNDINGS * roundoff + SUMS)


def _is_layer(node: Any) -> bool:
    from saccade.engines.kernels.registry import KERNELS
    from saccade.models.operators import DOMAIN

    return node.domain == DOMAIN and node.op_type in KERNELS


def _constants(model: onnx.ModelProto) -> Mapping[str, NDArray[Any]]:
    """What layers read that no node computes."""
    from onnx import numpy_helper

    read = {name for node in model.graph.node if _is_layer(node) for name in node.input}
    stored = {each.name: each for each in model.graph.initializer if each.name in read}
    return {name: numpy_helper.to_array(each) for name, each in stored.items()}
