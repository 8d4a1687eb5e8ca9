"""Mask R-CNN and Cascade Mask R-CNN over our backbones, for COCO's 80 classes.

Counts are of parameters; multiply-accumulates depend on the picture. A remark says what was published.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from saccade.models.card import Card, Preprocessing
from saccade.models.entry import Entry
from saccade.models.labels import coco_80

_BUILDER = "saccade.models.detection:detector"

# mmdet's picture: RGB in units of 0 to 255, fitted into 1333 x 800, padded to whole strides.
MMDET = Preprocessing(
    input_size_hw=(800, 1344),
    resize="fit",
    resize_hw=(800, 1333),
    resampler="opencv-bilinear",
    mean_rgb=(123.675, 116.28, 103.53),
    std_rgb=(58.395, 57.12, 57.375),
    value_range=1.0,
    pad_multiple=32,
)

# A plain vision transformer's position table fixes the size: ViTDet's square of 1024 pixels.
_SQUARE = 1024
VITDET = dataclasses.replace(
    MMDET, input_size_hw=(_SQUARE, _SQUARE), resize_hw=(_SQUARE, _SQUARE), pad_multiple=_SQUARE
)

_STVIT = (
    "arXiv:2303.08685",
    "https://huggingface.co/csncsn/STViT-R",
    "see https://github.com/changsn/STViT-R",
)
_SWIN = (
    "arXiv:2103.14030",
    "https://github.com/SwinTransformer/Swin-Transformer-Object-Detection",
    "Apache-2.0",
)
_MMDET = (
    "arXiv:1703.06870",
    "https://github.com/open-mmlab/mmdetection/tree/main/configs/swin",
    "Apache-2.0",
)
_NONE = ("arXiv:1703.06870", "", "")
_UNPUBLISHED = (
    "No detector of this kind was published over this backbone: train it from the backbone's weights."
)


def _detector(
    architecture: str,
    parameters: int,
    source: tuple[str, str, str] = _NONE,
    remark: str = _UNPUBLISHED,
    *,
    cascade: bool = False,
    preprocessing: Preprocessing = MMDET,
    backbone: Mapping[str, Any] | None = None,
) -> Entry:
    """source: the paper, where weights are, and their licence."""
    paper, weights, licence = source
    card = Card(
        name=f"{'cascade_' if cascade else ''}mask_rcnn_{architecture}",
        family="detection",
        task="instance_segmentation",
        preprocessing=preprocessing,
        labels=coco_80(),
        parameters=parameters,
        paper=paper,
        weights=weights,
        licence=licence,
        remark=remark,
    )
    return Entry(
        card, _BUILDER, {"architecture": architecture, "cascade": cascade, "backbone": backbone or {}}
    )


def _published(box_ap: float, mask_ap: float) -> str:
    return f"Published for COCO val2017: {box_ap} box AP, {mask_ap} mask AP."


ENTRIES = (
    _detector("stvit_r_swin_small", 106_966_968, _STVIT, _published(51.8, 44.7), cascade=True),
    _detector("stvit_r_swin_base", 145_021_114, _STVIT, _published(52.2, 45.2), cascade=True),
    _detector("swin_tiny", 85_629_804, _SWIN, "", cascade=True),
    _detector("swin_small", 106_947_708, _SWIN, _published(51.8, 44.7), cascade=True),
    _detector("swin_base", 144_977_002, _SWIN, _published(51.9, 45.0), cascade=True),
    _detector("swin_tiny", 47_794_602, _MMDET, ""),
    _detector("swin_small", 69_112_506, _MMDET, ""),
    _detector("stvit_r_swin_tiny", 47_826_462),
    _detector("stvit_r_swin_small", 69_131_766),
    _detector("stvit_r_swin_base", 107_185_912),
    _detector("tiny_vit_5m_224", 25_148_420),
    _detector("tiny_vit_11m_224", 30_681_716),
    _detector("tiny_vit_21m_224", 40_845_168),
    _detector("fastvit_mci2", 55_147_744),
    _detector("clip_vit_b_16", 111_897_008, preprocessing=VITDET, backbone={"img_size": _SQUARE}),
    _detector("deepmad_r18", 31_615_408),
    _detector("deepmad_r50", 44_854_784),
    _detector("deepmad_29m_224", 47_348_492),
)
