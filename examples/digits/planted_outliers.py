"""Networks that compute the same function with outlier channels in them, as large transformers grow them.

In every joint of a network (a norm and the linear layers that read it, the values of an attention and its
output projection, a batch norm and the convolution behind its ReLU) one channel is multiplied by `strength`
and its readers' weights are divided by it. Strengths are powers of two, so float32 results stay the same;
arithmetic with a narrow range, or with one step size for a whole tensor, does not survive. That is what these
networks are for: a precision that is offered must keep their accuracy too.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping

import torch
from timm.models.tiny_vit import TinyVitBlock
from torch import Tensor, nn

from saccade.models import deepmad, nvit, stvit, swin

INT8_BREAKER = 2.0**8
"""A tensor-wide int8 scale spends its steps on one channel; float16 still holds it."""

FLOAT16_BREAKER = 2.0**15
"""The weights still fit float16, but a normalised value of 2 becomes 65536, which does not."""


@dataclasses.dataclass(frozen=True)
class Joint:
    """Where a channel can be scaled and scaled back without changing what the network computes.

    written: all parameters that make the channels, one row each; read: all weights behind, one column each.
    """

    written: tuple[Tensor, ...]
    read: tuple[Tensor, ...]


def plant(module: nn.Module, strength: float) -> nn.Module:
    """A copy of `module` in which one channel of every joint is `strength` times as large."""
    planted = copy.deepcopy(module)
    with torch.no_grad():
        for joint in joints(planted):
            rows = joint.written[0]
            channel = int(rows.reshape(len(rows), -1).norm(dim=1).argmax())
            for parameter in joint.written:
                parameter[channel] *= strength
            for weight in joint.read:
                weight[:, channel] /= strength
    return planted


def joints(module: nn.Module) -> Iterator[Joint]:
    """The joints of `module`, found by the kinds of its parts."""
    for part in module.modules():
        for kind, find in _FIND.items():
            if isinstance(part, kind):
                yield from find(part)


def _norm(norm: nn.LayerNorm, *readers: nn.Linear) -> Joint:
    return Joint((norm.weight, norm.bias), tuple(reader.weight for reader in readers))


def _values(projection: nn.Linear, first: int, output: nn.Linear) -> Joint:
    """The rows of a joint projection from `first` on are the values."""
    return Joint((projection.weight[first:], projection.bias[first:]), (output.weight,))


def _rectified(conv: deepmad.ConvBN, *readers: nn.Conv2d | nn.Linear) -> Joint:
    """ReLU(s x) = s ReLU(x) for s > 0, so a channel's scale passes through it."""
    return Joint((conv.bn1.weight, conv.bn1.bias), tuple(reader.weight for reader in readers))


def _in_swin(block: swin.SwinBlock) -> Iterator[Joint]:
    yield _norm(block.norm1, block.attn.qkv)
    yield _values(block.attn.qkv, 2 * block.attn.proj.in_features, block.attn.proj)
    yield _norm(block.norm2, block.mlp.fc1)


def _in_stvit(block: stvit.CrossBlock) -> Iterator[Joint]:
    yield _norm(block.norm1, block.attn.q, block.attn.kv)
    yield _values(block.attn.kv, block.attn.proj.in_features, block.attn.proj)
    yield _norm(block.norm2, block.mlp.fc1)


def _in_nvit(block: nvit.Block) -> Iterator[Joint]:
    yield _norm(block.norm1, block.attn.qkv)
    yield _values(block.attn.qkv, 2 * block.attn.heads * block.attn.qk, block.attn.proj)
    yield _norm(block.norm2, block.mlp.fc1)


def _in_tinyvit(block: TinyVitBlock) -> Iterator[Joint]:
    yield _norm(block.attn.norm, block.attn.qkv)
    yield _norm(block.mlp.norm, block.mlp.fc1)


def _in_dense_unit(unit: deepmad.ResidualUnit) -> Iterator[Joint]:
    if isinstance(unit.act, nn.ReLU) and unit.conv2.conv1.groups == 1:
        yield _rectified(unit.conv1, unit.conv2.conv1)
        yield _rectified(unit.conv2, unit.conv3.conv1)


def _around_deepmad(network: deepmad.DeepMAD) -> Iterator[Joint]:
    """Stem and head."""
    stem, block, *_, head = network.block_list
    assert isinstance(stem, deepmad.ConvBN)
    assert isinstance(block, deepmad.SuperBlock)
    assert isinstance(head, deepmad.ConvBN)
    (unit, *_) = block.block_list
    yield _rectified(stem, unit.conv1.conv1, unit.residual_proj.conv1)
    yield _rectified(head, network.fc_linear)


_FIND: Mapping[type[nn.Module], Callable[..., Iterator[Joint]]] = {
    swin.SwinBlock: _in_swin,
    stvit.CrossBlock: _in_stvit,
    nvit.Block: _in_nvit,
    TinyVitBlock: _in_tinyvit,
    deepmad.ResidualUnit: _in_dense_unit,
    deepmad.DeepMAD: _around_deepmad,
}
