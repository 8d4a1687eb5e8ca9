"""The hits of a search on one sheet."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from saccade.errors import InputError

if TYPE_CHECKING:
    from PIL import Image

    from saccade.gallery.gallery import Hit

_COLUMNS = 5
_TILE_PX, _GAP_PX, _LINE_PX = 176, 16, 20
_PAPER, _INK, _FAINT = (255, 255, 255), (32, 33, 36), (232, 234, 237)


def contact_sheet(hits: Sequence[Hit], title: str) -> Image.Image:
    """Pictures in rows of five, best first, each over its similarity and name; a new RGB image."""
    from PIL import Image, ImageDraw, ImageFont

    columns = max(1, min(_COLUMNS, len(hits)))
    rows = math.ceil(len(hits) / columns)
    step_x, step_y = _TILE_PX + _GAP_PX, _TILE_PX + 2 * _LINE_PX + _GAP_PX
    top = 2 * _LINE_PX + _GAP_PX // 2
    sheet = Image.new("RGB", (_GAP_PX + max(columns, 2) * step_x, top + rows * step_y), _PAPER)
    pen = ImageDraw.Draw(sheet)
    heading, letters = ImageFont.load_default(_LINE_PX), ImageFont.load_default(13)
    pen.text((_GAP_PX, _LINE_PX), _shortened(title, 9 * columns + 18), _INK, heading, anchor="lm")
    for place, hit in enumerate(hits):
        left, upper = _GAP_PX + place % columns * step_x, top + place // columns * step_y
        pen.rectangle((left, upper, left + _TILE_PX - 1, upper + _TILE_PX - 1), _FAINT)
        picture = _thumbnail(hit)
        if picture is not None:
            inset = (_TILE_PX - picture.width) // 2, (_TILE_PX - picture.height) // 2
            sheet.paste(picture, (left + inset[0], upper + inset[1]))
        line = upper + _TILE_PX + _LINE_PX // 2
        pen.text((left, line), f"{place + 1}.  {hit.similarity:.3f}", _INK, letters, anchor="lm")
        name = _shortened(hit.path.name, 24)
        pen.text((left, line + _LINE_PX - 4), name, _INK, letters, anchor="lm")
    return sheet


def _thumbnail(hit: Hit) -> Image.Image | None:
    """The picture at the size of a tile; None where it has gone or been damaged since it was indexed."""
    import numpy as np
    from PIL import Image

    from saccade.pictures import decode

    try:
        decoded = decode(hit.path)
    except InputError:
        return None
    picture = Image.fromarray(decoded) if isinstance(decoded, np.ndarray) else decoded
    picture.thumbnail((_TILE_PX, _TILE_PX), Image.Resampling.LANCZOS)
    return picture


def _shortened(text: str, letters: int) -> str:
    """`text` in at most so many letters, the middle left out."""
    if len(text) <= letters:
        return text
    kept = letters // 2
    return f"{text[:kept]}…{text[-kept + 1 :]}"
