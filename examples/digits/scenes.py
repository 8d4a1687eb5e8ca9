"""Handwritten digits painted onto photographs: real data that comes with scikit-learn, no download.

The digits are scikit-learn's (1,797 scans of 8 x 8 pixels), the backgrounds are crops of its two photographs.
What is held out is held out twice: `HELD_OUT_GLYPHS` digits and the right-hand part of each photograph never
appear in training. Picture `i` depends on the seed and `i` alone: a short set is the beginning of a long one.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image
from sklearn.datasets import load_digits, load_sample_images

Part = Literal["train", "held-out"]
Pixels = npt.NDArray[np.uint8]

LABELS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SIZE_PX = 224
HELD_OUT_GLYPHS = 397
HELD_OUT_PHOTO_SHARE = 0.35
HELD_OUT_SEED = 2023

_SPLIT_SEED = 8
_GLYPH_CELLS = 8
_MARGIN_CELLS = 2  # empty cells around a glyph, so that interpolation fades to nothing
_SMALLEST_PX, _LARGEST_PX = 112, 176  # side of the 8 x 8 cells in the picture
DIMMED = (0.25, 0.5)  # what is left of a photograph's brightness
_LEAST_LUMINANCE = 170.0  # of the ink, 0..255: a white sky, dimmed, has at most 128
_INK_CANDIDATES = 16


@dataclasses.dataclass(frozen=True)
class Pictures:
    """Columns: `images` (n, 224, 224, 3) uint8 RGB, or as `at` made them; `labels` (n,) int64."""

    images: Pixels
    labels: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels)

    def at(self, size_px: int) -> Pictures:
        """The pictures at another size, resampled as the bundles do it (Pillow's bicubic)."""
        if size_px == self.images.shape[1]:
            return self
        resized = [
            Image.fromarray(image).resize((size_px, size_px), Image.Resampling.BICUBIC)
            for image in self.images
        ]
        return Pictures(np.stack([np.asarray(image) for image in resized]), self.labels)


@dataclasses.dataclass(frozen=True)
class Source:
    """What one part of the data is made of: `glyphs` (n, 12, 12) uint8 with their margin, and photographs."""

    glyphs: Pixels
    labels: npt.NDArray[np.int64]
    photographs: tuple[Image.Image, ...]


@dataclasses.dataclass(frozen=True)
class Pose:
    """How a digit is painted. side_px: of its 8 x 8 cells; angle: radians; slant near 0, aspect near 1."""

    side_px: float
    angle: float
    slant: float
    aspect: float


def held_out(count: int = 2000) -> Pictures:
    """The first `count` pictures of the held-out set: digits and photograph regions unseen in training."""
    return render("held-out", count, HELD_OUT_SEED)


def render(part: Part, count: int, seed: int, ease: float = 0.0) -> Pictures:
    """Paint `count` pictures of `part`; every digit is used once before one is used again.

    ease: 0 is the task; towards 1 the digits become large, central and white, the photographs black.
    """
    source = read(part)
    images = np.empty((count, SIZE_PX, SIZE_PX, 3), np.uint8)
    order = np.random.default_rng(seed).permutation(len(source.labels))
    chosen = np.resize(order, count)
    for index, glyph in enumerate(chosen):
        rng = np.random.default_rng((seed, index))
        images[index] = paint(source.glyphs[glyph], source.photographs, rng, ease)
    return Pictures(images, source.labels[chosen])


@functools.cache
def read(part: Part) -> Source:
    """The digits and the photograph regions that belong to `part`."""
    digits = load_digits()
    order = np.random.default_rng(_SPLIT_SEED).permutation(len(digits.target))
    chosen = order[:HELD_OUT_GLYPHS] if part == "held-out" else order[HELD_OUT_GLYPHS:]
    cells = np.rint(digits.images[chosen] * (255 / 16)).astype(np.uint8)
    margins = ((0, 0), (_MARGIN_CELLS, _MARGIN_CELLS), (_MARGIN_CELLS, _MARGIN_CELLS))
    photographs = tuple(_region(Image.fromarray(photo), part) for photo in load_sample_images().images)
    return Source(np.pad(cells, margins), digits.target[chosen].astype(np.int64), photographs)


def paint(
    glyph: Pixels, photographs: tuple[Image.Image, ...], rng: np.random.Generator, ease: float = 0.0
) -> Pixels:
    """One picture (224, 224, 3): a digit painted in a bright colour on a crop of a dimmed photograph."""
    background = _background(photographs[rng.integers(len(photographs))], rng)
    shape = _shape(glyph, rng, ease)
    colour = Image.new("RGB", background.size, ink(rng))
    if ease:
        background, colour = towards(background, "black", ease), towards(colour, "white", ease)
    opacity = rng.uniform(0.85, 1.0)
    return np.asarray(
        Image.composite(colour, background, shape.point([round(v * opacity) for v in range(256)]))
    )


def _region(photo: Image.Image, part: Part) -> Image.Image:
    """The left of a photograph for training, the right for the held-out set."""
    border_px = round(photo.width * (1 - HELD_OUT_PHOTO_SHARE))
    left, right = (border_px, photo.width) if part == "held-out" else (0, border_px)
    return photo.crop((left, 0, right, photo.height))


def _background(photo: Image.Image, rng: np.random.Generator) -> Image.Image:
    """A random square of the photograph at 224 x 224, dimmed, mirrored half of the time."""
    side = int(rng.integers(SIZE_PX // 2, SIZE_PX + 1))
    left = int(rng.integers(photo.width - side + 1))
    top = int(rng.integers(photo.height - side + 1))
    box = (left, top, left + side, top + side)
    crop = photo.resize((SIZE_PX, SIZE_PX), Image.Resampling.BILINEAR, box=box)
    crop = towards(crop, "black", 1 - rng.uniform(*DIMMED))
    return crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else crop


def towards(image: Image.Image, colour: str, share: float) -> Image.Image:
    """`image` mixed with a plain `colour`: 0 leaves it, 1 leaves only the colour."""
    return Image.blend(image, Image.new("RGB", image.size, colour), share)


def _shape(glyph: Pixels, rng: np.random.Generator, ease: float) -> Image.Image:
    """Where the ink goes, 0..255: a digit turned, slanted, somewhere in the picture."""
    side_px = rng.uniform(_SMALLEST_PX + (_LARGEST_PX - _SMALLEST_PX) * ease / 2, _LARGEST_PX)
    angle, slant = rng.uniform(-0.2, 0.2), rng.uniform(-0.12, 0.12)
    aspect = rng.uniform(0.9, 1.1)
    room_px = (1 - ease) * (SIZE_PX - side_px * 1.15) / 2
    centre = SIZE_PX / 2 + rng.uniform(-room_px, room_px, 2)
    return stamp(glyph, (SIZE_PX, SIZE_PX), centre, Pose(side_px, angle, slant, aspect))


def stamp(
    glyph: Pixels, size_hw: tuple[int, int], centre_xy: npt.NDArray[np.float64], pose: Pose
) -> Image.Image:
    """Where the ink goes, 0..255, on an area of `size_hw`: the glyph enlarged smoothly around `centre_xy`."""
    turn = np.array(
        [[math.cos(pose.angle), math.sin(pose.angle)], [-math.sin(pose.angle), math.cos(pose.angle)]]
    )
    stretch = np.array([[pose.aspect, pose.slant], [0.0, 1 / pose.aspect]])
    to_cells = stretch @ turn * (_GLYPH_CELLS / pose.side_px)
    shift = glyph.shape[0] / 2 - to_cells @ centre_xy
    rows = np.column_stack([to_cells, shift]).ravel().tolist()
    enlarged = Image.fromarray(glyph).transform(
        size_hw[::-1], Image.Transform.AFFINE, rows, Image.Resampling.BICUBIC
    )
    return enlarged.point(_SHARPEN)


def ink(rng: np.random.Generator) -> tuple[int, int, int]:
    """The first random colour that is bright enough, else the brightest."""
    colours = rng.integers(0, 256, (_INK_CANDIDATES, 3))
    luminance = colours @ (0.299, 0.587, 0.114)
    red, green, blue = colours[np.argmax(np.minimum(luminance, _LEAST_LUMINANCE))].tolist()
    return red, green, blue


def _smooth_step(value: int) -> int:
    """Bicubic enlargement blurs a stroke over a cell (20 px); this narrows its edge to a third of that."""
    position = min(max((value / 255 - 0.3) / 0.4, 0.0), 1.0)
    return round(255 * position * position * (3 - 2 * position))


_SHARPEN = [_smooth_step(value) for value in range(256)]
