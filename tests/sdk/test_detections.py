"""Detections: columns that behave like an array of objects, and the forms they are handed on in."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from saccade import UsageError
from saccade.results.detections import Detection, Detections
from saccade.results.masks import Masks

BOXES = np.array([[0, 0, 4, 4], [1, 2, 5, 6], [3, 3, 8, 5]], np.float32)


@pytest.fixture
def found() -> Detections:
    """Three objects in a picture of 6 x 8, each a filled box."""
    masks = np.zeros((3, 6, 8), bool)
    for mask, (left, top, right, bottom) in zip(masks, BOXES.astype(int), strict=True):
        mask[top:bottom, left:right] = True
    return Detections(
        BOXES,
        np.array([0.75, 0.5, 0.25], np.float32),
        ("cat", "dog", "cat"),
        np.array([15, 16, 15]),
        (6, 8),
        Masks.from_array(masks),
    )


@pytest.mark.parametrize(
    ("rows", "scores"),
    [
        (slice(1, 3), [0.5, 0.25]),
        ([2, 0], [0.25, 0.75]),
        (np.array([True, False, True]), [0.75, 0.25]),
        ([False, True, False], [0.5]),
        (slice(0, 0), []),
    ],
)
def test_indexing_gives_detections(found: Detections, rows: Any, scores: list[float]) -> None:
    chosen = found[rows]
    assert chosen.scores.tolist() == scores
    assert chosen.labels == tuple(found.labels[found.scores.tolist().index(score)] for score in scores)
    assert found.masks is not None
    np.testing.assert_array_equal(np.asarray(chosen.masks), np.asarray(found.masks)[rows])


@pytest.mark.parametrize("row", [1, -2, np.int64(1)])
def test_one_row_is_a_detection(found: Detections, row: int) -> None:
    assert found[row] == Detection("dog", 0.5, 16, (1.0, 2.0, 5.0, 6.0))
    mask = found[row].mask
    assert mask is not None
    assert mask.shape == (6, 8)
    assert mask.sum() == 16


def test_iteration_gives_every_row(found: Detections) -> None:
    assert [each.label for each in found] == ["cat", "dog", "cat"]
    assert [int(each.mask.sum()) for each in found if each.mask is not None] == [16, 16, 10]


def test_without_masks_there_are_none(found: Detections) -> None:
    boxes = Detections(found.boxes_xyxy, found.scores, found.labels, found.indices, found.size_hw)
    assert boxes[0].mask is None
    assert "mask" not in boxes.to_json()["detections"][0]
    assert "segmentation" not in boxes.to_coco(1)[0]
    assert boxes.to_supervision().mask is None


def test_top_sorts_and_keeps_ties_in_order(found: Detections) -> None:
    shuffled = found[[2, 1, 0]]
    assert shuffled.top(2).scores.tolist() == [0.75, 0.5]
    assert len(shuffled.to_json(top=1)["detections"]) == 1
    with pytest.raises(UsageError, match="k must be at least 1"):
        found.top(0)


def test_json_is_plain(found: Detections) -> None:
    read = json.loads(json.dumps(found.to_json()))
    assert read["size_hw"] == [6, 8]
    assert read["detections"][1] == {
        "label": "dog",
        "score": 0.5,
        "index": 16,
        "box_xyxy": [1.0, 2.0, 5.0, 6.0],
        "mask": {"size": [6, 8], "counts": "84200000`0"},
    }


def test_coco_rows_have_width_and_height(found: Detections) -> None:
    rows = found.to_coco(7, {"cat": 17, "dog": 18})
    assert rows[2]["bbox"] == [3.0, 3.0, 5.0, 2.0]
    assert [(row["image_id"], row["category_id"]) for row in rows] == [(7, 17), (7, 18), (7, 17)]
    assert [row["category_id"] for row in found.to_coco(7)] == [16, 17, 16]


def test_supervision_sees_the_same(found: Detections) -> None:
    seen = found.to_supervision()
    np.testing.assert_array_equal(seen.xyxy, found.boxes_xyxy)
    assert seen["class_name"].tolist() == list(found.labels)
    assert seen.mask is not None
    assert seen.mask.sum(axis=(1, 2)).tolist() == [16, 16, 10]
    np.testing.assert_allclose(seen.area, [16, 16, 10])


@pytest.mark.parametrize(
    ("top", "line"),
    [(5, "2 cat 0.750   1 dog 0.500"), (1, "2 cat 0.750   1 more classes")],
)
def test_the_summary_counts_classes(found: Detections, top: int, line: str) -> None:
    assert found.summary(top) == line
    assert found[:0].summary() == "nothing found"


def test_an_untrained_result_says_so_everywhere(found: Detections) -> None:
    untrained = Detections(BOXES, found.scores, found.labels, found.indices, (6, 8), untrained=True)
    assert untrained[:1].to_json()["untrained"] is True
    assert "UNTRAINED" in repr(untrained[1:])
    assert "UNTRAINED" not in repr(found)


@pytest.mark.parametrize(
    "column",
    [
        {"boxes_xyxy": BOXES[:2]},
        {"scores": np.zeros((3, 1), np.float32)},
        {"masks": Masks.from_array(np.zeros((2, 6, 8), bool))},
        {"masks": Masks.from_array(np.zeros((3, 8, 6), bool))},
    ],
)
def test_columns_that_do_not_fit_are_refused(found: Detections, column: dict[str, Any]) -> None:
    columns = {name: getattr(found, name) for name in Detections.__slots__}
    with pytest.raises(UsageError, match=r"3 (labels|detections)"):
        Detections(**{**columns, **column})
