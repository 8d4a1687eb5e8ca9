"""Between the layouts in which NViT weights are published and the one that `saccade.models.nvit` runs.

    ours          names of DeiT: one `attn.qkv` per block with rows [Q, K, V], an ordinary patch
                  convolution; and `attn.token_mask` (tokens, 1) where it is not all ones. A distilled
                  DeiT is in this layout.
    compact       upstream's pruned models: `attn.qkv.{Q,K,V}`, `attn.proj.proj`, `attn.qkv.token_mask`,
                  a 1x1 patch convolution over space-to-depth
    head-aligned  upstream's models while pruning: full size with zeros at pruned units, a trailing axis
                  for the head, `attn.qkv.head_mask`

Source: arXiv:2110.04869 and the tensors published with it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from saccade.errors import CheckpointError
from saccade.models.nvit_dims import Dims

__all__ = [
    "PREFIX_TOKENS",
    "compact",
    "from_compact",
    "is_compact",
    "is_head_aligned",
    "resized",
    "square_side",
]

State = Mapping[str, Tensor]
PREFIX_TOKENS = 2  # class and distillation


def is_compact(state: State) -> bool:
    """Whether `state` is in upstream's layout of pruned models."""
    return "blocks.0.attn.proj.proj.weight" in state


def is_head_aligned(state: State) -> bool:
    """Whether `state` is in upstream's layout of models that are being pruned."""
    return "blocks.0.attn.qkv.head_mask.weight" in state


def from_compact(state: State) -> dict[str, Tensor]:
    """Compact to our layout, exactly. A token mask of ones is dropped: it multiplies by one."""
    converted = {key.replace("attn.proj.proj.", "attn.proj."): value for key, value in state.items()}
    patch = "patch_embed.proj.weight"
    if patch in converted:
        converted[patch] = _ordinary_convolution(converted[patch])
    for block in _blocks(state):
        _fuse(converted, f"{block}attn.")
    return converted


def _blocks(state: State) -> list[str]:
    """The prefixes "blocks.0.", "blocks.1.", ..."""
    found = {int(match[1]) for key in state if (match := re.match(r"blocks\.(\d+)\.", key))}
    return [f"blocks.{index}." for index in sorted(found)]


