"""Scenes with several handwritten digits: boxes, masks and label maps to detect, outline and segment by.

The digits, the photographs, the ink and the enlargement are those of `digits.scenes`, and so is what is held
out: digits and photograph regions that no training ever saw. A second cut, inside the training part, makes a
validation part to choose recipes by, so that the held-out part is looked at only in the end. Scene `i`
depends on the part, the seed and `i` alone.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from digits import scenes, variation
from digits.scenes import Pixels, Pose, Source

Part = Literal["train", "validation", "held-out"]

VALIDATION_GLYPHS = 150
VALIDATION_PHOTO_SHARE = 0.3
VALIDATION_SEED, HELD_OUT_SEED = 2024, 2025

_MASKED_FROM = 128  # of 255: where the ink covers at least half of a pixel, the pixel is the digit's
_ROOM = 1.8  # side of the area a digit is painted on, in sides of its 8 x 8 cells
_LEAST_VISIBLE = 0.8  # share of a digit's pixels that later digits and the border leave, in a scene
_LEAST_LABELLED = 0.25  # the same for a digit to be labelled at all, in a clip
_TRIALS = 20  # places tried for a digit before the scene goes without it
_ENLARGED = (1.0, 2.0)  # of the photographs
_SPEED_PX = (1.0, 4.0)  # per frame
_TURN_RAD = 0.02  # at most, per frame


@dataclasses.dataclass(frozen=True)
class Layout:
    """What a scene looks like. objects: fewest and most digits; side_px: smallest and largest 8 x 8 cells.

    varied: whether digits and photographs are changed by `digits.variation`, for training.
    The default size suits backbones with windows of 7: no stage has to pad its map.
    """

    size_hw: tuple[int, int] = (224, 224)
    objects: tuple[int, int] = (3, 7)
    side_px: tuple[float, float] = (32.0, 96.0)
    varied: bool = False


AERIAL = Layout((1200, 1600), (60, 60), (32.0, 96.0))
CLIP = Layout((360, 480), (8, 8), (48.0, 96.0))


@dataclasses.dataclass(frozen=True)
class Scene:
    """A picture (H, W, 3) uint8 RGB and, as columns, its n digits in the order they were painted in.

    boxes_xyxy (n, 4) float32: corners of the visible pixels, the lower right one exclusive; labels (n,) int64
    in 0..9; masks (n, H, W) bool: visible pixels, disjoint; ids (n,) int64: the same digit of a clip has the
    same id in every frame.
    """

    image: Pixels
    boxes_xyxy: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]
    masks: npt.NDArray[np.bool_]
    ids: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def semantic(self) -> Pixels:
        """(H, W) uint8: 0 is background, label + 1 a digit."""
        covered = np.zeros(self.image.shape[:2], np.uint8)
        for label, mask in zip(self.labels, self.masks, strict=True):
            covered[mask] = label + 1
        return covered


@dataclasses.dataclass(frozen=True)
class Digit:
    """One digit to be painted. glyph: (12, 12) uint8; ink: RGB; opacity in 0..1."""

    glyph: Pixels
    label: int
    centre_xy: tuple[float, float]
    pose: Pose
    ink: tuple[int, int, int]
    opacity: float


def validation(count: int, layout: Layout | None = None) -> list[Scene]:
    """The first `count` scenes to choose recipes by. Their digits are in no training scene of this module."""
    return render("validation", count, VALIDATION_SEED, layout)


def held_out(count: int, layout: Layout | None = None) -> list[Scene]:
    """The first `count` held-out scenes: digits and photograph regions that no demo network has seen."""
    return render("held-out", count, HELD_OUT_SEED, layout)


def render(part: Part, count: int, seed: int, layout: Layout | None = None) -> list[Scene]:
    """Scenes 0 to `count` - 1 of `part` and `seed`."""
    return [scene(part, seed, index, layout) for index in range(count)]


def scene(part: Part, seed: int, index: int, layout: Layout | None = None) -> Scene:
    """Scene `index` of `part` and `seed`: digits on a crop of a photograph, no digit mostly hidden."""
    layout = layout or Layout()
    rng = np.random.default_rng((seed, index))
    source = read(part)
    canvas = _Canvas(_background(source, layout, rng))
    for _ in range(int(rng.integers(layout.objects[0], layout.objects[1] + 1))):
        digit = _digit(source, layout, rng)
        for _ in range(_TRIALS):
            if canvas.paint(digit, _LEAST_VISIBLE):
                break
            digit = dataclasses.replace(digit, centre_xy=_centre(layout, digit.pose.side_px, rng))
    return canvas.scene()


def aerial(part: Part = "held-out", seed: int = 0) -> Scene:
    """A picture of 1600 x 1200 with 60 digits, larger than any that a detector is trained on."""
    return scene(part, seed, 0, AERIAL)


def clip(frames: int = 60, part: Part = "held-out", seed: int = 0, layout: Layout = CLIP) -> Iterator[Scene]:
    """Digits that drift and turn over a photograph and bounce off the border, frame by frame.

    They pass over each other: a frame has the digits of which enough can be seen, told apart by their `ids`.
    """
    rng = np.random.default_rng(seed)
    source = read(part)
    background = _background(source, layout, rng)
    digits = [
        _digit(source, layout, rng)
        for _ in range(int(rng.integers(layout.objects[0], layout.objects[1] + 1)))
    ]
    headings = rng.uniform(0, 2 * np.pi, len(digits))
    steps = np.column_stack([np.cos(headings), np.sin(headings)]) * rng.uniform(*_SPEED_PX, (len(digits), 1))
    turns = rng.uniform(-_TURN_RAD, _TURN_RAD, len(digits))
    for frame in range(frames):
        canvas = _Canvas(background.copy())
        for digit, step, turn in zip(digits, steps, turns, strict=True):
            canvas.paint(_moved(digit, step * frame, float(turn) * frame, layout), 0.0)
        yield canvas.scene()


@functools.cache
def read(part: Part) -> Source:
    """The digits and photograph regions of `part`; validation has the last digits, and photograph strips."""
    if part == "held-out":
        return scenes.read("held-out")
    whole = scenes.read("train")
    chosen = slice(-VALIDATION_GLYPHS, None) if part == "validation" else slice(-VALIDATION_GLYPHS)
    regions = tuple(_region(photo, part) for photo in whole.photographs)
    return Source(whole.glyphs[chosen], whole.labels[chosen], regions)


def _region(photo: Image.Image, part: Part) -> Image.Image:
    border_px = round(photo.width * (1 - VALIDATION_PHOTO_SHARE))
    left, right = (border_px, photo.width) if part == "validation" else (0, border_px)
    return photo.crop((left, 0, right, photo.height))


def _background(source: Source, layout: Layout, rng: np.random.Generator) -> Image.Image:
    """A dimmed crop of a photograph, enlarged; where the photograph ends, it goes on as in a mirror."""
    photo = np.asarray(source.photographs[rng.integers(len(source.photographs))])
    enlarged = rng.uniform(*_ENLARGED)
    need = [int(np.ceil(side / enlarged)) for side in layout.size_hw]
    missing = [max(0, side - has) for side, has in zip(need, photo.shape, strict=False)]
    photo = np.pad(photo, ((0, missing[0]), (0, missing[1]), (0, 0)), mode="symmetric")
    top, left = (int(rng.integers(has - side + 1)) for side, has in zip(need, photo.shape, strict=False))
    crop = photo[top : top + need[0], left : left + need[1]]
    if rng.random() < 0.5:
        crop = crop[:, ::-1]
    if layout.varied:
        crop = variation.recoloured(crop, rng)
    whole = Image.fromarray(crop).resize(layout.size_hw[::-1], Image.Resampling.BILINEAR)
    return scenes.towards(whole, "black", 1 - rng.uniform(*scenes.DIMMED))


def _digit(source: Source, layout: Layout, rng: np.random.Generator) -> Digit:
    index = int(rng.integers(len(source.labels)))
    # Sizes are uniform on a logarithmic scale: as many small digits as large ones at every zoom.
    side_px = float(np.exp(rng.uniform(*np.log(layout.side_px))))
    glyph = source.glyphs[index]
    return Digit(
        variation.bent(glyph, rng) if layout.varied else glyph,
        int(source.labels[index]),
        _centre(layout, side_px, rng),
        Pose(side_px, rng.uniform(-0.25, 0.25), rng.uniform(-0.12, 0.12), rng.uniform(0.9, 1.1)),
        scenes.ink(rng),
        rng.uniform(0.85, 1.0),
    )


def _centre(layout: Layout, side_px: float, rng: np.random.Generator) -> tuple[float, float]:
    """Anywhere, with at most a tenth of the digit's cells beyond a border."""
    height, width = layout.size_hw
    margin = 0.4 * side_px
    return float(rng.uniform(margin, width - margin)), float(rng.uniform(margin, height - margin))


