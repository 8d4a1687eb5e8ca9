"""DPT: four maps are reassembled to strides 4 to 32, fused from coarse to fine, and read out at stride 2.

Ranftl et al., "Vision Transformers for Dense Prediction", arXiv 2103.13413. The decoder is
segmentation_models_pytorch's without class tokens (the paper's "ignore" readout); the heads follow the
paper's own code.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from segmentation_models_pytorch.decoders.dpt.decoder import DPTDecoder
from torch import Tensor, nn

__all__ = ["DPTDepthHead", "DPTSegmentationHead"]


def _decoder(in_channels: Sequence[int], strides: Sequence[int], channels: int) -> DPTDecoder:
    """Hierarchical backbones keep their widths; a plain ViT's maps get an eighth of it up to all of it."""
    plain = len(set(strides)) == 1
    widths = [width // 2 ** (3 - i) for i, width in enumerate(in_channels)] if plain else in_channels
    return DPTDecoder(
        encoder_out_channels=list(in_channels),
        encoder_output_strides=list(strides),
        encoder_has_prefix_tokens=False,
        readout="ignore",
        intermediate_channels=list(widths),
        fusion_channels=channels,
    )


class DPTSegmentationHead(nn.Module):
    """Four maps -> logits (B, num_classes, 2 * H0, 2 * W0), H0 x W0 being the grid of stride 4."""

    def __init__(
        self, in_channels: Sequence[int], strides: Sequence[int], channels: int, num_classes: int
    ) -> None:
        super().__init__()
        self.decoder = _decoder(in_channels, strides, channels)
        self.transform = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.Dropout(0.1),
        )
        self.conv_seg = nn.Conv2d(channels, num_classes, 1)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        return self.conv_seg(self.transform(self.decoder(list(maps), [None] * len(maps))))


class DPTDepthHead(nn.Module):
    """Four maps -> depth (B, H, W), positive, at the size of the picture.

    max_depth: in metres, the depth is this times a sigmoid (metric depth, as Bhat et al. bound it,
    arXiv 2011.14141); None gives a softplus of no known unit.
    """

    def __init__(
        self, in_channels: Sequence[int], strides: Sequence[int], channels: int, max_depth: float | None
    ) -> None:
        super().__init__()
        self.max_depth = max_depth
        self.decoder = _decoder(in_channels, strides, channels)
        self.reduce = nn.Conv2d(channels, channels // 2, 3, padding=1)
        self.refine = nn.Conv2d(channels // 2, 32, 3, padding=1)
        self.conv_depth = nn.Conv2d(32, 1, 1)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        x = self.reduce(self.decoder(list(maps), [None] * len(maps)))
        x = F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=True)
        raw = self.conv_depth(F.relu(self.refine(x)))[:, 0]
        return F.softplus(raw) if self.max_depth is None else self.max_depth * torch.sigmoid(raw)
