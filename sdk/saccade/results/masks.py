"""Outlines of objects in one picture: kept small, made into pixels when they are looked at.

A network gives each object a map of 28 x 28 probabilities for its box. As pixels, a hundred objects of a
picture of 4000 x 3000 are 1.2 GB; as maps they are 0.3 MB. So `Masks` keeps the maps: indexing makes one
mask, `numpy.asarray` all of them, and what needs only the pixels near a box asks for `crop`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, overload

import numpy as np
from numpy.typing import NDArray

from saccade.errors import UsageError
from saccade.results import rle

__all__ = ["Crop", "Masks", "Part", "paste"]

Rows: TypeAlias = slice | Sequence[int] | Sequence[bool] | NDArray[np.integer] | NDArray[np.bool_]
Box: TypeAlias = tuple[float, float, float, float]

THRESHOLD = 0.5  # of the probability, from which on a pixel belongs to the object


@dataclass(frozen=True, slots=True)
class Crop:
    """Pixels (h, w) bool of a mask that is empty elsewhere; corner_yx: where they lie in the picture."""

    pixels: NDArray[np.bool_]
    corner_yx: tuple[int, int]

    @property
    def window(self) -> tuple[slice, slice]:
        """The rows and columns of the picture."""
        (top, left), (height, width) = self.corner_yx, self.pixels.shape
        return slice(top, top + height), slice(left, left + width)


@dataclass(frozen=True, slots=True)
class Part:
    """A map stretched over a box: (h, w) float32 probabilities, or bool pixels of a box of that very size."""

    values: NDArray[np.float32] | NDArray[np.bool_]
    box_xyxy: Box


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Masks:
    """n masks of a picture of `size_hw`. An object seen in several tiles has several parts: their union.

    >>> masks = Masks.from_maps(np.ones((1, 28, 28), np.float32), np.float32([[1, 0, 3, 2]]), (2, 4))
    >>> masks[0].astype(int)
    array([[0, 1, 1, 0],
           [0, 1, 1, 0]])
    """

    parts: tuple[tuple[Part, ...], ...]
    size_hw: tuple[int, int]

    @classmethod
    def from_maps(
        cls, maps: NDArray[np.float32], boxes_xyxy: NDArray[np.float32], size_hw: tuple[int, int]
    ) -> Masks:
        """From probabilities (n, h, w) for boxes (n, 4) in pixels of the picture."""
        boxes: list[Box] = [tuple(box) for box in boxes_xyxy.tolist()]
        return cls(tuple((Part(*pair),) for pair in zip(maps, boxes, strict=True)), size_hw)

    @classmethod
    def from_array(cls, pixels: NDArray[np.bool_]) -> Masks:
        """From masks (n, H, W) bool."""
        if pixels.ndim != 3 or pixels.dtype != np.bool_:
            raise UsageError(f"masks are (n, H, W) bool, not {pixels.shape} {pixels.dtype}")
        return cls(tuple((_part(mask),) for mask in pixels), (pixels.shape[1], pixels.shape[2]))

    @property
    def shape(self) -> tuple[int, int, int]:
        """(n, H, W), as of an array."""
        return (len(self), *self.size_hw)

    def __len__(self) -> int:
        return len(self.parts)

    def __iter__(self) -> Iterator[NDArray[np.bool_]]:
        return (self[row] for row in range(len(self)))

    @overload
    def __getitem__(self, rows: int | np.integer) -> NDArray[np.bool_]: ...
    @overload
    def __getitem__(self, rows: Rows) -> Masks: ...
    def __getitem__(self, rows: int | np.integer | Rows) -> NDArray[np.bool_] | Masks:
        """One mask (H, W) bool for an index; Masks for a slice, a boolean mask or several indices."""
        if isinstance(rows, int | np.integer):
            whole = np.zeros(self.size_hw, np.bool_)
            crop = self.crop(int(rows))
            whole[crop.window] = crop.pixels
            return whole
        return Masks(tuple(self.parts[row] for row in np.arange(len(self))[rows].tolist()), self.size_hw)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        """All of them, (n, H, W) bool: n x H x W bytes."""
        pixels = np.zeros(self.shape, np.bool_)
        for row, whole in enumerate(pixels):
            crop = self.crop(row)
            whole[crop.window] = crop.pixels
        return pixels if dtype is None else pixels.astype(dtype)

    def crop(self, row: int) -> Crop:
        """The part of one mask outside which it is empty."""
        crops = [_crop(part, self.size_hw) for part in self.parts[row]]
        return crops[0] if len(crops) == 1 else _union(crops)

    def areas(self) -> NDArray[np.int64]:
        """Pixels of each, (n,)."""
        return np.array([np.count_nonzero(self.crop(row).pixels) for row in range(len(self))], np.int64)

    def to_coco(self, row: int) -> dict[str, Any]:
        """One mask as COCO's compressed runs: {"size": [H, W], "counts": text}."""
        crop = self.crop(row)
        runs = rle.counts(crop.pixels, crop.corner_yx, self.size_hw)
        return {"size": list(self.size_hw), "counts": rle.text(runs)}

    def __repr__(self) -> str:
        return f"Masks({len(self)} of {self.size_hw[0]}x{self.size_hw[1]})"


