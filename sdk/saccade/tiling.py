"""Objects in pictures much larger than what a detector sees: tiles, and the way back across their seams.

A picture is cut into tiles that overlap; each is detected by itself; then what several tiles saw of one
object becomes one object again. Two tiles that overlap have both seen what lies in their overlap. So an
object of one and an object of the other are the same where, *in the overlap*, they cover the same ground:
that holds for an object seen whole by both, for one that a seam cuts, and for one larger than the overlap,
and it does not join neighbours, since each tile saw both of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray

from saccade.errors import UsageError
from saccade.results.detections import Detections
from saccade.results.masks import Box, Masks, Part

__all__ = ["Tile", "count", "merge", "tiles"]

_SAME = 0.5  # intersection over union from which on two boxes are of one object
_INSIDE = 0.7  # share of a cut box that lies in the other one, from which on it is a rest of that
_MARGIN = 0.01  # of a tile's side: a box that ends nearer to a seam than this is cut by it


@dataclass(frozen=True, slots=True)
class Tile:
    """A part of a picture: pixels from (left, top) to (right, bottom), the latter excluded."""

    left: int
    top: int
    right: int
    bottom: int

    @property
    def window(self) -> tuple[slice, slice]:
        """Rows and columns of the picture."""
        return slice(self.top, self.bottom), slice(self.left, self.right)


def tiles(size_hw: tuple[int, int], size: int, overlap: int) -> list[Tile]:
    """Tiles of `size` x `size` pixels that cover a picture, row by row; neighbours share `overlap` pixels.

    Those at the right and lower edge are moved back inside and share more; where a side of the picture is
    shorter than `size`, so are the tiles. Raises UsageError unless 0 < overlap < size.

    >>> tiles((100, 150), 100, 20)
    [Tile(left=0, top=0, right=100, bottom=100), Tile(left=50, top=0, right=150, bottom=100)]
    """
    if not 0 < overlap < size:
        raise UsageError(
            f"tile=({size}, {overlap}): the overlap is less than the size and more than 0 pixels; about as "
            "large as most objects is best"
        )
    rows, columns = (_starts(side, size, overlap) for side in size_hw)
    height, width = size_hw
    return [
        Tile(left, top, min(left + size, width), min(top + size, height))
        for top, left in product(rows, columns)
    ]


def count(size_hw: tuple[int, int], size: int, overlap: int) -> int:
    """How many `tiles` makes, without making them."""
    return math.prod(1 + math.ceil(max(side - size, 0) / (size - overlap)) for side in size_hw)


def merge(parts: Sequence[tuple[Tile, Detections]], size_hw: tuple[int, int]) -> Detections:
    """What tiles found as what the whole picture holds, best first.

    parts: at least one tile, each with its detections in pixels of the tile. Of an object that some tile saw
    whole, the best such box and mask are kept. One that every tile saw cut gets the box around its pieces,
    the union of their masks, and the best of their scores. A piece to which a tile that saw all of it gave
    another class only is dropped. Detections of one tile are never joined, nor are different classes.
    """
    found = _gathered(parts, size_hw)
    boxes = found.boxes_xyxy.astype(np.float64)
    owners = np.repeat(np.arange(len(parts)), [len(each) for _, each in parts])
    edges = np.array([(t.left, t.top, t.right, t.bottom) for t, _ in parts], np.float64)
    cut_sides = _cut_sides(boxes, edges, owners, size_hw)
    cut = np.asarray(cut_sides.any(axis=1))
    # A network ends the box of a cut object near the seam, not on it.
    pairs = _compare(np.where(cut_sides, edges[owners], boxes), edges, owners, cut)
    groups = _groups(pairs.of_one_class(found.indices), owners)
    against = pairs.contradictions(found.indices, owners, cut)
    kept = [group for group in groups if not cut[group].all() or not _is_contradicted(group, against, owners)]
    return _joined(found, kept, cut)


@dataclass(frozen=True, slots=True)
class _Pairs:
    """Pairs of detections of different tiles that cover the same ground where both tiles look.

    first, second: (m,) rows; likeness: (m,) how much so, above 1 where it is by intersection over union.
    """

    first: NDArray[np.int64]
    second: NDArray[np.int64]
    likeness: NDArray[np.float64]

    def of_one_class(self, classes: NDArray[np.int64]) -> list[tuple[int, int]]:
        """The most alike first."""
        same = np.flatnonzero(classes[self.first] == classes[self.second])
        order = same[np.argsort(-self.likeness[same], kind="stable")]
        return list(zip(self.first[order].tolist(), self.second[order].tolist(), strict=True))

    def contradictions(
        self, classes: NDArray[np.int64], owners: NDArray[np.int64], cut: NDArray[np.bool_]
    ) -> dict[int, set[int]]:
        """By row of a cut one: the tiles that see a whole one of another class on its ground."""
        found: dict[int, set[int]] = {}
        other = (classes[self.first] != classes[self.second]) & (self.likeness > 1)
        for piece, whole in ((self.first, self.second), (self.second, self.first)):
            rows = other & cut[piece] & ~cut[whole]
            for row, tile in zip(piece[rows].tolist(), owners[whole[rows]].tolist(), strict=True):
                found.setdefault(row, set()).add(tile)
        return found


def _is_contradicted(
    group: Sequence[int], against: Mapping[int, set[int]], owners: NDArray[np.int64]
) -> bool:
    """Whether a tile says otherwise that has seen nothing of this object."""
    seen_by = set(owners[group].tolist())
    return any(against.get(row, set()) - seen_by for row in group)


def _starts(side: int, size: int, overlap: int) -> list[int]:
    last = max(side - size, 0)
    return [*range(0, last, size - overlap), last]


def _gathered(parts: Sequence[tuple[Tile, Detections]], size_hw: tuple[int, int]) -> Detections:
    """Everything in pixels of the picture."""
    outlined = all(each.masks is not None for _, each in parts)
    return Detections(
        np.concatenate([each.boxes_xyxy + np.array([t.left, t.top] * 2, np.float32) for t, each in parts]),
        np.concatenate([each.scores for _, each in parts]),
        tuple(label for _, each in parts for label in each.labels),
        np.concatenate([each.indices for _, each in parts]),
        size_hw,
        Masks(tuple(_moved_parts(parts)), size_hw) if outlined else None,
        any(each.untrained for _, each in parts),
    )


def _moved_parts(parts: Sequence[tuple[Tile, Detections]]) -> Iterator[tuple[Part, ...]]:
    for tile, each in parts:
        assert each.masks is not None
        for pieces in each.masks.parts:
            yield tuple(Part(piece.values, _moved(piece.box_xyxy, tile)) for piece in pieces)


def _moved(box: Box, tile: Tile) -> Box:
    left, top, right, bottom = box
    return left + tile.left, top + tile.top, right + tile.left, bottom + tile.top


def _cut_sides(
    boxes: NDArray[np.float64],
    edges: NDArray[np.float64],
    owners: NDArray[np.int64],
    size_hw: tuple[int, int],
) -> NDArray[np.bool_]:
    """(n, 4): on which sides a box ends at a seam. The border of the picture is none."""
    height, width = size_hw
    seams = edges != (0, 0, width, height)
    margins = np.maximum(1, _MARGIN * np.tile(edges[:, 2:] - edges[:, :2], 2))
    return seams[owners] & (np.abs(boxes - edges[owners]) <= margins[owners])


def _compare(
    boxes: NDArray[np.float64], edges: NDArray[np.float64], owners: NDArray[np.int64], cut: NDArray[np.bool_]
) -> _Pairs:
    """Compare the detections of every two tiles that overlap."""
    found: list[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]] = []
    rows = [np.flatnonzero(owners == tile) for tile in range(len(edges))]
    for one, other in _overlapping(edges):
        first, second = (mesh.ravel() for mesh in np.meshgrid(rows[one], rows[other], indexing="ij"))
        shared = np.r_[np.maximum(edges[one], edges[other])[:2], np.minimum(edges[one], edges[other])[2:]]
        likeness = _likeness(boxes, shared, first, second, cut)
        alike = likeness > 0
        found.append((first[alike], second[alike], likeness[alike]))
    if not found:
        return _Pairs(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0))
    return _Pairs(*(np.concatenate(column) for column in zip(*found, strict=True)))


def _overlapping(edges: NDArray[np.float64]) -> Iterator[tuple[int, int]]:
    low, high = edges[:, :2], edges[:, 2:]
    for one in range(len(edges) - 1):
        common = np.minimum(high[one], high[one + 1 :]) > np.maximum(low[one], low[one + 1 :])
        yield from ((one, int(other) + one + 1) for other in np.flatnonzero(common.all(axis=1)))


def _likeness(
    boxes: NDArray[np.float64],
    shared: NDArray[np.float64],
    first: NDArray[np.int64],
    second: NDArray[np.int64],
    cut: NDArray[np.bool_],
) -> NDArray[np.float64]:
    """(m,): 1 + intersection over union from `_SAME` on; else the share of a rest; else 0.

    Where one is cut, only what lies in `shared` is compared; two whole ones are compared as they are.
    """
    either = cut[first] | cut[second]
    bounds = np.where(either[:, None], shared, np.array([-np.inf, -np.inf, np.inf, np.inf]))
    one, other = (_clipped(boxes[rows], bounds) for rows in (first, second))
    common = _areas(np.concatenate([np.maximum(one, other)[:, :2], np.minimum(one, other)[:, 2:]], axis=1))
    tiny = np.finfo(np.float64).tiny
    areas = [np.maximum(_areas(each), tiny) for each in (one, other)]
    union = common / (areas[0] + areas[1] - common)
    inside = np.maximum(
        np.where(cut[first], common / areas[0], 0), np.where(cut[second], common / areas[1], 0)
    )
    return np.where(union >= _SAME, 1 + union, np.where(inside >= _INSIDE, inside, 0))


def _clipped(boxes: NDArray[np.float64], bounds: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.concatenate(
        [np.maximum(boxes[:, :2], bounds[:, :2]), np.minimum(boxes[:, 2:], bounds[:, 2:])], axis=1
    )


def _areas(boxes: NDArray[np.float64]) -> NDArray[np.float64]:
    """0 where the right edge is left of the left one."""
    areas: NDArray[np.float64] = np.maximum(boxes[:, 2:] - boxes[:, :2], 0).prod(axis=1)
    return areas


def _groups(links: Sequence[tuple[int, int]], owners: NDArray[np.int64]) -> list[list[int]]:
    """Rows that are one object each: links are followed in their order, unless two of one tile would meet."""
    groups: dict[int, list[int]] = {row: [row] for row in range(len(owners))}
    for one, other in links:
        here, there = groups[one], groups[other]
        if here is there or set(owners[here].tolist()) & set(owners[there].tolist()):
            continue
        here += there
        for row in there:
            groups[row] = here
    return list({id(group): group for group in groups.values()}.values())


def _joined(found: Detections, groups: Sequence[list[int]], cut: NDArray[np.bool_]) -> Detections:
    """One row per group, by falling score."""
    best = [max(group, key=lambda row: (not cut[row], found.scores[row])) for group in groups]
    pieces = [group if cut[row] else [row] for group, row in zip(groups, best, strict=True)]
    boxes = [
        np.r_[found.boxes_xyxy[rows, :2].min(axis=0), found.boxes_xyxy[rows, 2:].max(axis=0)]
        for rows in pieces
    ]
    masks = None
    if found.masks is not None:
        parts = found.masks.parts
        masks = Masks(
            tuple(tuple(part for row in rows for part in parts[row]) for rows in pieces), found.size_hw
        )
    return Detections(
        np.array(boxes, np.float32).reshape(-1, 4),
        np.array([found.scores[rows].max() for rows in pieces], np.float32),
        tuple(found.labels[row] for row in best),
        found.indices[best],
        found.size_hw,
        masks,
        found.untrained,
    ).top(max(1, len(best)))
