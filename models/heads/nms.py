"""Greedy non-maximum suppression with a fixed number of results, group by group.

`batched_nms` computes what the operator `saccade::BatchedNMS` defines and is that single node when a graph
is exported.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.ops import nms

from saccade.models.operators import BATCHED_NMS, DOMAIN, PLUGIN_ATTRIBUTES, VERSION


def batched_nms(boxes: Tensor, scores: Tensor, *, iou: float, score: float, kept: int) -> Tensor:
    """Indices of what survives, by falling score. boxes (B, G, N, 4), scores (B, G, N) -> (B, kept) int64.

    Boxes suppress within their group where IoU > `iou`; those with scores not above `score` take no part.
    An index counts through the flattened (G, N) of its picture; -1 follows the last one.
    """
    if torch.compiler.is_exporting():
        return torch.onnx.ops.symbolic(
            f"{DOMAIN}::{BATCHED_NMS.name}",
            (boxes, scores),
            attrs={"iou_threshold": iou, "score_threshold": score, "kept": kept, **PLUGIN_ATTRIBUTES},
            dtype=torch.int64,
            shape=(scores.shape[0], kept),
            version=VERSION,
        )
    rows = [_survivors(b, s, iou, score)[:kept] for b, s in zip(boxes, scores, strict=True)]
    result = scores.new_full((len(rows), kept), -1, dtype=torch.int64)
    for i, row in enumerate(rows):
        result[i, : len(row)] = row
    return result


def _survivors(boxes: Tensor, scores: Tensor, iou: float, score: float) -> Tensor:
    """All surviving indices of one picture, by falling score."""
    alive = scores > score
    found = []
    for group in alive.any(1).nonzero().flatten().tolist():
        member = alive[group].nonzero().flatten()
        winners = member[nms(boxes[group, member], scores[group, member], iou)]
        found.append(winners + group * boxes.shape[1])
    if not found:
        return scores.new_empty(0, dtype=torch.int64)
    survivors = torch.cat(found)
    return survivors[scores.flatten()[survivors].argsort(descending=True, stable=True)]


def take(values: Tensor, index: Tensor, fill: float) -> Tensor:
    """Rows of `values` (B, N, C) at `index` (B, K) -> (B, K, C); `fill` where the index is -1."""
    rows = values.gather(1, index.clamp(min=0)[..., None].expand(-1, -1, values.shape[2]))
    return torch.where((index >= 0)[..., None], rows, fill)
