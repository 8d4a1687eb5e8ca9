"""Objects on their picture: masks, outlines, and labels that can be read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from saccade.drawing.labels import Area, place
from saccade.palette import class_colours
from saccade.pictures import Picture, RgbArray, decode
from saccade.results.detections import Detections
from saccade.results.masks import Crop

if TYPE_CHECKING:
    from PIL import Image, ImageDraw, ImageFont

    Font: TypeAlias = ImageFont.FreeTypeFont | ImageFont.ImageFont

__all__ = ["draw"]

Rgb: TypeAlias = tuple[int, int, int]

_SIDES = (480, 2560)  # pixels of the longer side; smaller pictures are enlarged, larger ones reduced
_OPACITY = 0.45  # of a mask
_DARK, _LIGHT = (16, 18, 22), (255, 255, 255)
_WARNING = (196, 43, 28)


def draw(image: Picture, result: Detections, top: int | None = None) -> Image.Image:
    """The picture with its objects, all or the `top` best: a new PIL image of mode RGB.

    A class has the same colour in every picture. Labels stay clear of each other where there is room around
    their boxes; the best objects come first.
    """
    from PIL import Image

    shown = result.top(top or max(1, len(result)))
    picture = np.asarray(decode(image))
    scale = _scale(picture.shape[:2])
    sheet = Image.fromarray(_with_masks(picture, shown, thick=max(1, round(0.002 * max(picture.shape)))))
    if scale != 1:
        smooth = Image.Resampling.NEAREST if scale > 2 else Image.Resampling.LANCZOS
        size = (max(1, round(side * scale)) for side in (sheet.width, sheet.height))
        sheet = sheet.resize((next(size), next(size)), smooth)
    _draw_boxes(sheet, shown, scale)
    return sheet


def _colour(index: int) -> Rgb:
    red, green, blue = class_colours(index + 1)[index].tolist()
    return red, green, blue


def _scale(size_hw: tuple[int, ...]) -> float:
    """To a size at which labels can be read."""
    side = max(size_hw)
    return min(max(side, _SIDES[0]), _SIDES[1]) / side


def _with_masks(picture: RgbArray, shown: Detections, thick: int) -> RgbArray:
    """A copy with translucent masks and their outlines, `thick` pixels wide; the best objects on top."""
    painted = picture.copy()
    if shown.masks is None:
        return painted
    for row in range(len(shown) - 1, -1, -1):
        _paint(painted, shown.masks.crop(row), _colour(int(shown.indices[row])), thick)
    return painted


def _paint(picture: RgbArray, crop: Crop, ink: Rgb, thick: int) -> None:
    region = picture[crop.window]
    inside = region[crop.pixels]
    region[crop.pixels] = (inside * (1 - _OPACITY) + np.array(ink) * _OPACITY).astype(np.uint8)
    padded = np.pad(crop.pixels, thick)
    height, width = crop.pixels.shape
    core = crop.pixels.copy()
    for down, across in ((0, thick), (2 * thick, thick), (thick, 0), (thick, 2 * thick)):
        core &= padded[down : down + height, across : across + width]
    region[crop.pixels & ~core] = ink


@dataclass(frozen=True, slots=True)
class _Style:
    """Sizes in pixels that follow from the sheet's."""

    font: Font
    line: int
    pad: int

    @classmethod
    def of(cls, sheet: Image.Image, boxes: Sequence[Area]) -> _Style:
        """Letters as the sheet wants them, but smaller than most objects as far as they can be read."""
        from PIL import ImageFont

        objects = np.median([min(box[2] - box[0], box[3] - box[1]) for box in boxes]) if boxes else np.inf
        largest = min(0.024 * max(sheet.size), 0.35 * float(objects), 36.0)
        unit = round(max(largest, 0.009 * max(sheet.size), 12.0))
        return cls(ImageFont.load_default(unit), max(2, unit // 7), max(2, unit // 5))


def _draw_boxes(sheet: Image.Image, shown: Detections, scale: float) -> None:
    from PIL import ImageDraw

    pen = ImageDraw.Draw(sheet)
    boxes: list[Area] = [tuple(box) for box in (shown.boxes_xyxy * scale).tolist()]
    style = _Style.of(sheet, boxes)
    inks = [_colour(index) for index in shown.indices.tolist()]
    for box, ink in reversed(list(zip(boxes, inks, strict=True))):
        _draw_frame(pen, sheet, box, ink, style.line)
    placed: list[Area] = []
    texts = [f"{label} {score:.2f}" for label, score in zip(shown.labels, shown.scores.tolist(), strict=True)]
    for text, box, ink in zip(texts, boxes, inks, strict=True):
        others = [other for other in boxes if other != box]
        area = place(_size(pen, text, style), box, placed, others, sheet.size)
        placed.append(area)
        _draw_label(pen, text, area, ink, style)
    if shown.untrained:
        text = "UNTRAINED: random weights"
        width, height = _size(pen, text, style)
        area = (sheet.width - width, sheet.height - height, sheet.width, sheet.height)
        _draw_label(pen, text, area, _WARNING, style)


def _draw_frame(pen: ImageDraw.ImageDraw, sheet: Image.Image, box: Area, ink: Rgb, line: int) -> None:
    """The box, with a dark hair around it that sets it off from ground of its own colour."""
    left, top = (min(max(0, round(at)), side - 1) for at, side in zip(box[:2], sheet.size, strict=True))
    right, bottom = (
        max(first, min(round(at), side) - 1)
        for at, side, first in zip(box[2:], sheet.size, (left, top), strict=True)
    )
    pen.rectangle((left - 1, top - 1, right + 1, bottom + 1), outline=_DARK)
    pen.rectangle((left, top, right, bottom), outline=ink, width=line)


def _size(pen: ImageDraw.ImageDraw, text: str, style: _Style) -> tuple[float, float]:
    left, _, right, _ = pen.textbbox((0, 0), text, style.font)
    _, top, _, bottom = pen.textbbox((0, 0), "Âg", style.font)  # the same height for every label
    return right - left + 2 * style.pad, bottom - top + 2 * style.pad


def _draw_label(pen: ImageDraw.ImageDraw, text: str, area: Area, ink: Rgb, style: _Style) -> None:
    pen.rounded_rectangle(area, style.pad, ink)
    bright = 0.2126 * ink[0] + 0.7152 * ink[1] + 0.0722 * ink[2] > 150
    middle = (area[1] + area[3]) / 2
    pen.text((area[0] + style.pad, middle), text, _DARK if bright else _LIGHT, style.font, anchor="lm")
