"""A result on its picture: something to look at, or to put into a report."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from saccade.errors import UsageError

if TYPE_CHECKING:
    from PIL import Image

    from saccade.pictures import Picture
    from saccade.results import Result

# The module that draws each kind of result: `draw(image, result, top) -> PIL image`.
_MODULES: Mapping[str, str] = {
    "Classification": "saccade.drawing.bars",
    "Detections": "saccade.drawing.boxes",
    "DepthMap": "saccade.drawing.maps",
    "SemanticMap": "saccade.drawing.maps",
}


def draw(image: Picture, result: Result, top: int | None = None) -> Image.Image:
    """The picture with its result on it: a new PIL image of mode RGB.

    A classification gives its `top` best classes (5) as bars below the picture; detections give boxes, masks
    and labels, all or the `top` best; a semantic map its colours over the picture with a legend; a depth map
    stands beside the picture.
    """
    kind = type(result).__name__
    if kind not in _MODULES:
        raise UsageError(f"a {kind} cannot be drawn; these can: {', '.join(_MODULES)}")
    drawing: Any = importlib.import_module(_MODULES[kind])
    drawn: Image.Image = drawing.draw(image, result) if top is None else drawing.draw(image, result, top)
    return drawn
