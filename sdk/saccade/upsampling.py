"""From coarse answers to the pixels of the picture: bilinear, pixel centres aligned, in NumPy.

A graph answers on a grid coarser than what it was fed, which was scaled and padded; here the original
picture's pixels are looked up on that grid directly, so that nothing is resampled twice.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from saccade.errors import BundleError
from saccade.models.card import Card
from saccade.preprocess import Batch

__all__ = ["Axis", "axis", "bilinear", "cells_per_pixel", "labels", "require_whole_pictures"]

_CHUNK = 8192  # pixels that are interpolated together, so that their classes fit a processor's cache


@dataclass(frozen=True, slots=True)
class Axis:
    """Where the n pixels of a side lie on the grid: between cells `low` and `high`, `share` of the way."""

    low: NDArray[np.int64]
    high: NDArray[np.int64]
    share: NDArray[np.float32]


def axis(pixels: int, cells: int, cells_per_pixel: float, first: float = 0.0) -> Axis:
    """A side of `pixels` on a grid of `cells`; what lies before the first centre or beyond the last is its.

    first: where the side begins, in cells.

    >>> axis(4, 2, 0.5).share.tolist()
    [0.0, 0.25, 0.75, 0.0]
    """
    places = np.clip((np.arange(pixels) + 0.5) * cells_per_pixel - 0.5 + first, 0, cells - 1)
    low = np.floor(places).astype(np.int64)
    return Axis(low, np.minimum(low + 1, cells - 1), (places - low).astype(np.float32))


def cells_per_pixel(batch: Batch, row: int, grid: NDArray[Any]) -> tuple[float, float]:
    """Cells of the graph's answer (..., h, w) per pixel of the picture as it was given, down and across."""
    down, across = (
        resized / original * (cells / fed)
        for original, resized, cells, fed in zip(
            batch.originals_hw[row],
            batch.resized_hw[row],
            grid.shape[-2:],
            batch.image.shape[2:],
            strict=True,
        )
    )
    return down, across


def bilinear(grid: NDArray[np.float32], rows: Axis, columns: Axis) -> NDArray[np.float32]:
    """(..., h, w) -> (..., H, W)."""
    across = grid[..., columns.low]
    across += columns.share * (grid[..., columns.high] - across)
    found = across[..., rows.low, :]
    found += rows.share[:, None] * (across[..., rows.high, :] - found)
    return found


def labels(logits: NDArray[np.float32], rows: Axis, columns: Axis) -> NDArray[np.uint8] | NDArray[np.uint16]:
    """(K, h, w) -> (H, W): the class with the largest interpolated logit, the first of equals.

    Where the four cells around a pixel have the same best class, so has every mixture of them: only the other
    pixels, those along borders, are interpolated in all K classes.
    """
    classes, height, width = logits.shape
    dtype = np.uint8 if classes <= 256 else np.uint16
    cells = np.ascontiguousarray(logits.reshape(classes, -1).T)
    best = cells.argmax(1).astype(dtype).reshape(height, width)
    found = best[rows.low][:, columns.low]
    mixed = found != best[rows.low][:, columns.high]
    mixed |= found != best[rows.high][:, columns.low]
    mixed |= found != best[rows.high][:, columns.high]
    y, x = np.nonzero(mixed)
    for start in range(0, len(y), _CHUNK):
        part = slice(start, start + _CHUNK)
        found[y[part], x[part]] = _interpolated(cells, width, rows, columns, y[part], x[part]).argmax(1)
    return found


def _interpolated(
    cells: NDArray[np.float32],
    width: int,
    rows: Axis,
    columns: Axis,
    y: NDArray[np.int64],
    x: NDArray[np.int64],
) -> NDArray[np.float32]:
    """(n, K): logits of the pixels (y, x); cells: (h * w, K)."""
    upper = _between(cells, rows.low[y] * width, columns, x)
    lower = _between(cells, rows.high[y] * width, columns, x)
    upper += rows.share[y, None] * (lower - upper)
    return upper


def _between(
    cells: NDArray[np.float32], row: NDArray[np.int64], columns: Axis, x: NDArray[np.int64]
) -> NDArray[np.float32]:
    left = cells[row + columns.low[x]]
    left += columns.share[x, None] * (cells[row + columns.high[x]] - left)
    return left


def require_whole_pictures(card: Card) -> None:
    """BundleError for a card that crops: what is cut off would have no answer."""
    if card.preprocessing.resize == "shorter":
        raise BundleError(
            f"{card.name}: its card crops pictures, and a {card.task} model must answer for all of them: "
            "use resize 'fit' or 'stretch'"
        )
