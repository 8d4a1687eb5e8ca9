"""Masks as COCO writes them: runs of zeros and ones, column by column, and the text form of these.

Equal to pycocotools' `mask.encode`, without the package and without the whole picture in memory.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["counts", "text"]

_BITS = 5  # of a number in each letter; a sixth says that more follow
_FIRST = 48  # the letter "0"
_LETTERS = 13  # of the longest number of 64 bits


def counts(
    crop: NDArray[np.bool_], corner_yx: tuple[int, int], size_hw: tuple[int, int]
) -> NDArray[np.int64]:
    """Lengths of the runs of a mask (size_hw) that is `crop` at `corner_yx` and zero elsewhere.

    The first run is of zeros and may have length 0, then ones and zeros alternate; along columns.

    >>> counts(np.ones((2, 2), bool), (1, 0), (3, 2)).tolist()
    [1, 2, 1, 2]
    """
    height, width = size_hw
    top, left = corner_yx
    columns = np.zeros((crop.shape[1], crop.shape[0] + 2), np.int8)
    columns[:, 1:-1] = crop.T
    change = np.diff(columns, axis=1)
    # Place in the whole picture, counted along columns: where ones begin, and where they have ended.
    starts, ends = (
        (column + left) * height + row + top
        for column, row in (np.nonzero(change == step) for step in (1, -1))
    )
    if len(starts) == 0:
        return np.array([height * width])
    joined = starts[1:] == ends[:-1]  # from the foot of one column to the head of the next
    starts, ends = starts[np.r_[True, ~joined]], ends[np.r_[~joined, True]]
    edges = np.stack([starts, ends], axis=1).ravel()
    runs = np.diff(edges, prepend=0)
    rest = height * width - edges[-1]
    return np.append(runs, rest) if rest else runs


def text(runs: NDArray[np.int64]) -> str:
    """COCO's compressed form of `counts`.

    From the fourth on, each run is written as its difference to the last run of its kind; numbers go in
    groups of five bits, lowest first, until the rest is only sign.

    >>> text(np.array([1, 2, 1, 2]))
    '1210'
    """
    values = runs.astype(np.int64)
    values[3:] -= runs[1:-2]
    letters = np.zeros((len(values), _LETTERS), np.uint8)
    used = np.zeros((len(values), _LETTERS), bool)
    more = np.ones(len(values), bool)
    for place in range(_LETTERS):
        group = values & 31
        values = values >> _BITS
        used[:, place] = more
        further = np.where(group & 16, values != -1, values != 0)
        letters[:, place] = group + 32 * further + _FIRST
        more = more & further
        if not more.any():
            break
    return letters[used].tobytes().decode("ascii")
