"""NViT and ReViT: distilled vision transformers whose widths differ from block to block.

Source: "Global Vision Transformer Pruning with Hessian-Aware Saliency", arXiv:2110.04869. Names in the
state dict are those of DeiT, of which a distilled one loads as it is; upstream's own layouts are converted
by `saccade.models.nvit_convert`.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from saccade.errors import CheckpointError, UsageError
from saccade.models.checkpoint import Checkpoint, load_strict
from saccade.models.nvit_convert import (
    PREFIX_TOKENS,
    compact,
    from_compact,
    is_compact,
    is_head_aligned,
    resized,
    square_side,
)
from saccade.models.nvit_dims import Dims, Rule, redistributed

__all__ = ["NViT", "NViTFeatures", "nvit", "revit"]

_log = logging.getLogger("saccade")

_ATTENTION_SCALE = 0.125  # 64 ** -0.5 of the dense parent, whatever the pruned width
_NORM_EPS = 1e-6
_HEADS = ("norm.", "head.", "head_dist.")

Size = int | tuple[int, int]


def nvit(
    *,
    checkpoint: Checkpoint | None = None,
    features: bool = False,
    dims: Mapping[str, Any] | None = None,
    num_classes: int | None = None,
    img_size: Size | None = None,
    patch_size: int = 16,
    out_indices: Sequence[int] | None = None,
    rescale_norms: bool = False,
) -> nn.Module:
    """Build an NViT: the structure comes from `dims`, from the checkpoint's `dim`, or from a dense DeiT.

    checkpoint: compact (upstream's pruned models), head-aligned with zeroed units (compacted on the way in,
    see `compact` for rescale_norms), a distilled DeiT, or our own state dict.
    dims: {"EMB": int, "head": [...], "QK": [...], "V": [...], "MLP": [...]}, one number per block.
    img_size: None takes the checkpoint's, else 224; another size resamples the position embeddings.
    out_indices: four blocks for `features`, default evenly spaced up to the last.
    """
    state, stated = ({}, None) if checkpoint is None else _ours(checkpoint, rescale_norms)
    size_hw = _size_hw(img_size, state, patch_size)
    plan = Plan(
        dims=_agreed_dims(dims, stated, state),
        grid_hw=(size_hw[0] // patch_size, size_hw[1] // patch_size),
        patch_size=patch_size,
        masked_blocks=frozenset(map(int, re.findall(r"blocks\.(\d+)\.attn\.token_mask", " ".join(state)))),
    )
    classes = num_classes or _classes_of(state)
    model = NViTFeatures(plan, out_indices) if features else NViT(plan, classes)
    if checkpoint is not None:
        ignore = _is_head if features else None
        load_strict(model, resized(state, plan.grid_hw), what="this NViT", ignore=ignore)
    return model


def revit(
    *,
    checkpoint: Checkpoint | None = None,
    features: bool = False,
    embed_dim: int,
    rule: Rule = "code",
    num_classes: int | None = None,
    img_size: Size | None = None,
    out_indices: Sequence[int] | None = None,
) -> nn.Module:
    """Build a ReViT: an NViT of 12 blocks with widths from `embed_dim` by a rule (see `redistributed`)."""
    return nvit(
        checkpoint=checkpoint,
        features=features,
        dims=redistributed(embed_dim, rule).record(),
        num_classes=num_classes,
        img_size=img_size,
        out_indices=out_indices,
    )


# --- from a checkpoint to a plan -----------------------------------------------------------------------


def _ours(checkpoint: Checkpoint, rescale_norms: bool) -> tuple[dict[str, Tensor], Dims | None]:
    """The weights in our layout, and the widths where the checkpoint states them."""
    state: Mapping[str, Tensor] = checkpoint.state
    dims = _stated_dims(checkpoint)
    if is_head_aligned(state):
        embed_before = state["cls_token"].shape[-1] if "cls_token" in state else 0
        state, dims = compact(state, rescale_norms=rescale_norms)
        if dims.embed != embed_before and not rescale_norms:
            _log.warning(
                "compacted the residual width from %d to %d: the result differs from the masked model until "
                "it is fine-tuned; rescale_norms=True keeps it closer",
                embed_before,
                dims.embed,
            )
    return (from_compact(state) if is_compact(state) else dict(state)), dims


def _agreed_dims(dims: Mapping[str, Any] | None, stated: Dims | None, state: Mapping[str, Tensor]) -> Dims:
    given = None if dims is None else Dims.read(dims)
    if given is not None and stated is not None and given != stated:
        raise UsageError(f"dims= differ from those of the checkpoint, which are {stated.record()}")
    agreed = given or stated
    if agreed is not None:
        return agreed
    if not state:
        raise UsageError("nvit has no sizes of its own: pass a checkpoint that has `dim`, or dims={...}")
    return _dense_dims(state)


def _stated_dims(checkpoint: Checkpoint) -> Dims | None:
    stated = checkpoint.metadata.get("dim")
    if stated is None:
        return None
    try:
        return Dims.read(stated)
    except UsageError as error:
        raise CheckpointError(f"the checkpoint's `dim` cannot be used: {error}") from error


def _dense_dims(state: Mapping[str, Tensor]) -> Dims:
    """The widths of a distilled DeiT: heads of 64, MLP four times as wide. Anything else is refused."""
    if "cls_token" not in state or "dist_token" not in state:
        raise CheckpointError(
            "this is no NViT or distilled DeiT: it has no cls_token or no dist_token. Its names begin with "
            + ", ".join(list(state)[:3])
        )
    embed = state["cls_token"].shape[-1]
    depth = sum(key.endswith("attn.qkv.weight") for key in state)
    dense = {"attn.qkv.weight": (3 * embed, embed), "mlp.fc1.weight": (4 * embed, embed)}
    shapes = {(key, tuple(state[key].shape)) for key in state if key.endswith(tuple(dense))}
    expected = {(f"blocks.{block}.{name}", shape) for block in range(depth) for name, shape in dense.items()}
    if not depth or embed % 64 or shapes != expected:
        raise CheckpointError(
            "the widths of this NViT are unknown: its tensors give heads times width per head, never the two "
            "apart. Pass dims={'EMB': ..., 'head': [...], 'QK': [...], 'V': [...], 'MLP': [...]}, or the "
            "original file, which has them under `dim`"
        )
    return Dims(embed, (embed // 64,) * depth, (64,) * depth, (64,) * depth, (4 * embed,) * depth)


def _size_hw(img_size: Size | None, state: Mapping[str, Tensor], patch_size: int) -> tuple[int, int]:
    if img_size is None:
        stored = state.get("pos_embed")
        side = square_side(stored.shape[1]) if stored is not None and stored.ndim == 3 else None
        img_size = 224 if side is None else side * patch_size
    size_hw = (img_size, img_size) if isinstance(img_size, int) else (img_size[0], img_size[1])
    if any(side < patch_size or side % patch_size for side in size_hw):
        raise UsageError(f"img_size {size_hw[0]}x{size_hw[1]} is no multiple of the patch size {patch_size}")
    return size_hw


def _classes_of(state: Mapping[str, Tensor]) -> int:
    return int(state["head.weight"].shape[0]) if "head.weight" in state else 1000


def _is_head(key: str) -> bool:
    return key.startswith(_HEADS)


# --- modules -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Plan:
    """What decides the modules: widths, patch grid, and the blocks whose token mask does something."""

    dims: Dims
    grid_hw: tuple[int, int] = (14, 14)
    patch_size: int = 16
    masked_blocks: frozenset[int] = frozenset()

    @property
    def tokens(self) -> int:
        return PREFIX_TOKENS + self.grid_hw[0] * self.grid_hw[1]


class Trunk(nn.Module):
    """What classifier and feature maps have in common: the picture as tokens, and the blocks."""

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        dims = plan.dims
        self.plan = plan
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dims.embed))
        self.dist_token = nn.Parameter(torch.zeros(1, 1, dims.embed))
        self.pos_embed = nn.Parameter(torch.zeros(1, plan.tokens, dims.embed))
        self.patch_embed = PatchEmbed(dims.embed, plan.patch_size)
        self.blocks = nn.ModuleList(Block(plan, index) for index in range(dims.depth))
        for table in (self.cls_token, self.dist_token, self.pos_embed):
            nn.init.trunc_normal_(table, std=0.02)

    def embed(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) to (B, 2 + patches, E): class token, distillation token, patches row by row."""
        height, width = (side * self.plan.patch_size for side in self.plan.grid_hw)
        if tuple(image.shape[1:]) != (3, height, width):
            raise UsageError(
                f"this NViT takes pictures of 3x{height}x{width}, not {'x'.join(map(str, image.shape[1:]))}: "
                "build it with img_size= for another size"
            )
        patches = self.patch_embed(image)
        batch = image.shape[0]
        prefix = torch.cat([self.cls_token, self.dist_token], dim=1).expand(batch, -1, -1)
        return torch.cat([prefix, patches], dim=1) + self.pos_embed


