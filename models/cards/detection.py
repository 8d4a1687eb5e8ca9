"""Mask R-CNN and Cascade Mask R-CNN over our backbones."""

from __future__ import annotations

from saccade.models.card import Card
from saccade.models.entry import Entry

_BUILDER = "saccade.models.detection:detector"
_SIZES = ("tiny", "small", "base")


def _detector(architecture: str, cascade: bool = False) -> Entry:
    name = f"{'cascade_' if cascade else ''}mask_rcnn_{architecture}"
    card = Card(name=name, family="detection", task="instance_segmentation")
    return Entry(card, _BUILDER, {"architecture": architecture, "cascade": cascade})


ENTRIES = (
    *(_detector(f"stvit_r_swin_{size}", cascade) for cascade in (True, False) for size in _SIZES),
    *(_detector(f"swin_{size}", cascade) for cascade in (True, False) for size in _SIZES),
)
