"""NViT, whose structure comes with its checkpoint, and ReViT, whose structure follows from its width.

Counts are of models without token masks; a checkpoint may add 198 values per block.
"""

from __future__ import annotations

from saccade.models.card import Card
from saccade.models.entry import Entry

_PAPER = "arXiv:2110.04869"

_NVIT = Entry(
    Card(
        name="nvit",
        family="nvit",
        paper=_PAPER,
        weights="https://github.com/NVlabs/NViT",
        licence="CC-BY-NC-SA-4.0",
        remark=(
            "Sizes come from the checkpoint's `dim` or from dims=. Published: NViT-B 34M, 6.8G, 83.29; "
            "H 30M, 6.2G, 82.95; S 21M, 4.2G, 82.19; T 6.9M, 1.3G, 76.21."
        ),
    ),
    "saccade.models.nvit:nvit",
    {},
)

_UNNAMED = "The width was chosen here: the paper names no ReViT of this size."
_TINY = (
    "The width of upstream's command. The published ReViT-T (5.9M, 1.3G, 74.20) fits embed_dim=192, "
    "not this width, so no accuracy is claimed."
)


def _revit(size: str, width: int, parameters: int, macs: int, top1: float | None, remark: str) -> Entry:
    card = Card(
        name=f"revit_{size}",
        family="nvit",
        parameters=parameters,
        multiply_accumulates=macs,
        top1=top1,
        paper=_PAPER,
        remark=f"{remark} No weights were published. rule='paper' builds the paper's rule.".strip(),
    )
    return Entry(card, "saccade.models.nvit:revit", {"embed_dim": width, "rule": "code"})


ENTRIES = (
    _NVIT,
    _revit("base", 768, 96_881_232, 19_607_564_544, None, _UNNAMED),
    _revit("high", 576, 53_858_576, 10_946_138_112, None, _UNNAMED),
    _revit("small", 384, 23_123_280, 4_705_190_400, 81.22, ""),
    _revit("tiny", 176, 5_339_136, 1_135_290_112, None, _TINY),
)
