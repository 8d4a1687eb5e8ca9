"""Swin Transformer, with the blocks that STViT-R shares. (B, H, W, C) inside, official state-dict keys.

Liu et al., "Swin Transformer: Hierarchical Vision Transformer using Shifted Windows", arXiv 2103.14030.
Classification follows the official classifier: a grid no larger than the window is one window, unshifted.
With `features` it follows the detection backbone: any size, grids padded to whole windows after the norm,
the shift never switched off, one LayerNorm per returned map.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saccade.errors import UsageError
from saccade.models.attention import shifted_window_attention
from saccade.models.checkpoint import Checkpoint, load_strict

logger = logging.getLogger("saccade")

STRIDES = (4, 8, 16, 32)


class Mlp(nn.Module):
    """Linear, exact GELU, Linear. (..., C) -> (..., C)."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(channels, hidden)
        self.fc2 = nn.Linear(hidden, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class WindowAttention(nn.Module):
    """Parameters of Swin's window attention; (B, H, W, C) -> (B, H, W, C)."""

    relative_position_index: Tensor

    def __init__(self, channels: int, heads: int, window: int, shift: int) -> None:
        super().__init__()
        self.heads, self.window, self.shift = heads, window, shift
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * window - 1) ** 2, heads))
        self.register_buffer("relative_position_index", _relative_index(window), persistent=False)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        bias = self.relative_position_bias_table[self.relative_position_index].permute(2, 0, 1)
        # A padded token is zero after the norm, so its projection is the bias.
        attended = shifted_window_attention(
            self.qkv(x), self.qkv.bias, bias, heads=self.heads, window=self.window, shift=self.shift
        )
        return self.proj(attended)


