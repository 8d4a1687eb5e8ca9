"""OpenCV's bilinear resize of 8-bit pictures, equal to the bit with and without OpenCV installed.

What OpenCV's INTER_LINEAR computes for uint8: weights rounded to 11 bits, rows blended first, then columns
with the sums cut to 16 bits. Halving both sides exactly is the mean of four pixels instead.
"""

from __future__ import annotations

import importlib.util
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from saccade.pictures import RgbArray

__all__ = ["resize", "resize_in_numpy"]

_ONE = 2048  # weights have 11 bits


def resize(picture: RgbArray, size_hw: tuple[int, int]) -> RgbArray:
    """`picture` (H, W, 3) uint8 at `size_hw`, by OpenCV where it is installed."""
    if not _has_opencv():
        return resize_in_numpy(picture, size_hw)
    import cv2

    resized: RgbArray = cv2.resize(picture, (size_hw[1], size_hw[0]), interpolation=cv2.INTER_LINEAR)
    return resized


def resize_in_numpy(
    picture: RgbArray,
    size_hw: tuple[int, int],
    rows: slice = slice(None),
    columns: slice = slice(None),
) -> RgbArray:
    """The same from NumPy alone; `rows` and `columns` of the resized picture are all that is computed."""
    height, width = picture.shape[:2]
    if (height, width) == size_hw:
        return picture[rows, columns]
    if (height, width) == (2 * size_hw[0], 2 * size_hw[1]):
        return _halved(picture)[rows, columns]
    above, below, upper, lower = (part[rows] for part in _vertical(height, size_hw[0]))
    left, right, near, far = (part[columns] for part in _horizontal(width, size_hw[1]))
    # Only the source rows that are used: the enlarged rows are the large array here.
    used, places = np.unique(np.concatenate([above, below]), return_inverse=True)
    source = picture[used]
    blended = source[:, left] * near[:, None] + source[:, right] * far[:, None]
    blended >>= 4
    top, bottom = blended[places[: len(above)]], blended[places[len(above) :]]
    sums = (upper[:, None, None] * top >> 16) + (lower[:, None, None] * bottom >> 16)
    return ((sums + 2) >> 2).astype(np.uint8)


def _halved(picture: RgbArray) -> RgbArray:
    wide = picture.astype(np.uint16)
    return ((wide[::2, ::2] + wide[::2, 1::2] + wide[1::2, ::2] + wide[1::2, 1::2] + 2) >> 2).astype(np.uint8)


_Axis = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int32], NDArray[np.int32]]


def _horizontal(source: int, target: int) -> _Axis:
    """Columns to blend and their weights; beyond the first and last column the weight goes to it alone."""
    first, fraction = _positions(source, target)
    fraction[(first < 0) | (first >= source - 1)] = 0
    first = first.clip(0, source - 1)
    return first, np.minimum(first + 1, source - 1), *_weights(fraction)


def _vertical(source: int, target: int) -> _Axis:
    """Rows to blend and their weights; beyond the first and last row it is blended with itself."""
    first, fraction = _positions(source, target)
    return first.clip(0, source - 1), (first + 1).clip(0, source - 1), *_weights(fraction)


def _positions(source: int, target: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Pixel centres of the target in the source, in float32 as OpenCV has them: whole part and fraction."""
    scale = 1.0 / (target / source)
    position = ((np.arange(target) + 0.5) * scale - 0.5).astype(np.float32)
    first = np.floor(position)
    return first.astype(np.int64), position - first


def _weights(fraction: NDArray[np.float32]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    def fixed(weight: NDArray[Any]) -> NDArray[np.int32]:
        return np.rint(weight * np.float32(_ONE)).astype(np.int32)

    return fixed(np.float32(1) - fraction), fixed(fraction)


@cache
def _has_opencv() -> bool:
    return importlib.util.find_spec("cv2") is not None
