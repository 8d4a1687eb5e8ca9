"""Semantic segmentation and depth: a head of standard widths over each backbone that gives four maps.

Pictures are scaled as mmsegmentation does for ADE20K, kept in shape inside 512 x 2048, with the colours of
the backbone's own training. Counts are for 512 x 512 pixels, and 150 classes.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from saccade.models.card import Card, Preprocessing
from saccade.models.cards import clip, deepmad, swin, timm
from saccade.models.entry import Entry

_HEADS = ("fpn", "upernet", "dpt")
# For each backbone, under each head: parameters and multiply-accumulates.
_COUNTS = {
    "stvit_r_swin_tiny": (
        (29_565_380, 28_307_089_536),
        (59_049_924, 230_826_526_848),
        (41_695_631, 112_902_006_912),
    ),
    "stvit_r_swin_small": (
        (50_870_684, 40_978_427_520),
        (80_355_228, 243_497_864_832),
        (63_000_935, 125_573_344_896),
    ),
    "stvit_r_swin_base": (
        (88_924_830, 64_748_404_224),
        (120_105_118, 267_795_480_064),
        (102_647_881, 151_826_349_568),
    ),
    "swin_tiny": (
        (29_533_520, 32_430_737_280),
        (59_018_064, 234_950_174_592),
        (41_663_771, 117_025_654_656),
    ),
    "swin_small": (
        (50_851_424, 54_727_199_616),
        (80_335_968, 257_246_636_928),
        (62_981_675, 139_322_116_992),
    ),
    "swin_base": (
        (88_880_718, 90_002_668_032),
        (120_061_006, 293_049_743_872),
        (102_603_769, 177_080_613_376),
    ),
    "tiny_vit_5m_224": (
        (6_887_338, 16_134_196_480),
        (33_422_762, 217_881_261_312),
        (16_809_077, 97_996_524_800),
    ),
    "tiny_vit_11m_224": (
        (12_420_634, 21_168_727_808),
        (39_799_834, 223_087_337_216),
        (22_939_589, 103_365_551_872),
    ),
    "tiny_vit_21m_224": (
        (22_584_086, 35_102_440_704),
        (50_839_830, 237_402_309_888),
        (34_062_881, 119_530_634_496),
    ),
    "deepmad_r18": (
        (13_354_326, 18_669_633_536),
        (42_437_462, 221_448_385_536),
        (27_866_113, 107_507_351_552),
    ),
    "deepmad_r50": (
        (26_593_702, 30_628_659_200),
        (59_301_798, 234_316_253_696),
        (43_768_865, 122_767_622_144),
    ),
    "deepmad_29m_224": (
        (29_087_410, 31_272_718_592),
        (65_061_042, 234_808_258_816),
        (45_292_975, 115_616_486_656),
    ),
    "fastvit_mci2": (
        (36_886_662, 40_349_689_856),
        (65_523_334, 242_605_307_904),
        (48_285_793, 123_753_424_896),
    ),
    "clip_vit_b_16": (
        (88_864_406, 119_396_124_672),
        (118_766_742, 325_438_777_344),
        (106_503_809, 202_657_253_376),
    ),
}
_BACKBONES = {each.card.name: each for family in (swin, deepmad, timm, clip) for each in family.ENTRIES}
_PAPERS = dict(zip(_HEADS, ("arXiv:1901.02446", "arXiv:1807.10221", "arXiv:2103.13413"), strict=True))
_SIDE = 512
_ANY_SIZE = ("swin", "stvit")  # families whose backbones pad by themselves
_REMARK = "Head widths are the usual ones of the head, not those of the backbone's paper."
_MMSEG = "https://github.com/open-mmlab/mmsegmentation/tree/main/configs/swin"


def _preprocessing(head: str, backbone: Card) -> Preprocessing:
    """Padded to what the head's doubling of maps needs; UperNet resizes to whatever size the next map has."""
    changes: dict[str, Any] = {"input_size_hw": (_SIDE, _SIDE), "resampler": "opencv-bilinear"}
    if backbone.name == "clip_vit_b_16":  # its position table has one size
        changes |= {"resize": "stretch", "resize_hw": (_SIDE, _SIDE)}
    else:
        alone = head == "upernet" and backbone.family in _ANY_SIZE
        changes |= {"resize": "fit", "resize_hw": (_SIDE, 4 * _SIDE), "pad_multiple": 1 if alone else 32}
    return dataclasses.replace(backbone.preprocessing, **changes)


def _entry(head: str, name: str) -> Entry:
    backbone = _BACKBONES[name].card
    published = head == "upernet" and backbone.family == "swin"
    parameters, multiply_accumulates = _COUNTS[name][_HEADS.index(head)]
    card = Card(
        name=f"{head}_{name}",
        family=head,
        task="depth" if head == "dpt" else "semantic_segmentation",
        preprocessing=_preprocessing(head, backbone),
        unit="relative" if head == "dpt" else "",
        parameters=parameters,
        multiply_accumulates=multiply_accumulates,
        paper=_PAPERS[head],
        weights=_MMSEG if published else "",
        licence="Apache-2.0" if published else "",
        remark=_REMARK,
    )
    config: dict[str, Any] = {"backbone": name}
    if name == "clip_vit_b_16":
        config["img_size"] = _SIDE
    if head == "dpt":
        return Entry(card, "saccade.models.dense:dpt", config)
    return Entry(card, "saccade.models.dense:segmenter", {**config, "head": head})


ENTRIES = tuple(_entry(head, name) for head in _HEADS for name in _COUNTS)
