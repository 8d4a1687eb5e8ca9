"""Classes with their probabilities."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, TypeAlias, overload

import numpy as np
from numpy.typing import NDArray

from saccade.errors import UsageError

__all__ = ["Classification", "Prediction"]

Rows: TypeAlias = slice | list[int] | list[bool] | NDArray[np.integer] | NDArray[np.bool_]
_SHOWN = 5


@dataclass(frozen=True, slots=True)
class Prediction:
    """One class for one picture. score: its probability, 0..1; index: its place in the model's output."""

    label: str
    score: float
    index: int


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Classification:
    """Classes of one picture, n of them, as columns.

    labels: n names. scores: (n,) float32, softmax probabilities over all classes of the model. indices: (n,)
    int64, places in the model's output. A predictor returns every class in the model's order; `top` sorts.
    untrained: the model has random weights, the scores mean nothing.

    >>> result = Classification(("cat", "dog"), np.float32([0.25, 0.75]), np.arange(2))
    >>> result.top(1)
    Classification(0.750 dog)
    >>> result[result.scores < 0.5][0].label
    'cat'
    """

    labels: tuple[str, ...]
    scores: NDArray[np.float32]
    indices: NDArray[np.int64]
    untrained: bool = False

    def __post_init__(self) -> None:
        rows = (len(self.labels),)
        if self.scores.shape != rows or self.indices.shape != rows:
            raise UsageError(
                f"Classification wants columns of one length: {len(self.labels)} labels, scores of shape "
                f"{self.scores.shape}, indices of shape {self.indices.shape}"
            )

    def top(self, k: int) -> Classification:
        """The `k` best (all, if there are fewer), best first; equal scores in the order of the index."""
        if k < 1:
            raise UsageError(f"top({k}): k must be at least 1")
        return self[np.argsort(-self.scores, kind="stable")[:k]]

    def __len__(self) -> int:
        return len(self.labels)

    def __iter__(self) -> Iterator[Prediction]:
        return map(Prediction, self.labels, self.scores.tolist(), self.indices.tolist())

    @overload
    def __getitem__(self, rows: int | np.integer) -> Prediction: ...
    @overload
    def __getitem__(self, rows: Rows) -> Classification: ...
    def __getitem__(self, rows: int | np.integer | Rows) -> Prediction | Classification:
        """One Prediction for an index; a Classification for a slice, a mask or several indices."""
        if isinstance(rows, int | np.integer):
            return Prediction(self.labels[rows], float(self.scores[rows]), int(self.indices[rows]))
        chosen = np.arange(len(self))[rows]
        labels = tuple(self.labels[i] for i in chosen.tolist())
        return Classification(labels, self.scores[rows], self.indices[rows], self.untrained)

    def to_json(self, top: int | None = None) -> dict[str, Any]:
        """Plain dict of JSON types, one object per row: all of them, or the `top` best."""
        if top is not None:
            return self.top(top).to_json()
        marked = {"untrained": True} if self.untrained else {}
        return {"predictions": [asdict(prediction) for prediction in self], **marked}

    def summary(self, top: int = 5) -> str:
        """The `top` best on one line."""
        return "   ".join(f"{row.label} {row.score:.3f}" for row in self.top(top))

    def __repr__(self) -> str:
        shown = [f"{row.score:.3f} {row.label}" for row in self[:_SHOWN]]
        more = [f"{len(self) - _SHOWN} more"] if len(self) > _SHOWN else []
        return f"Classification({', '.join(shown + more)}{', UNTRAINED' if self.untrained else ''})"
