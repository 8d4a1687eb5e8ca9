"""The demo's sheets: nothing is cut off, mistakes are framed, colours are explained."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageColor

from digits import poster

GREY = np.full((poster.CELL_PX, poster.CELL_PX, 3), 90, np.uint8)
WRONG = ImageColor.getrgb(poster.WRONG)


def sheet_of(wrong: tuple[int, ...] = (), legend: dict[str, poster.Colour] | None = None) -> Image.Image:
    rows = [poster.Row("one", [GREY] * poster.COLUMNS), poster.Row("two", [GREY] * 3, wrong)]
    return poster.rows(rows, "title", "subtitle", "footer", legend)


def has(sheet: Image.Image, colour: tuple[int, ...]) -> int:
    return int((np.asarray(sheet) == colour).all(-1).sum())


def test_rows_hold_every_picture_whole() -> None:
    corners = 9 * 4 * poster.CORNER_PX**2
    assert 9 * poster.CELL_PX**2 - corners <= has(sheet_of(), (90, 90, 90)) <= 9 * poster.CELL_PX**2


@pytest.mark.parametrize("edge", ["left", "right", "top", "bottom"])
def test_the_sheet_ends_in_white(edge: str) -> None:
    legend: dict[str, poster.Colour] = {f"class {i}": (10 * i, 0, 0) for i in range(10)}
    pixels = np.asarray(sheet_of((2,), legend))
    strips = {"left": pixels[:, :20], "right": pixels[:, -20:], "top": pixels[:20], "bottom": pixels[-10:]}
    assert (strips[edge] == 255).all()


def test_mistakes_are_framed() -> None:
    assert has(sheet_of(), WRONG) == 0
    once, twice = has(sheet_of((1,)), WRONG), has(sheet_of((0, 2)), WRONG)
    assert twice == 2 * once > 0


def test_the_legend_shows_its_colours() -> None:
    sheet = sheet_of(legend={"red": (255, 0, 0), "blue": (0, 0, 255)})
    assert has(sheet, (255, 0, 0)) == has(sheet, (0, 0, 255)) > 400
    assert sheet.height > sheet_of().height
