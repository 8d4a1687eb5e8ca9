"""Maps over their picture: classes with a legend, depths beside the picture with a scale."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from saccade.palette import class_colours, ramp
from saccade.pictures import Picture, RgbArray, decode
from saccade.results.maps import Area, DepthMap, SemanticMap

if TYPE_CHECKING:
    from PIL import Image, ImageFont

    Font: TypeAlias = ImageFont.FreeTypeFont | ImageFont.ImageFont

__all__ = ["draw"]

_PAPER, _INK, _WARNING = (250, 250, 248), (28, 30, 34), (196, 43, 28)
_OPACITY = 0.55  # of the classes over the picture
_BAND = 256  # rows
_SIDES = (480, 2560)  # pixels of the longer side; smaller pictures are enlarged, larger ones reduced
_UNTRAINED = "UNTRAINED: random weights"


def draw(image: Picture, result: SemanticMap | DepthMap, top: int | None = None) -> Image.Image:
    """A new RGB image: the picture under its classes, outlined, the `top` largest (12) in a legend below.
    What a class called background covers stays bare.

    A depth map stands beside the picture, or below one that is wide, over a scale in its unit.
    """
    picture = np.asarray(decode(image))
    if isinstance(result, DepthMap):
        return _draw_depth(picture, result)
    return _draw_classes(picture, result, top or 12)


def _draw_classes(picture: RgbArray, result: SemanticMap, top: int) -> Image.Image:
    sheet = _fitted(_overlaid(picture, result))
    areas = [area for area in result.areas() if not _is_background(area.label)]
    shown, rest = areas[:top], areas[top:]
    entries = [(f"{a.label}  {_percent(a)}", _colour(a.index)) for a in shown]
    if rest:
        entries.append((f"{len(rest)} more", _INK))
    if result.untrained:
        entries.append((_UNTRAINED, _WARNING))
    return _with_legend(sheet, entries)


def _overlaid(picture: RgbArray, result: SemanticMap) -> RgbArray:
    """The classes' colours over the picture in grey, borders as light lines; no colour on background."""
    border = np.zeros(result.labels.shape, bool)
    border[:, 1:] |= result.labels[:, 1:] != result.labels[:, :-1]
    border[1:] |= result.labels[1:] != result.labels[:-1]
    background = [i for i, name in enumerate(result.names) if _is_background(name)]
    colours, mixed = result.colour(), np.empty_like(picture)
    for top in range(0, len(picture), _BAND):  # float32 of a whole picture would be six times the picture
        rows = slice(top, top + _BAND)
        grey = picture[rows].astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)
        band = colours[rows] * np.float32(_OPACITY) + grey[..., None] * np.float32(1 - _OPACITY)
        band[border[rows]] += (255 - band[border[rows]]) * 0.6
        bare = np.isin(result.labels[rows], background) & ~border[rows]
        mixed[rows] = np.where(bare[..., None], picture[rows], band)
    return mixed


def _draw_depth(picture: RgbArray, result: DepthMap) -> Image.Image:
    height, width = result.depth.shape
    beside = np.concatenate([picture, result.colour()], axis=0 if width > 1.6 * height else 1)
    sheet = _fitted(beside)
    return _with_scale(sheet, result)


def _fitted(picture: RgbArray) -> Image.Image:
    """`picture` as a PIL image at which letters can be read."""
    from PIL import Image

    image = Image.fromarray(picture)
    side = max(image.size)
    wanted = min(max(side, _SIDES[0]), _SIDES[1])
    if wanted == side:
        return image
    size = tuple(max(1, round(each * wanted / side)) for each in image.size)
    smooth = Image.Resampling.NEAREST if wanted > 2 * side else Image.Resampling.LANCZOS
    return image.resize((size[0], size[1]), smooth)


def _with_legend(picture: Image.Image, entries: list[tuple[str, tuple[int, int, int]]]) -> Image.Image:
    """Swatches with names below the picture, in as many columns as fit."""
    from PIL import Image, ImageDraw, ImageFont

    unit = _unit(picture)
    font = ImageFont.load_default(unit)
    pen = ImageDraw.Draw(picture)
    column = max((pen.textlength(text, font) for text, _ in entries), default=0) + 3 * unit
    columns = max(1, int((max(picture.width, 20 * unit) - unit) // column))
    rows = -(-len(entries) // columns)
    width = max(picture.width, round(column + unit), 20 * unit)
    sheet = Image.new("RGB", (width, picture.height + round((1.6 * rows + 0.8) * unit)), _PAPER)
    sheet.paste(picture, ((width - picture.width) // 2, 0))
    pen = ImageDraw.Draw(sheet)
    for number, (text, ink) in enumerate(entries):
        left = unit + (number % columns) * column
        middle = picture.height + (1.2 + 1.6 * (number // columns)) * unit
        box = (left, middle - unit / 2, left + unit, middle + unit / 2)
        pen.rounded_rectangle(box, unit / 5, ink)
        pen.text(
            (left + 1.6 * unit, middle), text, _WARNING if text == _UNTRAINED else _INK, font, anchor="lm"
        )
    return sheet


def _with_scale(picture: Image.Image, result: DepthMap) -> Image.Image:
    """A strip of the ramp's colours with the nearest and the farthest depth below the picture."""
    from PIL import Image, ImageDraw, ImageFont

    unit = _unit(picture)
    font = ImageFont.load_default(unit)
    width = max(picture.width, 20 * unit)
    sheet = Image.new("RGB", (width, picture.height + round((3.4 + 1.6 * result.untrained) * unit)), _PAPER)
    sheet.paste(picture, ((width - picture.width) // 2, 0))
    across = np.linspace(0, 1, max(1, width - 2 * unit), dtype=np.float32)
    strip = np.repeat(ramp(across)[None], max(1, unit * 2 // 3), axis=0)
    sheet.paste(Image.fromarray(strip), (unit, picture.height + unit * 2 // 3))
    pen = ImageDraw.Draw(sheet)
    line = picture.height + 2.3 * unit
    pen.text((unit, line), f"{result.depth.min():.3g}", _INK, font, anchor="lm")
    pen.text((width - unit, line), f"{result.depth.max():.3g} {result.unit}", _INK, font, anchor="rm")
    if result.untrained:
        pen.text((unit, line + 1.6 * unit), _UNTRAINED, _WARNING, font, anchor="lm")
    return sheet


def _unit(picture: Image.Image) -> int:
    """Height of the letters."""
    return max(12, min(36, max(picture.size) // 40))


def _is_background(name: str) -> bool:
    return name.casefold() == "background"


def _percent(area: Area) -> str:
    return f"{100 * area.share:.1f} %"


def _colour(index: int) -> tuple[int, int, int]:
    red, green, blue = class_colours(index + 1)[index].tolist()
    return red, green, blue
