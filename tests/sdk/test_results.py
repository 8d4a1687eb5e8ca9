"""Classification: columns that behave like an array of predictions."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from saccade import Classification, UsageError
from saccade.results.classification import Prediction


@pytest.fixture
def result() -> Classification:
    return Classification(
        ("ant", "bee", "cat", "dog"), np.array([0.125, 0.25, 0.5, 0.125], np.float32), np.arange(4)
    )


def test_top_sorts_and_keeps_ties_in_order(result: Classification) -> None:
    assert result.top(4).labels == ("cat", "bee", "ant", "dog")
    assert result.top(99).indices.tolist() == [2, 1, 0, 3]
    assert result.top(1)[0] == Prediction("cat", 0.5, 2)
    with pytest.raises(UsageError, match="k must be at least 1"):
        result.top(0)


@pytest.mark.parametrize(
    ("rows", "labels"),
    [
        (slice(1, 3), ("bee", "cat")),
        ([3, 0], ("dog", "ant")),
        (np.array([2]), ("cat",)),
        (np.array([True, False, False, True]), ("ant", "dog")),
        ([False, True, False, False], ("bee",)),
        (slice(0, 0), ()),
    ],
)
def test_indexing_gives_a_classification(result: Classification, rows: Any, labels: tuple[str, ...]) -> None:
    chosen = result[rows]
    assert chosen.labels == labels
    assert [result.labels[i] for i in chosen.indices] == list(labels)
    assert len(chosen) == len(labels)


def test_indexing_by_score(result: Classification) -> None:
    assert result[result.scores > 0.2].labels == ("bee", "cat")


@pytest.mark.parametrize("row", [1, -3, np.int64(1)])
def test_one_row_is_a_prediction(result: Classification, row: int) -> None:
    assert result[row] == Prediction(label="bee", score=0.25, index=1)


def test_iteration_and_length(result: Classification) -> None:
    assert [(p.label, p.score, p.index) for p in result] == [
        ("ant", 0.125, 0),
        ("bee", 0.25, 1),
        ("cat", 0.5, 2),
        ("dog", 0.125, 3),
    ]
    assert len(result) == 4


def test_json_is_plain(result: Classification) -> None:
    assert json.loads(json.dumps(result.top(2).to_json())) == {
        "predictions": [
            {"label": "cat", "score": 0.5, "index": 2},
            {"label": "bee", "score": 0.25, "index": 1},
        ]
    }


def test_an_untrained_result_says_so_everywhere(result: Classification) -> None:
    untrained = Classification(result.labels, result.scores, result.indices, untrained=True)
    assert untrained.top(1).to_json()["untrained"] is True
    assert "UNTRAINED" in repr(untrained[1:])
    assert "UNTRAINED" not in repr(result)


def test_printing_shows_the_first_five() -> None:
    many = Classification(tuple("abcdefgh"), np.full(8, 0.125, np.float32), np.arange(8))
    assert repr(many).endswith("0.125 e, 3 more)")


@pytest.mark.parametrize("scores", [np.zeros(3, np.float32), np.zeros((4, 1), np.float32)])
def test_columns_of_different_lengths_are_refused(scores: Any) -> None:
    with pytest.raises(UsageError, match="4 labels"):
        Classification(("a", "b", "c", "d"), scores, np.arange(4))


def test_results_are_frozen(result: Classification) -> None:
    with pytest.raises(AttributeError):
        result.untrained = True  # type: ignore[misc]
