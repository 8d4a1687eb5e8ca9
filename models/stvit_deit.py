"""STViT on DeiT: from layer 7 on, 16 semantic tokens instead of 196 image tokens. A reconstruction.

Chang et al., arXiv 2303.08685, describe it; neither code nor weights were released, so only shapes and cost
can be held to anything. Left out: the learnt offsets between windows (section 3.1 of the paper names them
without the sizes to build them). The residual of the second generation layer is the first one's output, on
which sources disagree.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from saccade.errors import UsageError
from saccade.models.attention import token_attention
from saccade.models.checkpoint import Checkpoint, load_strict
from saccade.models.swin import Mlp

PATCH = 16
REGIONS = 4  # semantic tokens each way
FIRST_GENERATION = 4  # layers before it see image tokens
GENERATION = 2  # layers that make semantic tokens


class Block(nn.Module):
    """Pre-norm attention and MLP. queries (B, N, C), keys (B, M, C) -> (B, N, C)."""

    def __init__(self, channels: int, heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(channels, eps=1e-6)
        self.q = nn.Linear(channels, channels)
        self.kv = nn.Linear(channels, 2 * channels)
        self.proj = nn.Linear(channels, channels)
        self.norm2 = nn.LayerNorm(channels, eps=1e-6)
        self.mlp = Mlp(channels, int(channels * mlp_ratio))

    def forward(self, queries: Tensor, keys: Tensor, residual: Tensor) -> Tensor:
        q, kv = self.q(self.norm1(queries)), self.kv(self.norm1(keys))
        attended = token_attention(q[:, None], kv[:, None], heads=self.heads)[:, 0]
        x = residual + self.proj(attended)
        return x + self.mlp(self.norm2(x))


class RegionPooling(nn.Module):
    """(B, C, H, W) -> (B, 16, C): a learnt weighted mean over each of 4 x 4 overlapping regions."""

    index: Tensor

    def __init__(self, channels: int, grid: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
        self.norm = nn.LayerNorm(channels)
        self.weigh = nn.Linear(channels, 1)
        self.register_buffer("index", _regions(grid), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2).transpose(1, 2)
        features = self.depthwise(x).flatten(2).transpose(1, 2)
        logits = self.weigh(nn.functional.gelu(self.norm(features)))
        weights = logits[:, self.index.flatten()].unflatten(1, self.index.shape).softmax(2)
        return (weights * tokens[:, self.index.flatten()].unflatten(1, self.index.shape)).sum(2)


class STViTDeiT(nn.Module):
    """(B, 3, img_size, img_size) -> logits (B, num_classes)."""

    def __init__(
        self, num_classes: int, grid: int, channels: int, depth: int, heads: int, mlp_ratio: float
    ) -> None:
        super().__init__()
        self.patch_embed = nn.Conv2d(3, channels, PATCH, PATCH)
        self.pos_embed = nn.Parameter(torch.zeros(1, grid**2, channels))
        self.blocks = nn.ModuleList(Block(channels, heads, mlp_ratio) for _ in range(depth))
        self.pooling = RegionPooling(channels, grid)
        self.centres = nn.Parameter(torch.zeros(1, REGIONS**2, channels))
        self.norm = nn.LayerNorm(channels, eps=1e-6)
        self.head = nn.Linear(channels, num_classes)
        for tokens in (self.pos_embed, self.centres):
            nn.init.trunc_normal_(tokens, std=0.02)

    def forward(self, image: Tensor) -> Tensor:
        grid = self.patch_embed(image)
        x = grid.flatten(2).transpose(1, 2) + self.pos_embed
        before, (first, second), after = _split(list(self.blocks))
        for block in before:
            x = block(x, x, x)
        seeds = self.pooling(x.transpose(1, 2).unflatten(2, grid.shape[2:]))
        s = first(seeds, x, seeds)
        s = second(s + self.centres, torch.cat((s, x), dim=1), s)
        for block in after:
            s = block(s, s, s)
        return self.head(self.norm(s).mean(1))


def stvit_deit(
    *,
    checkpoint: Checkpoint | None,
    features: bool,
    num_classes: int | None = None,
    img_size: int = 224,
    embed_dim: int = 384,
    depth: int = 12,
    num_heads: int = 6,
    mlp_ratio: float = 4.0,
) -> nn.Module:
    """STViT-DeiT classifier; checkpoints are this module's own, since none was published."""
    if features:
        raise UsageError(
            "stvit_deit drops its image tokens half way: it has no feature maps; use stvit_r_swin"
        )
    if not isinstance(img_size, int) or img_size % PATCH or img_size < REGIONS * PATCH:
        raise UsageError(
            f"img_size {img_size} must be one number, a multiple of {PATCH}, at least {REGIONS * PATCH}"
        )
    if depth <= FIRST_GENERATION + GENERATION or embed_dim % num_heads:
        raise UsageError(f"depth {depth} must exceed 6 and {num_heads} heads must divide {embed_dim}")
    state = checkpoint.state if checkpoint else None
    if num_classes is None and state is not None and "head.weight" in state:
        num_classes = state["head.weight"].shape[0]
    model = STViTDeiT(num_classes or 1000, img_size // PATCH, embed_dim, depth, num_heads, mlp_ratio)
    if state is not None:
        load_strict(model, state, what="STViT-DeiT")
    return model


def _split(blocks: Sequence[nn.Module]) -> tuple[Sequence[nn.Module], ...]:
    end = FIRST_GENERATION + GENERATION
    return blocks[:FIRST_GENERATION], blocks[FIRST_GENERATION:end], blocks[end:]


def _regions(grid: int) -> Tensor:
    """(16, tokens) int64: raster indices of the cells of each region of a grid x grid map."""
    side = -(-grid // REGIONS)
    starts = torch.linspace(0, grid - side, REGIONS).round().long()
    cells = starts[:, None] + torch.arange(side)
    rows = cells[:, None, :, None] * grid
    return (rows + cells[None, :, None, :]).reshape(REGIONS**2, side**2)
