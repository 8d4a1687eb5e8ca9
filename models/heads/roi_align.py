"""Features of regions: RoIAlign over the pyramid level that fits each region's size.

He et al., arXiv 1703.06870, section 3, with mmdet's `aligned` form (half a pixel subtracted after scaling)
and adaptive sampling: ceil(height / size) x ceil(width / size) samples per bin. The level rule is FPN's
(arXiv 1612.03144, equation 1) with mmdet's constants.

Two forms of the same numbers. "native": torchvision's operator, ONNX RoiAlign when exported. "separable":
two matrix products per level, for run times without such an operator.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torchvision.ops import roi_align as torchvision_roi_align

Form = Literal["native", "separable"]

FINEST_SIDE = 56  # regions below twice this side (in pixels) are taken from the finest map
ROI_ALIGN_OPSET = 16  # the first with half-pixel coordinates; ONNX Runtime 1.31 lacks the one of opset 22


def region_features(
    pyramid: Sequence[Tensor], strides: Sequence[int], rois: Tensor, size: int, form: Form = "native"
) -> Tensor:
    """Pool each region from its level. rois: (B, R, 4) pixels -> (B * R, C, size, size).

    Exact and static: a level sees the regions of other levels as zero boxes, which have no samples and
    hence cost nothing. What an engine makes of no samples (OpenVINO: 0 / 0) is never looked at; a region
    without area has zeros.
    """
    level = region_levels(rois, len(pyramid))
    align = _separable if form == "separable" else _native
    total = None
    for i, (features, stride) in enumerate(zip(pyramid, strides, strict=True)):
        own = level == i
        pooled = align(features, torch.where(own[..., None], rois, 0.0), 1 / stride, size)
        total = pooled if total is None else torch.where(own.reshape(-1, 1, 1, 1), pooled, total)
    assert total is not None
    some = (rois[..., 2:] > rois[..., :2]).all(-1)
    return torch.where(some.reshape(-1, 1, 1, 1), total, 0.0)


def region_levels(rois: Tensor, levels: int) -> Tensor:
    """Pyramid level of each region, int64: floor(log2(sqrt(area) / 56)), clamped; (..., 4) -> (...)."""
    side = (rois[..., 2:] - rois[..., :2]).prod(-1).sqrt() / FINEST_SIDE + 1e-6
    # Comparisons instead of a logarithm: the same integers, and nothing infinite at zero area.
    level = torch.zeros_like(side, dtype=torch.int64)
    for i in range(1, levels):
        level = level + (side >= 2.0**i)
    return level


def _native(features: Tensor, rois: Tensor, scale: float, size: int) -> Tensor:
    batch, count = rois.shape[:2]
    picture = torch.arange(batch, device=rois.device)[:, None].expand(batch, count).reshape(-1)
    flat = rois.reshape(-1, 4)
    if torch.compiler.is_exporting():
        return torch.onnx.ops.symbolic(
            "RoiAlign",
            (features, flat, picture),
            attrs={
                "coordinate_transformation_mode": "half_pixel",
                "mode": "avg",
                "output_height": size,
                "output_width": size,
                "sampling_ratio": 0,
                "spatial_scale": scale,
            },
            dtype=features.dtype,
            shape=(flat.shape[0], features.shape[1], size, size),
            version=ROI_ALIGN_OPSET,
        )
    indexed = torch.cat((picture[:, None].to(flat.dtype), flat), dim=1)
    pooled: Tensor = torchvision_roi_align(features, indexed, size, scale, sampling_ratio=-1, aligned=True)
    return pooled


def _separable(features: Tensor, rois: Tensor, scale: float, size: int) -> Tensor:
    """Ay F Ax^T per region: bilinear sampling and averaging act on rows and columns one after the other."""
    batch, count = rois.shape[:2]
    channels, height, width = features.shape[1:]
    x1, y1, x2, y2 = (rois * scale - 0.5).unbind(-1)
    rows = _bin_weights(y1, y2, size, height).reshape(batch, count * size, height)
    columns = _bin_weights(x1, x2, size, width).reshape(batch * count, 1, size, width)
    by_row = features.permute(0, 2, 3, 1).reshape(batch, height, width * channels)
    banded = (rows @ by_row).reshape(batch * count, size, width, channels)
    return (columns @ banded).permute(0, 3, 1, 2)


_NEAR = 5  # samples lie more than half a cell apart, so no more than this many touch one cell


def _bin_weights(start: Tensor, end: Tensor, bins: int, cells: int) -> Tensor:
    """(B, R) ends of regions on one axis, in cells -> (B, R, bins, cells): each bin's mean of its samples."""
    extent = (end - start)[..., None, None] / bins
    samples = extent.ceil()
    step = extent / samples.clamp(min=1)
    cell = torch.arange(cells, device=start.device, dtype=start.dtype)
    index = torch.arange(bins, device=start.device, dtype=start.dtype)[:, None]
    first = start[..., None, None] + index * extent + 0.5 * step
    nearest = ((cell - 1 - first) / step.clamp(min=1e-6)).ceil().clamp(min=0)
    sample = nearest[..., None] + torch.arange(_NEAR, device=start.device, dtype=start.dtype)
    position = first[..., None] + sample * step[..., None]
    hat = (1 - (position.clamp(0, cells - 1) - cell[:, None]).abs()).clamp(min=0)
    counted = (sample < samples[..., None]) & (position >= -1) & (position <= cells)
    return torch.where(counted, hat, 0.0).sum(-1) / samples.clamp(min=1)
