"""Arithmetic on boxes: float32 tensors (..., 4), x1 y1 x2 y2 in pixels of the network's picture.

Ren et al., "Faster R-CNN", arXiv 1506.01497, section 3.1.2; conventions of mmdet (no "+1" anywhere).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

MAX_LOG_RATIO = abs(math.log(16 / 1000))  # a box changes its sides at most 62.5 times


def decode(boxes: Tensor, deltas: Tensor, stds: Sequence[float]) -> Tensor:
    """Boxes moved by `deltas` (..., 4): shift of the centre in sides, logarithm of the change of sides.

    The deltas are in units of `stds`; boxes and deltas broadcast.
    """
    shift, log_ratio = (deltas * _row(stds, deltas)).split(2, dim=-1)
    size = boxes[..., 2:] - boxes[..., :2]
    centre = (boxes[..., :2] + boxes[..., 2:]) * 0.5 + size * shift
    half = size * log_ratio.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp() * 0.5
    return torch.cat((centre - half, centre + half), dim=-1)


def encode(boxes: Tensor, targets: Tensor, stds: Sequence[float]) -> Tensor:
    """The deltas that move `boxes` onto `targets`: inverse of `decode`. Both need sides above 0."""
    size, target_size = boxes[..., 2:] - boxes[..., :2], targets[..., 2:] - targets[..., :2]
    centre, target_centre = (b[..., :2] + b[..., 2:] for b in (boxes, targets))
    shift = (target_centre - centre) * 0.5 / size
    return torch.cat((shift, (target_size / size).log()), dim=-1) / _row(stds, boxes)


def clip(boxes: Tensor, size_hw: Tensor) -> Tensor:
    """Boxes (B, ..., 4) cut to their pictures; size_hw (B, 2) float32: height and width in pixels."""
    limit = size_hw[:, [1, 0, 1, 0]]
    for _ in range(boxes.dim() - 2):
        limit = limit[:, None]
    return torch.minimum(boxes.clamp(min=0), limit)


def _row(stds: Sequence[float], like: Tensor) -> Tensor:
    return torch.tensor(tuple(stds), dtype=like.dtype, device=like.device)
