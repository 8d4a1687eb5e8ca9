"""STViT and STViT-R: attention over few semantic tokens, and their recovery to image tokens.

Chang et al., "Making Vision Transformers Efficient from A Token Sparsification View", CVPR 2023,
arXiv 2303.08685. STViT-R is Swin with dumbbell units in its third stage: a Swin block, generation of
3 x 3 semantic tokens per window, three blocks among them, and recovery of the image tokens.

Classification and detection differ in stage 3 (which keys a query sees, a residual, padding) while sharing
one state dict, so the same `CrossBlock` parameters serve two forms of each role. Keys and values are
projected once per token and gathered afterwards: same numbers as the released code, which projects every
overlapping window again (241 -> 134 G multiply-accumulates for the small backbone at 800x1344).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from saccade.errors import UsageError
from saccade.models.attention import (
    seeded_window_attention,
    token_attention,
    window_cross_attention,
)
from saccade.models.checkpoint import Checkpoint
from saccade.models.swin import (
    Mlp,
    SwinBlock,
    assemble,
    check_image_size,
    check_sizes,
    make_stages,
    official_keys,
    pad_image,
    pad_to_multiple,
    window_and_shift,
)

UNIT = 6  # blocks of one dumbbell unit
SEEDS = 3  # semantic tokens per window, each way
STAGE = 2  # the stage that holds the dumbbell units
LAYER_SCALE = 1e-5  # initial value, as the released configuration


class ConvStem(nn.Module):
    """(B, 3, H, W) -> (B, ceil(H / 4), ceil(W / 4), C): two 3x3 convolutions of stride 2."""

    def __init__(self, channels: int, pad: bool) -> None:
        super().__init__()
        self.pad = pad
        self.proj = nn.Sequential(
            _ConvNorm(3, channels // 2), nn.Hardswish(), _ConvNorm(channels // 2, channels), nn.Hardswish()
        )

    def forward(self, image: Tensor) -> Tensor:
        if self.pad:
            image = pad_image(image, 4)
        return self.proj(image).permute(0, 2, 3, 1)


class _ConvNorm(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.c = nn.Conv2d(inputs, outputs, 3, 2, 1, bias=False)
        self.bn = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.c(x))


class CrossAttention(nn.Module):
    """The projections of a cross block: queries from one grid, keys and values from another."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(channels, channels)
        self.kv = nn.Linear(channels, 2 * channels)
        self.proj = nn.Linear(channels, channels)


class CrossBlock(nn.Module):
    """Parameters of every block of stage 3 that is not a Swin block. Subclasses say who attends to whom.

    x: image tokens (B, H, W, C); s: semantic tokens (B, 3 gh, 3 gw, C), in raster order.
    One LayerNorm serves queries and keys; layer scale acts on both branches.
    """

    def __init__(self, channels: int, heads: int, window: int, mlp_ratio: float) -> None:
        super().__init__()
        self.window = window
        self.layer_scale_1 = nn.Parameter(torch.full((channels,), LAYER_SCALE))
        self.layer_scale_2 = nn.Parameter(torch.full((channels,), LAYER_SCALE))
        self.norm1 = nn.LayerNorm(channels)
        self.attn = CrossAttention(channels, heads)
        self.norm2 = nn.LayerNorm(channels)
        self.mlp = Mlp(channels, int(channels * mlp_ratio))

    def project(self, queries: Tensor, *keys: Tensor) -> tuple[Tensor, ...]:
        """Normalise and project: q of `queries`, then one (.., 2C) grid for each of `keys`."""
        normed = self.norm1(queries)
        return self.attn.q(normed), *(
            self.attn.kv(normed if grid is queries else self.norm1(grid)) for grid in keys
        )

    def pad_row(self) -> Tensor:
        """(2C,): key and value of a padded token, which is zero before the norm."""
        return self.attn.kv(self.norm1.bias)

    def close(self, attended: Tensor, residual: Tensor | None) -> Tensor:
        """Output projection and layer scale, residual, then the MLP branch."""
        x = self.layer_scale_1 * self.attn.proj(attended)
        if residual is not None:
            x = residual + x
        return x + self.layer_scale_2 * self.mlp(self.norm2(x))

    def windowed(
        self, queries: Tensor, keys: Tensor, q_window: int, k_window: int, k_stride: int, k_before: int
    ) -> Tensor:
        """Attended values of windowed cross-attention, before the output projection."""
        q, kv = self.project(queries, keys)
        return window_cross_attention(
            q,
            kv,
            self.pad_row(),
            heads=self.attn.heads,
            q_window=q_window,
            k_window=k_window,
            k_stride=k_stride,
            k_before=k_before,
        )


class Generation(CrossBlock):
    """Classification: 9 seeds of a window see themselves and one 10x10 patch; no residual."""

    key_window, key_stride = 10, 4

    def forward(self, x: Tensor) -> Tensor:
        seeds = pool_seeds(x, self.window)
        q, kv_seeds, kv = self.project(seeds, seeds, x)
        attended = seeded_window_attention(
            q,
            kv_seeds,
            kv,
            heads=self.attn.heads,
            q_window=SEEDS,
            k_window=self.key_window,
            k_stride=self.key_stride,
        )
        return self.close(attended, None)