class SwinBlock(nn.Module):
    """Pre-norm window attention and MLP with residuals. (B, H, W, C) -> (B, H, W, C)."""

    def __init__(self, channels: int, heads: int, window: int, shift: int, mlp_ratio: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(channels)
        self.attn = WindowAttention(channels, heads, window, shift)
        self.norm2 = nn.LayerNorm(channels)
        self.mlp = Mlp(channels, int(channels * mlp_ratio))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class PatchMerging(nn.Module):
    """(B, H, W, C) -> (B, ceil(H / 2), ceil(W / 2), 2C); an odd side is padded with zeros."""

    def __init__(self, channels: int, pad: bool) -> None:
        super().__init__()
        self.pad = pad
        self.norm = nn.LayerNorm(4 * channels)
        self.reduction = nn.Linear(4 * channels, 2 * channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.pad:
            x = pad_to_multiple(x, 2)
        # Channel order of the four neighbours: the row varies faster than the column.
        x = x.unflatten(2, (-1, 2)).unflatten(1, (-1, 2)).permute(0, 1, 3, 4, 2, 5).flatten(3)
        return self.reduction(self.norm(x))


class PatchEmbed(nn.Module):
    """(B, 3, H, W) -> (B, ceil(H / 4), ceil(W / 4), C): 4x4 convolution, stride 4, LayerNorm."""

    def __init__(self, channels: int, pad: bool) -> None:
        super().__init__()
        self.pad = pad
        self.proj = nn.Conv2d(3, channels, 4, 4)
        self.norm = nn.LayerNorm(channels)

    def forward(self, image: Tensor) -> Tensor:
        if self.pad:
            image = pad_image(image, 4)
        return self.norm(self.proj(image).permute(0, 2, 3, 1))


def run_in_sequence(blocks: Sequence[nn.Module], x: Tensor) -> Tensor:
    for block in blocks:
        x = block(x)
    return x


class Stage(nn.Module):
    """Blocks, run by `run`, then `downsample`, which the caller runs; (B, H, W, C) -> (B, H, W, C)."""

    def __init__(self, blocks: Sequence[nn.Module], downsample: nn.Module | None) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.downsample = downsample
        self.run: Callable[[Sequence[nn.Module], Tensor], Tensor] = run_in_sequence

    def forward(self, x: Tensor) -> Tensor:
        return self.run(list(self.blocks), x)


class HierarchicalTransformer(nn.Module):
    """Stem, four stages with patch merging between them, and a classifier or four normed maps.

    forward: (B, 3, H, W) -> logits (B, num_classes), or with `features` four maps (B, C_i, H_i, W_i).
    """

    def __init__(
        self, stem: nn.Module, stages: Sequence[Stage], channels: Sequence[int], num_classes: int | None
    ) -> None:
        super().__init__()
        self.channels = tuple(channels)
        self.strides = STRIDES
        self.patch_embed = stem
        self.layers = nn.ModuleList(stages)
        self.features = num_classes is None
        if num_classes is None:
            for i, width in enumerate(channels):
                self.add_module(f"norm{i}", nn.LayerNorm(width))
        else:
            self.norm = nn.LayerNorm(channels[-1])
            self.head = nn.Linear(channels[-1], num_classes)

    def forward(self, image: Tensor) -> Tensor | tuple[Tensor, ...]:
        x = self.patch_embed(image)
        maps = []
        for i, stage in enumerate(cast("Sequence[Stage]", self.layers)):
            x = stage(x)
            if self.features:
                maps.append(self.get_submodule(f"norm{i}")(x).permute(0, 3, 1, 2))
            if stage.downsample is not None:
                x = stage.downsample(x)
        return tuple(maps) if self.features else self.head(self.norm(x).flatten(1, 2).mean(1))


def swin(
    *,
    checkpoint: Checkpoint | None,
    features: bool,
    num_classes: int | None = None,
    img_size: int = 224,
    embed_dim: int = 96,
    depths: Sequence[int] = (2, 2, 6, 2),
    num_heads: Sequence[int] = (3, 6, 12, 24),
    window_size: int = 7,
    mlp_ratio: float = 4.0,
) -> nn.Module:
    """Swin classifier at `img_size`, or backbone for any size with `features`.

    Takes official, timm, and mmdet (fork and 2.x/3.x) state dicts.
    """
    check_sizes(embed_dim, depths, num_heads)
    widths = [embed_dim * 2**i for i in range(4)]

    def block(stage: int, index: int) -> nn.Module:
        window, shift = window_and_shift(stage, index, img_size, window_size, features)
        return SwinBlock(widths[stage], num_heads[stage], window, shift, mlp_ratio)

    if not features:
        check_image_size(img_size)
    stages = make_stages(block, widths, depths, features)
    state = official_keys(checkpoint.state) if checkpoint else None
    return assemble(PatchEmbed(embed_dim, features), stages, widths, features, num_classes, state, "Swin")


def make_stages(
    block: Callable[[int, int], nn.Module], widths: Sequence[int], depths: Sequence[int], pad: bool
) -> list[Stage]:
    """Four stages of `block(stage, index)`, with patch merging after all but the last."""
    return [
        Stage(
            [block(i, j) for j in range(depth)],
            PatchMerging(widths[i], pad) if i < len(depths) - 1 else None,
        )
        for i, depth in enumerate(depths)
    ]


def assemble(
    stem: nn.Module,
    stages: Sequence[Stage],
    widths: Sequence[int],
    features: bool,
    num_classes: int | None,
    state: Mapping[str, Tensor] | None,
    what: str,
) -> HierarchicalTransformer:
    """The whole model with `state` loaded strictly; the class count follows the head where not given."""
    if num_classes is None and state is not None and "head.weight" in state:
        num_classes = state["head.weight"].shape[0]
    model = HierarchicalTransformer(stem, stages, widths, None if features else num_classes or 1000)
    if state is not None:
        load_strict(model, _with_map_norms(state, model) if features else state, what=what)
    return model


def window_and_shift(stage: int, index: int, img_size: int, window: int, features: bool) -> tuple[int, int]:
    """Window and shift of one block. The classifier clamps both to its grid, the backbone never does."""
    if not features and (grid := img_size // STRIDES[stage]) <= window:
        return grid, 0
    return window, window // 2 if index % 2 else 0


def check_sizes(embed_dim: int, depths: Sequence[int], num_heads: Sequence[int]) -> None:
    """Raise UsageError unless there are four stages whose widths divide by their heads."""
    if len(depths) != 4 or len(num_heads) != 4:
        raise UsageError(f"depths {tuple(depths)} and num_heads {tuple(num_heads)} must have four entries")
    for i, heads in enumerate(num_heads):
        if embed_dim * 2**i % heads:
            raise UsageError(f"stage {i} is {embed_dim * 2**i} wide, which {heads} heads do not divide")


def check_image_size(img_size: int) -> None:
    """Raise UsageError unless a classifier can be built for `img_size` x `img_size` pixels."""
    if not isinstance(img_size, int):
        raise UsageError(f"img_size {img_size} must be one number: this classifier takes square pictures")
    if img_size % 32:
        raise UsageError(f"img_size {img_size} must be a multiple of 32; features=True takes any size")


def pad_to_multiple(x: Tensor, multiple: int) -> Tensor:
    """Zero-pad (B, H, W, C) at the bottom and right to multiples."""
    return F.pad(x, (0, 0, 0, _missing(x.shape[2], multiple), 0, _missing(x.shape[1], multiple)))


def pad_image(image: Tensor, multiple: int) -> Tensor:
    """Zero-pad (B, C, H, W) at the bottom and right to multiples."""
    return F.pad(image, (0, _missing(image.shape[3], multiple), 0, _missing(image.shape[2], multiple)))


def _missing(size: int, multiple: int) -> int:
    return (size + multiple - 1) // multiple * multiple - size


def _relative_index(window: int) -> Tensor:
    """(window^2, window^2) int64: row of the bias table for every pair of cells."""
    y, x = torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")
    cells = torch.stack((y.flatten(), x.flatten()))
    offset = cells[:, :, None] - cells[:, None, :] + window - 1
    return offset[0] * (2 * window - 1) + offset[1]


_RECOMPUTED = re.compile(r"(attn_mask|relative_position_index|num_batches_tracked)$")
_MMDET = (
    (re.compile(r"^patch_embed\.projection\."), "patch_embed.proj."),
    (re.compile(r"^stages\."), "layers."),
    (re.compile(r"\.attn\.w_msa\."), ".attn."),
    (re.compile(r"\.ffn\.layers\.0\.0\."), ".mlp.fc1."),
    (re.compile(r"\.ffn\.layers\.1\."), ".mlp.fc2."),
)


def official_keys(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename timm's and mmdet's Swin keys to the official ones and drop what is recomputed."""
    backbone = {k.removeprefix("backbone."): v for k, v in state.items() if k.startswith("backbone.")}
    state = {k: v for k, v in (backbone or state).items() if not _RECOMPUTED.search(k)}
    if any(key.startswith("stages.") for key in state):
        return _from_mmdet(state)
    if any(key.startswith(("head.fc.", "layers.3.downsample.")) for key in state):
        return _from_timm(state)
    return dict(state)


def _from_timm(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """timm merges at the start of a stage, the official code at the end of the one before."""

    def rename(key: str) -> str:
        key = re.sub(r"^layers\.(\d)\.downsample\.", lambda m: f"layers.{int(m[1]) - 1}.downsample.", key)
        return key.replace("head.fc.", "head.")

    return {rename(key): value for key, value in state.items()}


def _from_mmdet(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """mmdet 2.x/3.x merges patches with `unfold`: channel-major, column faster than row."""
    renamed = {}
    for key, value in state.items():
        for pattern, official in _MMDET:
            key = pattern.sub(official, key)
        if ".downsample." in key:
            value = value.unflatten(-1, (-1, 4))[..., [0, 2, 1, 3]].transpose(-1, -2).flatten(-2)
        renamed[key] = value
    return renamed


def _with_map_norms(state: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """A classifier's weights in a backbone: its head is dropped, the norms of the maps stay the identity."""
    if "norm.weight" not in state:
        return dict(state)
    logger.warning("classification weights in a backbone: norm0 to norm3 of the maps are untrained")
    kept = {k: v for k, v in state.items() if k.split(".")[0] not in ("norm", "head")}
    fresh = {k: v for k, v in model.state_dict().items() if re.match(r"norm\d\.", k)}
    return {**fresh, **kept}