def _ordinary_convolution(weight: Tensor) -> Tensor:
    """(E, p * p * 3, 1, 1) with channels in the order row, column, colour, to (E, 3, p, p)."""
    patch = math.isqrt(weight.shape[1] // 3)
    if weight.ndim != 4 or weight.shape[1] != 3 * patch**2:
        raise CheckpointError(
            f"patch_embed.proj.weight has the shape {tuple(weight.shape)}, not (E, 3pp, 1, 1)"
        )
    return weight.reshape(-1, patch, patch, 3).permute(0, 3, 1, 2).contiguous()


def _fuse(state: dict[str, Tensor], attention: str) -> None:
    """Replace Q, K and V by one matrix and the token mask, if it does anything, by ours. In place."""
    for kind in ("weight", "bias"):
        names = [f"{attention}qkv.{part}.{kind}" for part in "QKV"]
        if all(name in state for name in names):  # what is missing stays for the strict loader to report
            state[f"{attention}qkv.{kind}"] = torch.cat([state.pop(name) for name in names])
    mask = state.pop(f"{attention}qkv.token_mask", None)
    if mask is not None and not bool((mask == 1).all()):
        state[f"{attention}token_mask"] = mask


# --- masked to compact ---------------------------------------------------------------------------------


class _Kept(NamedTuple):
    """Indices that survive in one block."""

    heads: Tensor
    qk: Tensor
    v: Tensor
    mlp: Tensor


def compact(state: State, *, rescale_norms: bool = False) -> tuple[dict[str, Tensor], Dims]:
    """Remove the zeroed units of a head-aligned model: its compact state and the widths that are left.

    Exact where the residual width is whole. Where channels of it were pruned the compact model differs from
    the masked one, because its LayerNorms average over fewer channels; upstream leaves that to fine-tuning.
    rescale_norms: multiply LayerNorm weights by sqrt(width before / after), which removes most of the
    difference (all of it where the channels' mean is 0).
    """
    if not is_head_aligned(state):
        raise CheckpointError(
            "there is no blocks.0.attn.qkv.head_mask.weight: only head-aligned models compact"
        )
    embed = _nonzero(state, "patch_embed.proj.weight", axis=0)
    kept = [
        _Kept(
            heads=_nonzero(state, f"{block}attn.qkv.Q.weight", axis=2),
            qk=_nonzero(state, f"{block}attn.qkv.Q.weight", axis=0),
            v=_nonzero(state, f"{block}attn.qkv.V.weight", axis=0),
            mlp=_nonzero(state, f"{block}mlp.fc1.weight", axis=0),
        )
        for block in _blocks(state)
    ]
    small = _narrowed(state, embed)
    for block, units in zip(_blocks(state), kept, strict=True):
        _compact_block(small, block, units)
    if rescale_norms:
        factor = math.sqrt(state["patch_embed.proj.weight"].shape[0] / len(embed))
        small.update({key: small[key] * factor for key in small if re.search(r"norm\d?\.weight$", key)})
    columns = ([len(indices) for indices in column] for column in zip(*kept, strict=True))
    heads, qk, v, mlp = map(tuple, columns)
    return small, Dims(len(embed), heads, qk, v, mlp)


def _nonzero(state: State, name: str, axis: int) -> Tensor:
    """Indices along `axis` at which the tensor is not all zero."""
    weight = _get(state, name)
    others = [other for other in range(weight.ndim) if other != axis]
    indices = (weight != 0).sum(dim=others).nonzero().flatten()
    if not len(indices):
        raise CheckpointError(f"{name} is zero everywhere: nothing would be left of it")
    return indices


def _get(state: State, name: str) -> Tensor:
    if name not in state:
        raise CheckpointError(f"the head-aligned checkpoint has no {name}")
    return state[name]


# Axis of the residual width in each tensor, by the end of its name; the first match counts.
_EMBED_AXIS = (
    (r"^(cls_token|dist_token|pos_embed)$", 2),
    (r"^patch_embed\.proj\.(weight|bias)$", 0),
    (r"norm\d?\.(weight|bias)$", 0),
    (r"attn\.qkv\.[QKV]\.weight$", 1),
    (r"attn\.proj\.(weight|bias)$", 0),
    (r"mlp\.fc1\.weight$", 1),
    (r"mlp\.fc2\.(weight|bias)$", 0),
    (r"^head(_dist)?\.weight$", 1),
)


def _narrowed(state: State, embed: Tensor) -> dict[str, Tensor]:
    """`state` with only the channels `embed` of the residual stream."""
    narrowed = {}
    for key, value in state.items():
        axis = next((axis for pattern, axis in _EMBED_AXIS if re.search(pattern, key)), None)
        narrowed[key] = value if axis is None else value.index_select(axis, embed)
    return narrowed


def _compact_block(state: dict[str, Tensor], block: str, kept: _Kept) -> None:
    """Drop the pruned units of one block and fold its head mask into Q, K and V. In place."""
    attention = f"{block}attn."
    mask = state.pop(f"{attention}qkv.head_mask.weight").flatten()[kept.heads]
    for part, rows in (("Q", kept.qk), ("K", kept.qk), ("V", kept.v)):
        weight, bias = f"{attention}qkv.{part}.weight", f"{attention}qkv.{part}.bias"
        whole = _get(state, weight).index_select(0, rows).index_select(2, kept.heads) * mask
        state[weight] = whole.permute(2, 0, 1).flatten(0, 1).contiguous()
        part_bias = _get(state, bias).index_select(0, rows).index_select(1, kept.heads) * mask
        state[bias] = part_bias.T.flatten().contiguous()
    out = _take(state, f"{attention}proj.weight").index_select(1, kept.v).index_select(2, kept.heads)
    state[f"{attention}proj.proj.weight"] = out.permute(0, 2, 1).flatten(1).contiguous()
    state[f"{attention}proj.proj.bias"] = _take(state, f"{attention}proj.bias")
    for name, axis in (("fc1.weight", 0), ("fc1.bias", 0), ("fc2.weight", 1)):
        key = f"{block}mlp.{name}"
        state[key] = _get(state, key).index_select(axis, kept.mlp)


def _take(state: dict[str, Tensor], name: str) -> Tensor:
    value = _get(state, name)
    del state[name]
    return value


# --- another picture size ------------------------------------------------------------------------------


def resized(state: State, grid_hw: tuple[int, int]) -> dict[str, Tensor]:
    """Our layout for another patch grid: position embeddings and token masks resampled (bicubic).

    The entries of the class and distillation tokens are kept. What is no square grid is left as it is, for
    the strict loader to report.
    """
    changed = dict(state)
    for key, value in state.items():
        if key == "pos_embed" and value.ndim == 3:
            changed[key] = _resized(value, grid_hw)
        elif key.endswith("attn.token_mask") and value.ndim == 2:
            changed[key] = _resized(value[None], grid_hw)[0]
    return changed


def square_side(tokens: int) -> int | None:
    """The side of the square patch grid of a model with `tokens` tokens; None where there is none."""
    side = math.isqrt(max(0, tokens - PREFIX_TOKENS))
    return side if side and side**2 == tokens - PREFIX_TOKENS else None


def _resized(tokens: Tensor, grid_hw: tuple[int, int]) -> Tensor:
    """(1, 2 + side * side, C) to (1, 2 + height * width, C)."""
    side = square_side(tokens.shape[1])
    if side is None or tokens.shape[1] == PREFIX_TOKENS + grid_hw[0] * grid_hw[1]:
        return tokens
    prefix, grid = tokens[:, :PREFIX_TOKENS], tokens[:, PREFIX_TOKENS:]
    image = grid.reshape(1, side, side, -1).permute(0, 3, 1, 2).float()
    image = torch.nn.functional.interpolate(image, grid_hw, mode="bicubic", antialias=True)
    return torch.cat([prefix, image.permute(0, 2, 3, 1).flatten(1, 2).to(grid.dtype)], dim=1)
