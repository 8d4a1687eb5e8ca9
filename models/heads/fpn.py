"""Feature pyramid network. Lin et al., arXiv 1612.03144; form and state-dict keys of mmdet."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn

from saccade.models.heads.conv import ConvUnit


class FPN(nn.Module):
    """Four maps (B, in_channels[i], H_i, W_i), finest first -> five (B, channels, H_i, W_i).

    The fifth is every second row and column of the fourth.
    """

    def __init__(self, in_channels: Sequence[int], channels: int) -> None:
        super().__init__()
        self.lateral_convs = nn.ModuleList(
            ConvUnit(width, channels, kernel=1, relu=False) for width in in_channels
        )
        self.fpn_convs = nn.ModuleList(ConvUnit(channels, channels, relu=False) for _ in in_channels)
        for unit in (*self.lateral_convs, *self.fpn_convs):
            conv = cast(ConvUnit, unit).conv
            nn.init.xavier_uniform_(conv.weight)
            nn.init.zeros_(cast(Tensor, conv.bias))

    def forward(self, maps: Sequence[Tensor]) -> tuple[Tensor, ...]:
        sums = [lateral(x) for lateral, x in zip(self.lateral_convs, maps, strict=True)]
        for i in range(len(sums) - 1, 0, -1):
            sums[i - 1] = sums[i - 1] + F.interpolate(sums[i], size=sums[i - 1].shape[2:], mode="nearest")
        pyramid = [conv(x) for conv, x in zip(self.fpn_convs, sums, strict=True)]
        return (*pyramid, pyramid[-1][:, :, ::2, ::2])