def _moved(digit: Digit, step_xy: npt.NDArray[np.float64], turn: float, layout: Layout) -> Digit:
    margin = digit.pose.side_px / 2
    height, width = layout.size_hw
    x, y = digit.centre_xy
    centre_xy = (
        bounced(x + step_xy[0], margin, width - margin),
        bounced(y + step_xy[1], margin, height - margin),
    )
    pose = dataclasses.replace(digit.pose, angle=digit.pose.angle + turn)
    return dataclasses.replace(digit, centre_xy=centre_xy, pose=pose)


def bounced(position: float, low: float, high: float) -> float:
    """Where a point is that runs along a line and is thrown back at `low` and `high`."""
    span = high - low
    phase = (position - low) % (2 * span)
    return float(low + min(phase, 2 * span - phase))


class _Canvas:
    """A picture that is being painted, and for every pixel the digit on top."""

    def __init__(self, background: Image.Image) -> None:
        self.image = background
        self.owner = np.full((background.height, background.width), -1, np.int64)
        self.digits: list[Digit] = []
        self.areas_px: list[int] = []  # of whole digits, hidden pixels too

    def paint(self, digit: Digit, least_visible: float) -> bool:
        """Paint `digit`, unless that leaves less than `least_visible` of it or of an earlier one."""
        side = int(np.ceil(_ROOM * digit.pose.side_px))
        left, top = (int(np.floor(at - side / 2)) for at in digit.centre_xy)
        centre = np.array([digit.centre_xy[0] - left, digit.centre_xy[1] - top])
        shape = scenes.stamp(digit.glyph, (side, side), centre, digit.pose)
        inside = (
            max(0, -left),
            max(0, -top),
            min(side, self.image.width - left),
            min(side, self.image.height - top),
        )
        mask = np.asarray(shape) >= _MASKED_FROM
        area, shape = int(mask.sum()), shape.crop(inside)
        mask = mask[inside[1] : inside[3], inside[0] : inside[2]]
        owner = self.owner[max(0, top) :, max(0, left) :][: mask.shape[0], : mask.shape[1]]
        if mask.sum() < least_visible * area or self._hides_too_much(owner[mask], least_visible):
            return False
        owner[mask] = len(self.digits)
        self.digits.append(digit)
        self.areas_px.append(area)
        opaque = shape.point([round(value * digit.opacity) for value in range(256)])
        self.image.paste(digit.ink, (max(0, left), max(0, top)), opaque)
        return True

    def scene(self) -> Scene:
        """What has been painted, as ground truth."""
        visible = np.bincount(self.owner[self.owner >= 0], minlength=len(self.digits))
        ids = np.flatnonzero(visible >= np.maximum(1, _LEAST_LABELLED * np.array(self.areas_px)))
        masks = self.owner[None] == ids[:, None, None]
        boxes = np.array([_box_xyxy(mask) for mask in masks], np.float32).reshape(-1, 4)
        labels = np.array([self.digits[index].label for index in ids], np.int64)
        return Scene(np.asarray(self.image), boxes, labels, masks, ids)

    def _hides_too_much(self, hidden: npt.NDArray[np.int64], least_visible: float) -> bool:
        """Whether hiding the pixels that belong to `hidden` leaves too little of a digit."""
        for index in np.unique(hidden[hidden >= 0]):
            left = np.count_nonzero(self.owner == index) - np.count_nonzero(hidden == index)
            if left < least_visible * self.areas_px[index]:
                return True
        return False


def _box_xyxy(mask: npt.NDArray[np.bool_]) -> tuple[int, int, int, int]:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1
