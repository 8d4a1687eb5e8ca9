"""The convolution unit of mmdet's and mmseg's heads, with their state-dict keys `conv.*` and `bn.*`."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class ConvUnit(nn.Module):
    """Convolution that keeps the size, then batch norm and ReLU where asked for; (B, C, H, W) in and out.

    With batch norm the convolution has no bias, as mmcv's ConvModule.
    """

    def __init__(
        self, inputs: int, outputs: int, kernel: int = 3, *, norm: bool = False, relu: bool = True
    ) -> None:
        super().__init__()
        self.relu = relu
        self.conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=not norm)
        if norm:
            self.bn = nn.BatchNorm2d(outputs)
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        if self.norm:
            x = self.bn(x)
        return F.relu(x) if self.relu else x
