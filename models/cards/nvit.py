"""NViT, whose structure comes with its checkpoint, and ReViT, whose structure follows from its width."""

from __future__ import annotations

from typing import Any

from saccade.models.card import Card
from saccade.models.entry import Entry

_WEIGHTS = "https://github.com/NVlabs/NViT"
_LICENCE = "CC-BY-NC-SA-4.0"
_PAPER = "arXiv:2110.04869"

_NVIT = Entry(
    Card(
        name="nvit",
        family="nvit",
        paper=_PAPER,
        weights=_WEIGHTS,
        licence=_LICENCE,
        remark=(
            "Sizes come from the checkpoint's `dim` or from dims=. Published: NViT-B 34M, 6.8G, 83.29; "
            "H 30M, 6.2G, 82.95; S 21M, 4.2G, 82.19; T 6.9M, 1.3G, 76.21."
        ),
    ),
    "saccade.models.nvit:nvit",
    {},
)


def _revit(
    size: str,
    config: dict[str, Any],
    parameters: int,
    multiply_accumulates: int,
    top1: float | None = None,
    remark: str = "",
) -> Entry:
    card = Card(
        name=f"revit_{size}",
        family="nvit",
        parameters=parameters,
        multiply_accumulates=multiply_accumulates,
        top1=top1,
        paper=_PAPER,
        weights=_WEIGHTS,
        licence=_LICENCE,
        remark=remark,
    )
    return Entry(card, "saccade.models.nvit:revit", config)


ENTRIES = (_NVIT,)
