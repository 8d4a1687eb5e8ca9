"""From proposals to detections: box heads in one or three stages, class-aware NMS, masks.

One stage is Mask R-CNN (He et al., arXiv 1703.06870), several are Cascade R-CNN (Cai and Vasconcelos,
arXiv 1712.00726) with mmdet's rules: the logits of all stages are averaged, so are their masks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from saccade.models.heads.box_head import BoxHead
from saccade.models.heads.boxes import clip, decode
from saccade.models.heads.mask_head import MaskHead
from saccade.models.heads.nms import batched_nms, take
from saccade.models.heads.roi_align import Form, region_features

Stds = tuple[float, float, float, float]


class DetectionLimits(NamedTuple):
    """Score that a detection must exceed, IoU above which it suppresses its class, detections kept."""

    score: float
    iou: float
    kept: int


class Pooling(NamedTuple):
    """Strides of the maps that regions come from, cells of a region for boxes and masks, RoIAlign's form."""

    strides: tuple[int, ...]
    box_size: int
    mask_size: int
    form: Form


class RoIHead(nn.Module):
    """Box heads, one per stage, and as many mask heads, or none.

    State-dict keys are mmdet's: `bbox_head.{k}.` and `mask_head.{k}.`, without the number if not `cascade`.
    """

    def __init__(
        self,
        box_heads: Sequence[BoxHead],
        mask_heads: Sequence[MaskHead],
        *,
        cascade: bool,
        stds: Sequence[Stds],
        pooling: Pooling,
        limits: DetectionLimits,
    ) -> None:
        super().__init__()
        self.stds, self.pooling, self.limits = tuple(stds), pooling, limits
        self.bbox_head = nn.ModuleList(box_heads) if cascade else box_heads[0]
        if mask_heads:
            self.mask_head = nn.ModuleList(mask_heads) if cascade else mask_heads[0]

    @property
    def box_heads(self) -> list[nn.Module]:
        """One per stage."""
        return list(self.bbox_head) if isinstance(self.bbox_head, nn.ModuleList) else [self.bbox_head]

    @property
    def mask_heads(self) -> list[nn.Module]:
        """One per stage; none in a detector of boxes only."""
        head = getattr(self, "mask_head", None)
        if head is None:
            return []
        return list(head) if isinstance(head, nn.ModuleList) else [head]

    def features(self, pyramid: Sequence[Tensor], rois: Tensor, size: int) -> Tensor:
        """Regions (B, R, 4) of the pyramid -> (B * R, C, size, size); zero boxes give zeros."""
        strides = self.pooling.strides
        return region_features(pyramid[: len(strides)], strides, rois, size, self.pooling.form)

    def forward(
        self, pyramid: Sequence[Tensor], rois: Tensor, scores: Tensor, size_hw: Tensor
    ) -> tuple[Tensor, ...]:
        """Detections of B pictures.

        rois (B, R, 4): proposals; scores (B, R): negative for rows that are none; size_hw (B, 2): unpadded
        pictures. Returns boxes (B, K, 4), scores (B, K) falling, labels (B, K) int64, count (B,) int64 and,
        with mask heads, masks (B, K, 2S, 2S) of the label's probability; zeros from row `count` on.
        """
        boxes, class_scores = self.classify(pyramid, rois, size_hw)
        class_scores = torch.where((scores >= 0)[..., None], class_scores, 0.0)
        found = self.select(boxes, class_scores)
        return (*found, self.masks(pyramid, *found)) if self.mask_heads else found

    def classify(self, pyramid: Sequence[Tensor], rois: Tensor, size_hw: Tensor) -> tuple[Tensor, Tensor]:
        """Refined boxes (B, R, C, 4), C = 1 if class-agnostic, and class probabilities (B, R, classes)."""
        batch, count = rois.shape[:2]
        heads = self.box_heads
        total: Tensor | None = None
        for k, head in enumerate(heads):
            flat_logits, flat_deltas = head(self.features(pyramid, rois, self.pooling.box_size))
            logits = flat_logits.reshape(batch, count, -1)
            deltas = flat_deltas.reshape(batch, count, -1, 4)
            total = logits if total is None else total + logits
            if k < len(heads) - 1:
                deltas = _of_best_class(logits, deltas)
            boxes = clip(decode(rois[:, :, None], deltas, self.stds[k]), size_hw)
            rois = boxes[:, :, 0]
        assert total is not None
        return boxes, (total / len(heads)).softmax(-1)[..., :-1]

    def select(self, boxes: Tensor, scores: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """NMS within every class, then the best over all: boxes, scores, labels, count as `forward`."""
        rois, classes = scores.shape[1:]
        by_class = scores.transpose(1, 2)
        boxes = boxes.transpose(1, 2).expand(-1, classes, -1, -1)
        kept = batched_nms(boxes, by_class, **self.limits._asdict())
        found = kept >= 0
        return (
            take(boxes.reshape(boxes.shape[0], -1, 4), kept, 0.0),
            take(by_class.reshape(boxes.shape[0], -1, 1), kept, 0.0)[..., 0],
            torch.where(found, kept // rois, 0),
            found.sum(1),
        )

    def masks(
        self, pyramid: Sequence[Tensor], boxes: Tensor, scores: Tensor, labels: Tensor, count: Tensor
    ) -> Tensor:
        """Probabilities (B, K, 2S, 2S) that pixels of a box belong to its object, the mean of all stages."""
        regions = self.features(pyramid, boxes, self.pooling.mask_size)
        total: Tensor | None = None
        for head in self.mask_heads:
            logits = head(regions)
            row = torch.arange(logits.shape[0], device=logits.device) * logits.shape[1] + labels.flatten()
            probability = logits.flatten(0, 1)[row].sigmoid()
            total = probability if total is None else total + probability
        assert total is not None
        masks = (total / len(self.mask_heads)).unflatten(0, (-1, boxes.shape[1]))
        rank = torch.arange(boxes.shape[1], device=boxes.device)
        return torch.where((rank < count[:, None])[..., None, None], masks, 0.0)


def _of_best_class(logits: Tensor, deltas: Tensor) -> Tensor:
    """The deltas (B, R, 1, 4) of each region's best class, background left out."""
    if deltas.shape[2] == 1:
        return deltas
    label = logits[..., :-1].argmax(-1)
    return deltas.gather(2, label[..., None, None].expand(-1, -1, 1, 4))
