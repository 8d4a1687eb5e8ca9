"""Digits on photographs with what can be said of them: "a handwritten seven on a flower".

A picture shows one digit in one place (a flower, a temple); a caption states the digit, the place, or both.
"""

from __future__ import annotations

import dataclasses
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
from PIL import Image

from digits import scenes

Part = Literal["train", "validation", "held-out"]
PARTS: tuple[Part, ...] = get_args(Part)

PLACES = ("temple", "flower")  # the order of scikit-learn's photographs
TEMPLATES = (
    "a handwritten {} on a {}",
    "a picture of a {} painted on a {}",
    "the number {} in front of a {}",
)
DIGIT_TEMPLATES = ("a handwritten {}", "a picture of the number {}", "the digit {}")
PLACE_TEMPLATES = ("a picture of a {}", "something painted on a {}")
VALIDATION_GLYPHS = 200  # of the 1,400 that are not held out
VALIDATION_SEED = 77
HELD_OUT_SEED = 2024
BOTH_SHARE, DIGIT_SHARE = 0.6, 0.3  # of captions that state both, the digit only; the others the place only


@dataclasses.dataclass(frozen=True)
class Captioned:
    """Columns: `images` (n, size, size, 3) uint8 RGB; `digits` (n,) and `places` (n,) int64."""

    images: scenes.Pixels
    digits: npt.NDArray[np.int64]
    places: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.digits)


@dataclasses.dataclass(frozen=True)
class Claim:
    """What a caption says. digit and place are -1 where it says nothing of them."""

    text: str
    digit: int
    place: int

    def holds(self, pictures: Captioned) -> npt.NDArray[np.bool_]:
        """(n,): of which pictures it is true."""
        digit = (pictures.digits == self.digit) | (self.digit < 0)
        return digit & ((pictures.places == self.place) | (self.place < 0))


def render(part: Part, count: int, seed: int, size_px: int, ease: float = 0.0) -> Captioned:
    """Paint `count` pictures of `part`; every digit is used once before one is used again.

    ease: 0 is the task; towards 1 the digits become large, central and white, the photographs black.
    """
    made_of = source(part)
    images = np.empty((count, size_px, size_px, 3), np.uint8)
    places = np.random.default_rng((seed, 1)).integers(len(PLACES), size=count)
    order = np.random.default_rng(seed).permutation(len(made_of.labels))
    chosen = np.resize(order, count)
    for index, glyph in enumerate(chosen):
        photograph = made_of.photographs[places[index]]
        rng = np.random.default_rng((seed, index))
        picture = scenes.paint(made_of.glyphs[glyph], (photograph,), rng, ease)
        resized = Image.fromarray(picture).resize((size_px, size_px), Image.Resampling.BILINEAR)
        images[index] = np.asarray(resized)
    return Captioned(images, made_of.labels[chosen], places)


def validation(count: int, size_px: int) -> Captioned:
    """Pictures to choose settings by: glyphs of their own, the photograph regions of training."""
    return render("validation", count, VALIDATION_SEED, size_px)


def held_out(count: int, size_px: int) -> Captioned:
    """Pictures that nothing was chosen by: glyphs and photograph regions of their own."""
    return render("held-out", count, HELD_OUT_SEED, size_px)


def caption(digit: int, place: int, rng: np.random.Generator) -> Claim:
    """A random true caption of a picture."""
    kind = rng.random()
    name, where = scenes.LABELS[digit], PLACES[place]
    if kind < BOTH_SHARE:
        return Claim(rng.choice(TEMPLATES).format(name, where), digit, place)
    if kind < BOTH_SHARE + DIGIT_SHARE:
        return Claim(rng.choice(DIGIT_TEMPLATES).format(name), digit, -1)
    return Claim(rng.choice(PLACE_TEMPLATES).format(where), -1, place)


def all_captions(template: str = TEMPLATES[0]) -> list[Claim]:
    """One caption for each digit in each place."""
    return [
        Claim(template.format(name, where), digit, place)
        for place, where in enumerate(PLACES)
        for digit, name in enumerate(scenes.LABELS)
    ]


def source(part: Part) -> scenes.Source:
    """The digits and photograph regions of a part; those of validation are digits of their own."""
    if part == "held-out":
        return scenes.read("held-out")
    whole = scenes.read("train")
    rows = slice(-VALIDATION_GLYPHS, None) if part == "validation" else slice(-VALIDATION_GLYPHS)
    return dataclasses.replace(whole, glyphs=whole.glyphs[rows], labels=whole.labels[rows])
