"""Are two lists of detections the same? Neither their order nor what is just above a limit is. NumPy only.

Of nearly equal scores, float32 arithmetic may put either first; of two boxes that overlap by just the limit
of a suppression, it may keep both. So rows are matched by class and place, and a reference says which of its
rows do not hang on a rounding: those must be found, with nearly the same numbers; the others may be.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from saccade.engines.engine import Arrays

__all__ = ["OUTPUTS", "Agreement", "agreement", "differences", "is_reference", "partners"]

OUTPUTS = ("boxes", "scores", "labels", "count")  # of a detector's graph; masks where it gives them
NEAR = 0.02  # how far edges of the same box may be apart, as a share of its longer side and 50 pixels


def is_reference(outputs: Arrays) -> bool:
    """Whether these are the outputs of a detector."""
    return set(OUTPUTS) <= set(outputs)


def partners(expected: Arrays, actual: Arrays, near: float = NEAR) -> NDArray[np.int64]:
    """(N,): the row of `actual` that shows the same object as each row of `expected`; -1 where there is none.

    Both: one picture's boxes (N, 4), scores (N,), labels (N,); rows of score 0 show nothing. near: how far
    edges may be apart, as a share of the box's longer side and 50 pixels.
    """
    boxes, others = (each["boxes"].astype(np.float64) for each in (expected, actual))
    distance = np.abs(boxes[:, None] - others[None]).max(axis=2)
    sides = (boxes[:, 2:] - boxes[:, :2]).max(axis=1)
    same = expected["labels"][:, None] == actual["labels"][None]
    shown = (expected["scores"] > 0)[:, None] & (actual["scores"] > 0)[None]
    beside = distance <= near * (50 + sides[:, None])
    # Boxes that coincide are told apart by their scores.
    cost = distance + np.abs(expected["scores"][:, None] - actual["scores"][None])
    cost = np.where(same & shown & beside, cost, np.inf)
    best = cost.argmin(axis=1)
    return np.where(np.isfinite(cost[np.arange(len(cost)), best]), best, -1)


def differences(expected: Arrays, actual: Arrays) -> dict[str, float]:
    """By output, how far `actual` is from a reference of B pictures.

    expected: in each picture the first `count` rows must be found, the other rows may be. boxes, scores,
    masks: largest absolute difference of the rows that must be found, infinite if one is not. labels: 0, as
    matched rows have the same. count: most rows of a picture that are none of the reference's.
    """
    worst = dict.fromkeys(expected, 0.0)
    for picture, sure in enumerate(expected["count"].astype(int)):
        wanted = {name: expected[name][picture] for name in expected if name != "count"}
        found = {name: actual[name][picture] for name in wanted}
        rows = partners(wanted, found)[:sure]
        extra = (partners(found, wanted)[: int(actual["count"][picture])] < 0).sum()
        worst["count"] = max(worst["count"], float(extra))
        for name in wanted.keys() - {"labels"}:
            apart = np.abs(wanted[name][:sure].astype(np.float64) - found[name][rows])
            largest = np.inf if (rows < 0).any() else float(apart.max(initial=0.0))
            worst[name] = float(np.fmax(worst[name], largest)) if largest == largest else np.inf
    return worst


@dataclass(frozen=True, slots=True)
class Agreement:
    """What two arithmetics answer to the same pictures. rows: of the first; found: by the second too; more:
    rows that only the second has. score, edge_px: the largest differences of what both found."""

    rows: int = 0
    found: int = 0
    more: int = 0
    score: float = 0.0
    edge_px: float = 0.0


def agreement(answers: Iterable[tuple[Arrays, Arrays]]) -> Agreement:
    """Pair by pair, picture by picture; nothing is asked for, unlike in `differences`."""
    rows = found = more = 0
    score = edge_px = 0.0
    for first, second in answers:
        for picture in range(len(first["count"])):
            one, other = (
                {name: each[name][picture][: int(each["count"][picture])] for name in OUTPUTS[:3]}
                for each in (first, second)
            )
            if not len(one["scores"]) or not len(other["scores"]):
                rows, more = rows + len(one["scores"]), more + len(other["scores"])
                continue
            places = partners(one, other)
            both = places >= 0
            rows, found = rows + len(both), found + int(both.sum())
            more += int((partners(other, one) < 0).sum())
            apart = {name: np.abs(one[name][both] - other[name][places[both]]) for name in OUTPUTS[:2]}
            score = max(score, float(apart["scores"].max(initial=0.0)))
            edge_px = max(edge_px, float(apart["boxes"].max(initial=0.0)))
    return Agreement(rows, found, more, score, edge_px)
