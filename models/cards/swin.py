"""Swin, STViT-R on it, and STViT on DeiT. Counts are of the models as built here (STViT-R projects keys and
values once per token, which the released code does not); accuracies are the papers'."""

from __future__ import annotations

from typing import Any

from saccade.models.card import Card
from saccade.models.entry import Entry

_SIZES: dict[str, dict[str, Any]] = {
    "tiny": {"embed_dim": 96, "depths": (2, 2, 6, 2), "num_heads": (3, 6, 12, 24)},
    "small": {"embed_dim": 96, "depths": (2, 2, 18, 2), "num_heads": (3, 6, 12, 24)},
    "base": {"embed_dim": 128, "depths": (2, 2, 18, 2), "num_heads": (4, 8, 16, 32)},
}


def _swin(size: str, parameters: int, multiply_accumulates: int, top1: float) -> Entry:
    card = Card(
        name=f"swin_{size}",
        family="swin",
        parameters=parameters,
        multiply_accumulates=multiply_accumulates,
        top1=top1,
        paper="arXiv:2103.14030",
        weights="https://github.com/microsoft/Swin-Transformer",
        licence="MIT",
    )
    hub = f"timm:swin_{size}_patch4_window7_224.ms_in1k"
    return Entry(card, "saccade.models.swin:swin", {**_SIZES[size], "img_size": 224, "window_size": 7}, hub)


def _stvit_r(
    size: str, parameters: int, multiply_accumulates: int, top1: float | None, file: str, remark: str
) -> Entry:
    card = Card(
        name=f"stvit_r_swin_{size}",
        family="stvit",
        parameters=parameters,
        multiply_accumulates=multiply_accumulates,
        top1=top1,
        paper="arXiv:2303.08685",
        weights="https://huggingface.co/csncsn/STViT-R" if file else "",
        licence="see https://github.com/changsn/STViT-R",
        remark=remark,
    )
    config = {**_SIZES[size], "img_size": 224, "window_size": 7}
    hub = f"hf:csncsn/STViT-R/{file}" if file else ""
    return Entry(card, "saccade.models.stvit:stvit_r_swin", config, hub)


def _stvit_deit(
    size: str, width: int, heads: int, parameters: int, multiply_accumulates: int, published: float
) -> Entry:
    card = Card(
        name=f"stvit_deit_{size}",
        family="stvit",
        parameters=parameters,
        multiply_accumulates=multiply_accumulates,
        paper="arXiv:2303.08685",
        remark=(
            "A reconstruction from the paper: upstream released neither code nor weights. "
            f"The paper reports {published} for its own."
        ),
    )
    config = {"embed_dim": width, "depth": 12, "num_heads": heads, "img_size": 224}
    return Entry(card, "saccade.models.stvit_deit:stvit_deit", config)


ENTRIES = (
    _stvit_r(
        "tiny", 28_320_214, 3_537_893_376, None, "", "The configuration exists upstream, weights do not."
    ),
    _stvit_r("small", 49_625_518, 5_619_130_368, 82.7, "STViT-R-Swin-S.pth", ""),
    _stvit_r("base", 87_812_336, 9_908_092_928, 83.2, "STViT-R-Swin-B.pth", ""),
    _stvit_deit("tiny", 192, 3, 5_722_601, 522_734_592, 72.2),
    _stvit_deit("small", 384, 6, 22_061_033, 1_907_791_872, 79.8),
    _stvit_deit("base", 768, 12, 86_588_393, 7_264_874_496, 81.8),
    _swin("tiny", 28_288_354, 4_490_566_656, 81.3),
    _swin("small", 49_606_258, 8_740_875_264, 83.0),
    _swin("base", 87_768_224, 15_430_946_816, 83.5),
)
