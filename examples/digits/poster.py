"""Pictures with the answers they got, on one sheet. Pillow and its own typeface only."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

COLUMNS = 6
CELL_PX = 224
GAP_PX = 36
MARGIN_PX = 56
HEADER_PX = 128
CAPTION_PX = 62
LINE_PX = 44  # of a row's caption
FOOTER_PX = 40
CORNER_PX = 14

PAPER, INK, FAINT, TRACK = "#ffffff", "#16181d", "#737883", "#e9ebef"
RIGHT, WRONG = "#2f7d5b", "#c8372d"

Colour = tuple[int, int, int]


@dataclasses.dataclass(frozen=True)
class Answer:
    """`image` (224, 224, 3) uint8; `probability` of `answer` in 0..1; `truth` is the right label."""

    image: npt.NDArray[np.uint8]
    answer: str
    probability: float
    truth: str


@dataclasses.dataclass(frozen=True)
class Row:
    """Pictures (224, 224, 3) uint8 under a caption. wrong: the places among them that are to be framed."""

    caption: str
    pictures: Sequence[npt.NDArray[np.uint8]]
    wrong: Sequence[int] = ()


def draw(answers: Sequence[Answer], title: str, subtitle: str, footer: str) -> Image.Image:
    """A sheet of `answers`, row by row; wrong ones are framed and say what would have been right."""
    row_px = CELL_PX + CAPTION_PX + GAP_PX
    sheet, pen = _headed(title, subtitle, footer, -(-len(answers) // COLUMNS) * row_px)
    for index, answer in enumerate(answers):
        row, column = divmod(index, COLUMNS)
        left = MARGIN_PX + column * (CELL_PX + GAP_PX)
        _draw_cell(sheet, pen, answer, left, MARGIN_PX + HEADER_PX + row * row_px)
    return sheet


def rows(
    content: Sequence[Row], title: str, subtitle: str, footer: str, legend: Mapping[str, Colour] | None = None
) -> Image.Image:
    """A sheet of `content`, at most six pictures a row, and below it what the colours of `legend` mean."""
    row_px, legend_px = LINE_PX + CELL_PX + GAP_PX, CAPTION_PX if legend else 0
    sheet, pen = _headed(title, subtitle, footer, len(content) * row_px + legend_px)
    top = MARGIN_PX + HEADER_PX
    for row in content:
        pen.text((MARGIN_PX, top + LINE_PX - 18), row.caption, INK, _font(26), anchor="ls")
        for column, picture in enumerate(row.pictures):
            left = MARGIN_PX + column * (CELL_PX + GAP_PX)
            if column in row.wrong:
                _frame(pen, left, top + LINE_PX)
            sheet.paste(Image.fromarray(picture), (left, top + LINE_PX), _rounded(CELL_PX, CORNER_PX))
        top += row_px
    _draw_legend(pen, legend or {}, top, (sheet.width - 2 * MARGIN_PX) / max(1, len(legend or {})))
    return sheet


def grid(pictures: Sequence[Image.Image], columns: int = 3) -> Image.Image:
    """Pictures of one size, row by row, with white between them."""
    width, height = pictures[0].size
    rows = -(-len(pictures) // columns)
    gap = width // 24
    sheet = Image.new("RGB", (columns * (width + gap) + gap, rows * (height + gap) + gap), PAPER)
    for index, picture in enumerate(pictures):
        row, column = divmod(index, columns)
        sheet.paste(picture, (gap + column * (width + gap), gap + row * (height + gap)))
    return sheet


def _headed(
    title: str, subtitle: str, footer: str, content_px: int
) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    """A sheet with room for `content_px` between its header and its footer."""
    width = 2 * MARGIN_PX + COLUMNS * CELL_PX + (COLUMNS - 1) * GAP_PX
    sheet = Image.new("RGB", (width, MARGIN_PX + HEADER_PX + content_px + FOOTER_PX), PAPER)
    pen = ImageDraw.Draw(sheet)
    pen.text((MARGIN_PX, MARGIN_PX), title, INK, _font(44))
    pen.text((MARGIN_PX, MARGIN_PX + 62), subtitle, FAINT, _font(22))
    pen.text((MARGIN_PX, sheet.height - MARGIN_PX), footer, FAINT, _font(18))
    return sheet, pen


def _draw_legend(pen: ImageDraw.ImageDraw, legend: Mapping[str, Colour], top: int, step_px: float) -> None:
    """Swatches with names, `step_px` apart."""
    for place, (name, colour) in enumerate(legend.items()):
        left = round(MARGIN_PX + place * step_px)
        pen.rounded_rectangle((left, top, left + 24, top + 24), 6, fill=colour)
        pen.text((left + 36, top + 12), name, INK, _font(22), anchor="lm")


def _frame(pen: ImageDraw.ImageDraw, left: int, top: int) -> None:
    """Around a picture that is a mistake."""
    frame = (left - 7, top - 7, left + CELL_PX + 6, top + CELL_PX + 6)
    pen.rounded_rectangle(frame, CORNER_PX + 7, outline=WRONG, width=4)


def _draw_cell(sheet: Image.Image, pen: ImageDraw.ImageDraw, answer: Answer, left: int, top: int) -> None:
    right = answer.answer == answer.truth
    colour = RIGHT if right else WRONG
    if not right:
        _frame(pen, left, top)
    sheet.paste(Image.fromarray(answer.image), (left, top), _rounded(CELL_PX, CORNER_PX))
    baseline = top + CELL_PX + 40
    pen.text((left, baseline), answer.answer, INK if right else WRONG, _font(26), anchor="ls")
    if not right:
        said = pen.textlength(answer.answer, _font(26))
        pen.text((left + said + 10, baseline), f"is {answer.truth}", FAINT, _font(20), anchor="ls")
    percent = f"{answer.probability:.0%}"
    pen.text((left + CELL_PX, baseline), percent, FAINT, _font(20), anchor="rs")
    bar = (left, baseline + 14, left + CELL_PX, baseline + 19)
    pen.rounded_rectangle(bar, 3, fill=TRACK)
    pen.rounded_rectangle((*bar[:2], left + round(CELL_PX * answer.probability), bar[3]), 3, fill=colour)


def _rounded(side_px: int, corner_px: int) -> Image.Image:
    """A mask with round corners, drawn four times as large for smooth edges."""
    mask = Image.new("L", (4 * side_px, 4 * side_px))
    ImageDraw.Draw(mask).rounded_rectangle((0, 0, 4 * side_px - 1, 4 * side_px - 1), 4 * corner_px, fill=255)
    return mask.resize((side_px, side_px), Image.Resampling.LANCZOS)


def _font(size_px: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size_px)
