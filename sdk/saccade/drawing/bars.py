"""Classes as bars below their picture."""

from __future__ import annotations

from typing import TYPE_CHECKING

from saccade.pictures import Picture, decode
from saccade.results.classification import Classification, Prediction

if TYPE_CHECKING:
    from PIL import Image, ImageDraw, ImageFont

__all__ = ["draw"]

_PAPER = (250, 250, 248)
_INK = (28, 30, 34)
_FAINT = (224, 226, 230)
_BEST = (22, 119, 180)
_OTHER = (150, 175, 196)
_WARNING = (196, 43, 28)
_WIDTHS = (320, 1280)  # pixels; smaller pictures are enlarged, larger ones reduced


def draw(image: Picture, result: Classification, top: int = 5) -> Image.Image:
    """The picture with its `top` best classes as bars below it, longest first: a new RGB image."""
    from PIL import Image

    picture = _fitted(decode(image))
    unit = max(12, picture.width // 32)  # height of the letters
    best = list(result.top(top))
    rows = len(best) + result.untrained
    sheet = Image.new("RGB", (picture.width, picture.height + rows * unit * 2 + unit), _PAPER)
    sheet.paste(picture, (0, 0))
    _draw_rows(sheet, best, result.untrained, picture.height + unit // 2, unit)
    return sheet


def _fitted(picture: object) -> Image.Image:
    """`picture` as a PIL image of a width at which letters can be read."""
    import numpy as np
    from PIL import Image

    image = Image.fromarray(picture) if isinstance(picture, np.ndarray) else picture
    assert isinstance(image, Image.Image)
    width = min(max(image.width, _WIDTHS[0]), _WIDTHS[1])
    if width == image.width:
        return image
    # Pixels of a small picture stay squares; very tall ones are cut to a sheet that can be looked at.
    height = min(max(1, round(image.height * width / image.width)), 4 * width)
    smooth = Image.Resampling.NEAREST if width > 2 * image.width else Image.Resampling.LANCZOS
    return image.resize((width, height), smooth)


def _draw_rows(sheet: Image.Image, best: list[Prediction], untrained: bool, top: int, unit: int) -> None:
    from PIL import ImageDraw, ImageFont

    pen = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(unit)
    for row, prediction in enumerate(best):
        box = (unit, top + row * unit * 2, sheet.width - unit, top + row * unit * 2 + unit * 2 - unit // 4)
        _draw_bar(pen, font, box, prediction, _BEST if row == 0 else _OTHER)
    if untrained:
        place = (unit, top + len(best) * unit * 2 + unit)
        pen.text(place, "UNTRAINED: random weights", _WARNING, font, anchor="lm")


def _draw_bar(
    pen: ImageDraw.ImageDraw,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
    box: tuple[int, int, int, int],
    prediction: Prediction,
    colour: tuple[int, int, int],
) -> None:
    """Label and percentage on one line, the bar under them over its full track."""
    left, top, right, bottom = box
    thick = max(3, (bottom - top) // 6)
    middle = (top + bottom - thick) // 2
    percent = f"{100 * prediction.score:.1f} %"
    room = right - left - pen.textlength(percent, font) - thick * 3
    pen.text((left, middle), _shortened(pen, font, prediction.label, room), _INK, font, anchor="lm")
    pen.text((right, middle), percent, _INK, font, anchor="rm")
    pen.rounded_rectangle((left, bottom - thick, right, bottom), thick / 2, _FAINT)
    length = round((right - left) * prediction.score)
    if length >= thick:
        pen.rounded_rectangle((left, bottom - thick, left + length, bottom), thick / 2, colour)


def _shortened(
    pen: ImageDraw.ImageDraw, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, text: str, room: float
) -> str:
    """`text` as far as it fits into `room` pixels."""
    if pen.textlength(text, font) <= room:
        return text
    while text and pen.textlength(text + "…", font) > room:
        text = text[:-1]
    return text + "…"
