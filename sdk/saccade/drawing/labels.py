"""Places for labels beside their objects, clear of each other. All in pixels of the sheet."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeAlias

__all__ = ["Area", "place"]

Area: TypeAlias = tuple[float, float, float, float]  # left, top, right, bottom

_HIDDEN_LABEL = 10  # times as bad as a label in another object's box


def place(
    size: tuple[float, float],
    box: Area,
    labels: Sequence[Area],
    objects: Sequence[Area],
    sheet: tuple[int, int],
) -> Area:
    """Where a label of `size` (width, height) goes: the first free place around or in its object's `box`.

    labels: those that are placed already. objects: boxes of others. sheet: width and height. If no place is
    free it is the least crowded, and hiding a label is worse than hiding a part of an object.
    """
    areas = list(dict.fromkeys(_places(size, box, sheet)))
    crowding = [
        _HIDDEN_LABEL * sum(_common(area, label) for label in labels)
        + sum(_common(area, each) for each in objects)
        for area in areas
    ]
    return areas[crowding.index(min(crowding))]


def _places(size: tuple[float, float], box: Area, sheet: tuple[int, int]) -> Iterator[Area]:
    """Above, below, inside, then to the sides; moved into the sheet."""
    width, height = size
    left, top, right, bottom = box
    corners = [
        (left, top - height),
        (right - width, top - height),
        (left, bottom),
        (right - width, bottom),
        (left, top),
        (right - width, top),
        (left, bottom - height),
        (right - width, bottom - height),
        (right, top),
        (left - width, top),
        (right, bottom - height),
        (left - width, bottom - height),
    ]
    for across, down in corners:
        x = min(max(across, 0), max(sheet[0] - width, 0))
        y = min(max(down, 0), max(sheet[1] - height, 0))
        yield x, y, x + width, y + height


def _common(one: Area, other: Area) -> float:
    """Pixels that two areas share."""
    across = min(one[2], other[2]) - max(one[0], other[0])
    down = min(one[3], other[3]) - max(one[1], other[1])
    return max(across, 0) * max(down, 0)