def paste(
    values: NDArray[np.float32], box_xyxy: Box, rows: tuple[int, int], columns: tuple[int, int]
) -> NDArray[np.float32]:
    """`values` (h, w) stretched over a box, at the pixels of `rows` x `columns` (first, end): float32.

    Bilinear at the pixels' centres, zero outside, corners not aligned: mmdet's `_do_paste_mask`. A box
    without width has the map's middle in every column, and one without height in every row. (Each axis is
    interpolated by itself. As a product of matrices it would be shorter, and on a busy machine much slower:
    BLAS wakes all its threads for each object.)
    """
    left, top, right, bottom = box_xyxy
    padded = np.pad(values, 1)
    row, down = _places(rows, top, bottom, values.shape[0])
    lines = padded[row] + np.diff(padded, axis=0)[row] * down[:, None]
    column, across = _places(columns, left, right, values.shape[1])
    pasted: NDArray[np.float32] = np.diff(lines, axis=1).take(column, axis=1)
    pasted *= across
    pasted += lines.take(column, axis=1)
    return pasted


def _places(
    span: tuple[int, int], first: float, last: float, size: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """For each pixel the entry before it in a map with a border of zeros, and the way to the next, 0..1."""
    centres = np.arange(*span) + 0.5
    if last == first:
        place = np.full(len(centres), (size - 1) / 2)
    else:
        place = (centres - first) / (last - first) * size - 0.5
    place = place.clip(-1, size) + 1
    before = np.minimum(place.astype(np.int64), size)
    return before, (place - before).astype(np.float32)


def _crop(part: Part, size_hw: tuple[int, int]) -> Crop:
    left, top, right, bottom = part.box_xyxy
    if part.values.dtype == np.bool_:
        return Crop(part.values.astype(np.bool_, copy=False), (int(top), int(left)))
    rows, columns = _span(top, bottom, size_hw[0]), _span(left, right, size_hw[1])
    values = part.values.astype(np.float32, copy=False)
    return Crop(paste(values, part.box_xyxy, rows, columns) >= THRESHOLD, (rows[0], columns[0]))


def _span(first: float, last: float, size: int) -> tuple[int, int]:
    """Pixels (first, end) outside which a map cannot reach the threshold."""
    if last == first:
        return 0, size
    start = min(max(int(np.floor(first)), 0), size)
    return start, min(max(int(np.ceil(last)), start), size)


def _union(crops: Sequence[Crop]) -> Crop:
    windows = [crop.window for crop in crops]
    top, left = (min(window[axis].start for window in windows) for axis in (0, 1))
    bottom, right = (max(window[axis].stop for window in windows) for axis in (0, 1))
    pixels = np.zeros((bottom - top, right - left), np.bool_)
    for crop, (rows, columns) in zip(crops, windows, strict=True):
        pixels[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left] |= crop.pixels
    return Crop(pixels, (top, left))


def _part(mask: NDArray[np.bool_]) -> Part:
    """`mask` (H, W) without its empty margins."""
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    if len(rows) == 0:
        return Part(np.zeros((0, 0), np.bool_), (0, 0, 0, 0))
    top, bottom, left, right = (int(each) for each in (rows[0], rows[-1] + 1, columns[0], columns[-1] + 1))
    return Part(mask[top:bottom, left:right].copy(), (left, top, right, bottom))
