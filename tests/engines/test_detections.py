"""Detections of two engines are the same whatever their order, and different where a sure one is."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from saccade.engines.conformance import Sample, differences
from saccade.engines.detections import Agreement, agreement

Arrays = dict[str, NDArray[Any]]


def found(rows: list[tuple[float, float, int]], count: int | None = None, kept: int = 5) -> Arrays:
    """One picture with boxes of 40 x 40 at (left, left), each (left, score, label)."""
    outputs: Arrays = {
        "boxes": np.zeros((1, kept, 4), np.float32),
        "scores": np.zeros((1, kept), np.float32),
        "labels": np.zeros((1, kept), np.int64),
        "count": np.array([len(rows) if count is None else count]),
        "masks": np.zeros((1, kept, 2, 2), np.float32),
    }
    for place, (left, score, label) in enumerate(rows):
        outputs["boxes"][0, place] = (left, left, left + 40, left + 40)
        outputs["scores"][0, place], outputs["labels"][0, place] = score, label
        outputs["masks"][0, place] = left / 100
    return outputs


ROWS = [(10.0, 0.9, 1), (60.0, 0.8, 1), (10.0, 0.7, 2)]
SAME = dict.fromkeys(("boxes", "scores", "labels", "count", "masks"), 0.0)


def test_order_does_not_matter() -> None:
    assert differences(found(ROWS), found(ROWS[::-1])) == SAME


def test_small_differences_are_measured() -> None:
    moved = [(10.5, 0.9, 1), (60.0, 0.78, 1), ROWS[2]]
    measured = differences(found(ROWS), found(moved))
    assert measured["boxes"] == pytest.approx(0.5)
    assert measured["scores"] == pytest.approx(0.02, abs=1e-6)
    assert measured["masks"] == pytest.approx(0.005, abs=1e-6)
    assert measured["labels"] == measured["count"] == 0


@pytest.mark.parametrize(
    "rows",
    [ROWS[:2], [*ROWS[:2], (10.0, 0.7, 3)], [*ROWS[:2], (15.0, 0.7, 2)], []],
    ids=["missing", "another class", "elsewhere", "none"],
)
def test_a_sure_row_must_be_there(rows: list[tuple[float, float, int]]) -> None:
    assert differences(found(ROWS), found(rows))["boxes"] == np.inf


def test_an_unsure_row_may_be_missing_and_only_it_may() -> None:
    expected = found(ROWS, count=2)
    assert differences(expected, found(ROWS[:2])) == SAME
    assert differences(expected, found(ROWS)) == SAME
    assert differences(expected, found(ROWS[1:]))["boxes"] == np.inf


def test_rows_that_nobody_expected_are_counted() -> None:
    extra = [*ROWS, (30.0, 0.6, 1), (45.0, 0.5, 2)]
    assert differences(found(ROWS), found(extra)) == SAME | {"count": 2.0}


@pytest.mark.parametrize("output", ["boxes", "scores", "masks"])
def test_nan_is_different(output: str) -> None:
    actual = found(ROWS)
    actual[output][0, 0] = np.nan
    assert not differences(found(ROWS), actual)[output] <= 1e9


def test_boxes_that_coincide_are_told_apart_by_their_scores() -> None:
    twins = [(10.0, 0.9, 1), (10.0, 0.3, 1)]
    assert differences(found(twins), found(twins[::-1])) == SAME


def test_boxes_without_area_have_partners_too() -> None:
    flat = found(ROWS)
    flat["boxes"][0, 0, 2:] = flat["boxes"][0, 0, :2]
    assert differences(flat, flat) == SAME


def test_a_sample_of_a_detector_compares_by_rows() -> None:
    sample = Sample({}, found(ROWS), {name: 0.1 for name in SAME})
    assert all(row.agrees for row in sample.differences(found(ROWS[::-1])))
    assert [row.output for row in sample.differences(found(ROWS[:2])) if not row.agrees] == [
        "boxes",
        "scores",
        "masks",
    ]


NOTHING: list[tuple[float, float, int]] = []
PAIRS = [
    (ROWS, ROWS[::-1], (3, 3, 0, 0.0, 0.0)),
    (ROWS, [(10.5, 0.75, 1), (60.0, 0.8, 1)], (3, 2, 0, 0.15, 0.5)),
    (ROWS[:1], [*ROWS, (90.0, 0.5, 4)], (1, 1, 3, 0.0, 0.0)),
    (ROWS, NOTHING, (3, 0, 0, 0.0, 0.0)),
    (NOTHING, ROWS, (0, 0, 3, 0.0, 0.0)),
    (NOTHING, NOTHING, (0, 0, 0, 0.0, 0.0)),
]


@pytest.mark.parametrize(("first", "second", "expected"), PAIRS)
def test_agreement_counts_what_both_found(
    first: list[tuple[float, float, int]],
    second: list[tuple[float, float, int]],
    expected: tuple[int, int, int, float, float],
) -> None:
    seen = agreement([(found(first), found(second))])
    assert (seen.rows, seen.found, seen.more) == expected[:3]
    assert (seen.score, seen.edge_px) == pytest.approx(expected[3:], abs=1e-6)


def test_agreement_is_summed_over_pictures_and_only_shown_rows_count() -> None:
    hidden = found(ROWS, count=1)
    both = agreement([(hidden, hidden), (found(ROWS), found(ROWS[1:]))])
    assert both == Agreement(rows=4, found=3)
