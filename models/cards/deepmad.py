"""DeepMAD's seven published networks; their structures are data beside the builder.

Multiply-accumulates count convolutions, SE's included, and the classifier; upstream's own counter adds
batch norms and activations and leaves out SE.
"""

from __future__ import annotations

from saccade.models.card import Card, Preprocessing
from saccade.models.entry import Entry


def _deepmad(size: str, parameters: int, multiply_accumulates: int, top1: float, side: int = 224) -> Entry:
    name = f"deepmad_{size}"
    resize = round(side / 0.875)
    card = Card(
        name=name,
        family="deepmad",
        preprocessing=Preprocessing(input_size_hw=(side, side), resize_hw=(resize, resize)),
        parameters=parameters,
        multiply_accumulates=multiply_accumulates,
        top1=top1,
        paper="arXiv:2303.02165",
        weights="https://github.com/alibaba/lightweight-neural-architecture-search",
        licence="Apache-2.0",
        remark=(
            "Upstream does not state its preprocessing: the usual ImageNet one (bicubic, crop ratio 0.875) "
            "is assumed. Check it against your weights."
        ),
    )
    return Entry(card, "saccade.models.deepmad:deepmad", {"structure": name})


ENTRIES = (
    _deepmad("r18", 11_826_088, 1_811_574_016, 77.7),
    _deepmad("r34", 21_690_160, 3_634_913_856, 79.7),
    _deepmad("r50", 25_441_144, 4_042_761_408, 80.6),
    _deepmad("29m_224", 28_669_956, 4_323_768_752, 82.5),
    _deepmad("29m_288", 28_703_630, 4_322_279_168, 82.8, side=288),
    _deepmad("50m", 49_408_964, 8_450_423_360, 83.9),
    _deepmad("89m", 88_325_780, 15_026_451_408, 84.0),
)
