"""ViTDet's simple feature pyramid: five maps from the last map of a plain vision transformer.

Li et al., "Exploring Plain Vision Transformer Backbones for Object Detection", arXiv 2203.16527, section 3;
the order of layers is that of its released code.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

NORM_EPS = 1e-6


class SimplePyramid(nn.Module):
    """Maps of a plain backbone, of which the last counts, (B, width, H, W) -> five (B, channels, .., ..).

    Their strides are 1/4, 1/2, 1, 2 and 4 times the backbone's: two transposed convolutions, one, none, max
    pooling; the fifth is every second row and column of the fourth.
    """

    def __init__(self, width: int, channels: int) -> None:
        super().__init__()
        half, quarter = width // 2, width // 4
        scales: tuple[list[nn.Module], ...] = (
            [
                nn.ConvTranspose2d(width, half, 2, 2),
                ChannelNorm(half),
                nn.GELU(),
                nn.ConvTranspose2d(half, quarter, 2, 2),
            ],
            [nn.ConvTranspose2d(width, half, 2, 2)],
            [],
            [nn.MaxPool2d(2, 2)],
        )
        widths = (quarter, half, width, width)
        self.levels = nn.ModuleList(
            nn.Sequential(
                *scale,
                nn.Conv2d(inputs, channels, 1, bias=False),
                ChannelNorm(channels),
                nn.Conv2d(channels, channels, 3, padding=1, bias=False),
                ChannelNorm(channels),
            )
            for scale, inputs in zip(scales, widths, strict=True)
        )

    def forward(self, maps: Sequence[Tensor]) -> tuple[Tensor, ...]:
        pyramid = [level(maps[-1]) for level in self.levels]
        return (*pyramid, pyramid[-1][:, :, ::2, ::2])


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of (B, C, H, W)."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, eps=NORM_EPS)

    def forward(self, x: Tensor) -> Tensor:
        normed = F.layer_norm(x.permute(0, 2, 3, 1), self.normalized_shape, self.weight, self.bias, self.eps)
        return normed.permute(0, 3, 1, 2)
