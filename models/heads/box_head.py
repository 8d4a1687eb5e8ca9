"""Box heads of Mask R-CNN and Cascade Mask R-CNN: class logits and box deltas of pooled regions.

He et al., arXiv 1703.06870; form and state-dict keys of mmdet's ConvFCBBoxHead. Two FCs are
`Shared2FCBBoxHead`; four convolutions with batch norm and one FC are STViT-R's and Swin's cascade.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from saccade.models.heads.conv import ConvUnit


class BoxHead(nn.Module):
    """Regions (N, channels, size, size) -> logits (N, num_classes + 1), background last; deltas (N, 4 K).

    Deltas come in groups of four, one group per class, or a single one (K = 1) where `class_agnostic`.
    """

    def __init__(
        self,
        channels: int,
        size: int,
        num_classes: int,
        *,
        convs: int,
        norm: bool,
        fcs: int,
        width: int,
        class_agnostic: bool,
    ) -> None:
        super().__init__()
        self.num_classes, self.class_agnostic = num_classes, class_agnostic
        self.shared_convs = nn.ModuleList(ConvUnit(channels, channels, norm=norm) for _ in range(convs))
        inputs = [channels * size**2] + [width] * fcs
        self.shared_fcs = nn.ModuleList(nn.Linear(inputs[i], width) for i in range(fcs))
        self.fc_cls = nn.Linear(inputs[-1], num_classes + 1)
        self.fc_reg = nn.Linear(inputs[-1], 4 if class_agnostic else 4 * num_classes)
        for layer, std in ((self.fc_cls, 0.01), (self.fc_reg, 0.001)):
            nn.init.normal_(layer.weight, std=std)
            nn.init.zeros_(layer.bias)

    def forward(self, regions: Tensor) -> tuple[Tensor, Tensor]:
        x = regions
        for conv in self.shared_convs:
            x = conv(x)
        x = x.flatten(1)
        for fc in self.shared_fcs:
            x = F.relu(fc(x))
        return self.fc_cls(x), self.fc_reg(x)