class NViT(Trunk):
    """The classifier: (B, 3, H, W) float32 to logits (B, num_classes)."""

    def __init__(self, plan: Plan, num_classes: int = 1000) -> None:
        super().__init__(plan)
        self.norm = nn.LayerNorm(plan.dims.embed, eps=_NORM_EPS)
        self.head = nn.Linear(plan.dims.embed, num_classes)
        self.head_dist = nn.Linear(plan.dims.embed, num_classes)
        self.apply(_initialise)

    def forward(self, image: Tensor) -> Tensor:
        by_class, by_distillation = self.both_logits(image)
        return (by_class + by_distillation) / 2

    def both_logits(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """The logits of the class token and of the distillation token; a prediction is their mean."""
        x = self.embed(image)
        for block in self.blocks:
            x = block(x)
        x = self.norm(x[:, :PREFIX_TOKENS])
        return self.head(x[:, 0]), self.head_dist(x[:, 1])


class NViTFeatures(Trunk):
    """The patch tokens after four blocks as maps (B, E, H / patch, W / patch), without a final norm."""

    def __init__(self, plan: Plan, out_indices: Sequence[int] | None = None) -> None:
        super().__init__(plan)
        self.out_indices = _chosen_blocks(plan.dims.depth, out_indices)
        self.channels = (plan.dims.embed,) * 4
        self.strides = (plan.patch_size,) * 4
        self.apply(_initialise)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        x = self.embed(image)
        maps = []
        for index, block in enumerate(self.blocks[: self.out_indices[-1] + 1]):
            x = block(x)
            if index in self.out_indices:
                maps.append(x[:, PREFIX_TOKENS:].transpose(1, 2).unflatten(2, self.plan.grid_hw))
        return tuple(maps)


def _chosen_blocks(depth: int, out_indices: Sequence[int] | None) -> tuple[int, ...]:
    chosen = (
        tuple(depth * (part + 1) // 4 - 1 for part in range(4)) if out_indices is None else tuple(out_indices)
    )
    if len(chosen) != 4 or sorted(set(chosen)) != list(chosen) or not set(chosen) <= set(range(depth)):
        raise UsageError(
            f"features need four blocks in ascending order out of 0..{depth - 1}, not {list(chosen)}"
        )
    return chosen


class PatchEmbed(nn.Module):
    """One token per patch, (B, 3, H, W) to (B, H * W / patch^2, E)."""

    def __init__(self, embed: int, patch_size: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, embed, patch_size, patch_size)

    def forward(self, image: Tensor) -> Tensor:
        return self.proj(image).flatten(2).transpose(1, 2)


class Block(nn.Module):
    """Attention and MLP, each on normalised tokens and added to them, (B, N, E) to the same."""

    def __init__(self, plan: Plan, index: int) -> None:
        super().__init__()
        dims = plan.dims
        self.norm1 = nn.LayerNorm(dims.embed, eps=_NORM_EPS)
        self.attn = Attention(dims, index, masked_tokens=plan.tokens if index in plan.masked_blocks else 0)
        self.norm2 = nn.LayerNorm(dims.embed, eps=_NORM_EPS)
        self.mlp = Mlp(dims.embed, dims.mlp[index])

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Attention(nn.Module):
    """Self-attention whose heads have `qk` query and key channels and `v` value channels.

    masked_tokens: 0, or the number of tokens N where a learned mask (N, 1) multiplies queries, keys and
    values after their bias.
    """

    def __init__(self, dims: Dims, index: int, masked_tokens: int = 0) -> None:
        super().__init__()
        self.heads, self.qk, self.v = dims.heads[index], dims.qk[index], dims.v[index]
        self.qkv = nn.Linear(dims.embed, self.heads * (2 * self.qk + self.v))
        self.proj = nn.Linear(self.heads * self.v, dims.embed)
        self.token_mask = nn.Parameter(torch.ones(masked_tokens, 1)) if masked_tokens else None

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv(x)
        if self.token_mask is not None:
            qkv = qkv * self.token_mask
        qk = self.heads * self.qk
        q, k, v = qkv.split([qk, qk, self.heads * self.v], dim=-1)
        q = q.unflatten(-1, (self.heads, self.qk)).transpose(1, 2) * _ATTENTION_SCALE
        k = k.unflatten(-1, (self.heads, self.qk)).permute(0, 2, 3, 1)
        v = v.unflatten(-1, (self.heads, self.v)).transpose(1, 2)
        attended = (q @ k).softmax(dim=-1) @ v
        return self.proj(attended.transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    """Two linear layers around an exact GELU."""

    def __init__(self, embed: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(embed, hidden)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden, embed)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x)))


def _initialise(module: nn.Module) -> None:
    """DeiT's initial weights of linear layers."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