class Refinement(CrossBlock):
    """Classification: semantic tokens see all semantic tokens and all image tokens."""

    def forward(self, s: Tensor, x: Tensor) -> Tensor:
        q, kv_s, kv_x = self.project(s, s, x)
        kv = torch.cat((kv_s.flatten(1, 2), kv_x.flatten(1, 2)), dim=1)[:, None]
        return self.close(token_attention(q, kv, heads=self.attn.heads), s)


class Local(CrossBlock):
    """Self-attention among the nine semantic tokens of each window."""

    def forward(self, s: Tensor) -> Tensor:
        return self.close(self.windowed(s, s, SEEDS, SEEDS, SEEDS, 0), s)


class Global(CrossBlock):
    """Self-attention among all semantic tokens."""

    def forward(self, s: Tensor) -> Tensor:
        q, kv = self.project(s, s)
        return self.close(token_attention(q, kv, heads=self.attn.heads), s)


class Recovery(CrossBlock):
    """Classification: every image token sees every semantic token."""

    def forward(self, x: Tensor, s: Tensor) -> Tensor:
        q, kv = self.project(x, s)
        return self.close(token_attention(q, kv, heads=self.attn.heads), x)


class DenseGeneration(CrossBlock):
    """Detection: the seeds of a window see the image tokens of a window twice as wide; residual."""

    def forward(self, x: Tensor) -> Tensor:
        seeds = pool_seeds(pad_to_multiple(x, self.window), self.window)
        before = self.window // 2
        attended = self.windowed(seeds, x, SEEDS, 2 * self.window, self.window, before)
        return self.close(attended, seeds)


class DenseRefinement(CrossBlock):
    """Detection: semantic tokens see the image tokens of the 3 x 3 windows around them."""

    def forward(self, s: Tensor, x: Tensor) -> Tensor:
        return self.close(self.windowed(s, x, SEEDS, 3 * self.window, self.window, self.window), s)


class DenseRecovery(CrossBlock):
    """Detection: image tokens see the semantic tokens of the 9 x 9 windows around theirs."""

    def forward(self, x: Tensor, s: Tensor) -> Tensor:
        return self.close(self.windowed(x, s, self.window, 9 * SEEDS, SEEDS, 4 * SEEDS), x)


CLASSIFICATION = (Generation, Refinement, Local, Global, Recovery)
DETECTION = (DenseGeneration, DenseRefinement, Local, Global, DenseRecovery)


def run_dumbbells(blocks: Sequence[nn.Module], x: Tensor) -> Tensor:
    """Stage 3 of STViT-R, six blocks to a unit. (B, H, W, C) -> (B, H, W, C)."""
    for start in range(0, len(blocks), UNIT):
        swin, generate, refine, local, global_, recover = blocks[start : start + UNIT]
        x = swin(x)
        s = global_(local(refine(generate(x), x)))
        x = recover(x, s)
    return x


def stvit_r_swin(
    *,
    checkpoint: Checkpoint | None,
    features: bool,
    num_classes: int | None = None,
    img_size: int = 224,
    embed_dim: int = 96,
    depths: Sequence[int] = (2, 2, 18, 2),
    num_heads: Sequence[int] = (3, 6, 12, 24),
    window_size: int = 7,
    mlp_ratio: float = 4.0,
) -> nn.Module:
    """STViT-R classifier at `img_size`, or with `features` the detection backbone for any size."""
    check_sizes(embed_dim, depths, num_heads)
    if depths[STAGE] % UNIT:
        raise UsageError(f"stage 3 has {depths[STAGE]} blocks; dumbbell units need a multiple of {UNIT}")
    if not features:
        check_image_size(img_size)
        _check_key_patches(img_size, window_size)
    widths = [embed_dim * 2**i for i in range(4)]
    roles = DETECTION if features else CLASSIFICATION

    def block(stage: int, index: int) -> nn.Module:
        if stage == STAGE and index % UNIT:
            return roles[index % UNIT - 1](widths[stage], num_heads[stage], window_size, mlp_ratio)
        window, shift = window_and_shift(stage, index, img_size, window_size, features)
        return SwinBlock(widths[stage], num_heads[stage], window, shift, mlp_ratio)

    stages = make_stages(block, widths, depths, features)
    stages[STAGE].run = run_dumbbells
    state = official_keys(checkpoint.state) if checkpoint else None
    return assemble(ConvStem(embed_dim, features), stages, widths, features, num_classes, state, "STViT-R")


def pool_seeds(x: Tensor, window: int) -> Tensor:
    """(B, H, W, C) -> (B, 3H/window, 3W/window, C): adaptive 3 x 3 max pooling inside every window.

    Done one axis after the other on slices: exporters know no adaptive pooling from 7 to 3.
    """
    ranges = [(i * window // SEEDS, -(-(i + 1) * window // SEEDS)) for i in range(SEEDS)]
    x = x.unflatten(2, (-1, window)).unflatten(1, (-1, window))
    x = torch.cat([x[:, :, a:b].amax(2, keepdim=True) for a, b in ranges], dim=2)
    x = torch.cat([x[:, :, :, :, a:b].amax(4, keepdim=True) for a, b in ranges], dim=4)
    return x.flatten(3, 4).flatten(1, 2)


def _check_key_patches(img_size: int, window: int) -> None:
    side = img_size // 16
    patches = (side - Generation.key_window) // Generation.key_stride + 1
    if side % window or patches != side // window:
        raise UsageError(
            f"img_size {img_size} with window_size {window} gives {patches} key patches and "
            f"{side / window:g} windows each way; STViT-R classifies at 224 with 7 or 256 with 8"
        )
