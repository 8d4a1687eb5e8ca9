"""Region proposals. Ren et al., "Faster R-CNN", arXiv 1506.01497; form and keys of mmdet's RPNHead."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saccade.models.heads.boxes import clip, decode
from saccade.models.heads.nms import batched_nms, take

STDS = (1.0, 1.0, 1.0, 1.0)


class ProposalLimits(NamedTuple):
    """Best candidates taken from each level, IoU above which a level's boxes suppress, proposals kept."""

    candidates: int
    iou: float
    kept: int


class RPNHead(nn.Module):
    """Pyramid -> per level objectness logits (B, A, H, W) and box deltas (B, 4 A, H, W).

    A anchors per cell: every ratio (height / width) with every scale (side / stride), ratios outermost,
    centred on the cell's corner (x * stride, y * stride).
    """

    base_anchors: Tensor

    def __init__(
        self,
        channels: int,
        *,
        strides: Sequence[int],
        scales: Sequence[float],
        ratios: Sequence[float],
        limits: ProposalLimits,
    ) -> None:
        super().__init__()
        self.strides, self.limits = tuple(strides), limits
        self.register_buffer("base_anchors", _base_anchors(strides, scales, ratios), persistent=False)
        anchors = len(scales) * len(ratios)
        self.rpn_conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.rpn_cls = nn.Conv2d(channels, anchors, 1)
        self.rpn_reg = nn.Conv2d(channels, 4 * anchors, 1)
        for layer in (self.rpn_conv, self.rpn_cls, self.rpn_reg):
            nn.init.normal_(layer.weight, std=0.01)
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)

    def forward(self, pyramid: Sequence[Tensor]) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        hidden = [F.relu(self.rpn_conv(x)) for x in pyramid]
        return tuple(self.rpn_cls(x) for x in hidden), tuple(self.rpn_reg(x) for x in hidden)

    def anchors(self, sizes_hw: Sequence[tuple[int, int]]) -> tuple[Tensor, ...]:
        """Per level (H * W * A, 4) float32 boxes, in the order of `flatten_map`, not cut to the picture.

        sizes_hw: height and width of each level's map.
        """
        return tuple(self._level_anchors(i, height, width) for i, (height, width) in enumerate(sizes_hw))

    def _level_anchors(self, level: int, height: int, width: int) -> Tensor:
        base, stride = self.base_anchors[level], self.strides[level]
        y = torch.arange(height, device=base.device, dtype=base.dtype) * stride
        x = torch.arange(width, device=base.device, dtype=base.dtype) * stride
        corner = torch.stack((x.expand(height, width), y[:, None].expand(height, width)), dim=-1)
        return (corner.repeat(1, 1, 2)[:, :, None] + base).reshape(-1, 4)

    def proposals(self, pyramid: Sequence[Tensor], size_hw: Tensor) -> tuple[Tensor, Tensor]:
        """The best boxes (B, kept, 4) after NMS within each level, by falling score, and their scores.

        size_hw: (B, 2) float32, the unpadded pictures. Rows beyond the last proposal are zero boxes of
        score -1. Boxes of zero area are kept, as mmdet 2.x does.
        """
        logits, deltas = self(pyramid)
        anchors = self.anchors([(x.shape[2], x.shape[3]) for x in logits])
        levels = [self._candidates(*level, size_hw) for level in zip(logits, deltas, anchors, strict=True)]
        boxes, scores = (torch.stack(each, dim=1) for each in zip(*levels, strict=True))
        # A sigmoid may be zero and still counts; what fills short levels has score -1.
        kept = batched_nms(boxes, scores, iou=self.limits.iou, score=-0.5, kept=self.limits.kept)
        return take(boxes.flatten(1, 2), kept, 0.0), take(scores.flatten(1, 2)[..., None], kept, -1.0)[..., 0]

    def _candidates(
        self, logits: Tensor, deltas: Tensor, anchors: Tensor, size_hw: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The level's best `candidates` boxes (B, n, 4) and scores (B, n); short levels end with score -1."""
        count = self.limits.candidates
        scores = flatten_map(logits, 1)[..., 0].sigmoid()
        # Padding makes the number of candidates a constant whatever the size of the map.
        filled = torch.cat((scores, scores.new_full((1, count), -1.0).expand(scores.shape[0], count)), dim=1)
        best, index = filled.topk(count)
        index = index.clamp(max=anchors.shape[0] - 1)[..., None].expand(-1, -1, 4)
        chosen = flatten_map(deltas, 4).gather(1, index)
        boxes = decode(anchors.expand(logits.shape[0], -1, 4).gather(1, index), chosen, STDS)
        return clip(boxes, size_hw), best


def flatten_map(x: Tensor, values: int) -> Tensor:
    """(B, A * values, H, W) -> (B, H * W * A, values), the order of anchors."""
    return x.permute(0, 2, 3, 1).reshape(x.shape[0], -1, values)


def _base_anchors(strides: Sequence[int], scales: Sequence[float], ratios: Sequence[float]) -> Tensor:
    """(levels, A, 4) float32 around the origin."""
    root = torch.tensor(tuple(ratios)).sqrt()
    scale = torch.tensor(tuple(scales), dtype=torch.float32)
    height, width = (root[:, None] * scale).flatten(), (scale / root[:, None]).flatten()
    half = torch.stack((width, height), dim=-1) / 2
    base = torch.cat((-half, half), dim=-1)
    return base * torch.tensor(tuple(strides), dtype=torch.float32)[:, None, None]
