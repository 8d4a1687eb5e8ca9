"""UperNet's head: pyramid pooling on the coarsest map, a feature pyramid, one fusion of all levels.

Xiao et al., "Unified Perceptual Parsing for Scene Understanding", arXiv 1807.10221, in the form and with the
parameter names of mmsegmentation's `UPerHead`, so that its checkpoints load. The decoder of
segmentation_models_pytorch has one LayerNorm per input map more, so those weights do not fit it, and pools
with a layer that exports at known sizes only.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saccade.models.heads.conv import ConvUnit

__all__ = ["UPerHead", "adaptive_mean"]

POOL_SCALES = (1, 2, 3, 6)


class AdaptiveMean(nn.Module):
    """(B, C, H, W) -> (B, C, side, side), see `adaptive_mean`."""

    def __init__(self, side: int) -> None:
        super().__init__()
        self.side = side

    def forward(self, x: Tensor) -> Tensor:
        return adaptive_mean(x, self.side)


class UPerHead(nn.Module):
    """Four maps, finest first, of any sizes -> logits (B, num_classes, H0, W0) at the size of the finest."""

    def __init__(self, in_channels: Sequence[int], channels: int, num_classes: int) -> None:
        super().__init__()
        coarsest = in_channels[-1]
        self.psp_modules = nn.ModuleList(
            nn.Sequential(AdaptiveMean(side), ConvUnit(coarsest, channels, 1, norm=True))
            for side in POOL_SCALES
        )
        self.bottleneck = ConvUnit(coarsest + len(POOL_SCALES) * channels, channels, 3, norm=True)
        self.lateral_convs = nn.ModuleList(
            ConvUnit(width, channels, 1, norm=True) for width in in_channels[:-1]
        )
        self.fpn_convs = nn.ModuleList(ConvUnit(channels, channels, 3, norm=True) for _ in in_channels[:-1])
        self.fpn_bottleneck = ConvUnit(len(in_channels) * channels, channels, 3, norm=True)
        self.dropout = nn.Dropout2d(0.1)
        self.conv_seg = nn.Conv2d(channels, num_classes, 1)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        levels = [conv(x) for conv, x in zip(self.lateral_convs, maps[:-1], strict=True)]
        levels.append(self._pooled(maps[-1]))
        for i in reversed(range(len(levels) - 1)):
            levels[i] = levels[i] + resized(levels[i + 1], levels[i])
        pyramid = [conv(x) for conv, x in zip(self.fpn_convs, levels[:-1], strict=True)]
        pyramid.append(levels[-1])  # the pooled map has been through its own 3x3 convolution
        fused = self.fpn_bottleneck(torch.cat([resized(x, pyramid[0]) for x in pyramid], dim=1))
        return self.conv_seg(self.dropout(fused))

    def _pooled(self, x: Tensor) -> Tensor:
        """Pyramid pooling: the map beside its means over 1, 4, 9 and 36 regions."""
        pooled = [resized(branch(x), x) for branch in self.psp_modules]
        return self.bottleneck(torch.cat([x, *pooled], dim=1))


def resized(x: Tensor, like: Tensor) -> Tensor:
    """`x` at the height and width of `like`, bilinearly, pixel centres aligned."""
    return F.interpolate(x, like.shape[-2:], mode="bilinear", align_corners=False)


def adaptive_mean(x: Tensor, side: int) -> Tensor:
    """`F.adaptive_avg_pool2d(x, side)` as two small matrix products.

    Exporters know adaptive pooling only where `side` divides a known size; the products take any size.
    """
    rows, columns = (_means(size, side, x) for size in x.shape[-2:])
    return rows @ x @ columns.transpose(0, 1)


def _means(size: int, side: int, like: Tensor) -> Tensor:
    """(side, size): row i averages the cells from floor(i * size / side) to ceil((i + 1) * size / side).

    In floating point, where the quotients are exact enough: integers and comparisons export to many nodes, of
    types that TensorRT does not take.
    """
    cell = torch.arange(size, device=like.device, dtype=like.dtype)
    region = torch.arange(side, device=like.device, dtype=like.dtype)[:, None]
    first, last = torch.floor(region * size / side), torch.ceil((region + 1) * size / side)
    inside = (torch.minimum(cell + 1, last) - torch.maximum(cell, first)).clamp(min=0)
    return inside / (last - first)
