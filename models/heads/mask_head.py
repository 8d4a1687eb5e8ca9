"""Mask R-CNN's mask head. He et al., arXiv 1703.06870; form and state-dict keys of mmdet's FCNMaskHead."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from saccade.models.heads.conv import ConvUnit


class MaskHead(nn.Module):
    """Regions (N, channels, size, size) -> logits (N, num_classes, 2 size, 2 size)."""

    def __init__(self, channels: int, num_classes: int, *, convs: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.convs = nn.ModuleList(ConvUnit(channels, channels) for _ in range(convs))
        self.upsample = nn.ConvTranspose2d(channels, channels, 2, 2)
        self.conv_logits = nn.Conv2d(channels, num_classes, 1)

    def forward(self, regions: Tensor) -> Tensor:
        x = regions
        for conv in self.convs:
            x = conv(x)
        return self.conv_logits(F.relu(self.upsample(x)))
