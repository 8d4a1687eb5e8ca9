"""Pictures or texts as vectors of one space."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from saccade.errors import UsageError

__all__ = ["Embeddings", "normalised"]

_SHOWN = 4


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Embeddings:
    """Vectors of pictures or texts, n of them, as rows of length one.

    vectors: (n, width) float32. untrained: the model has random weights, the vectors mean nothing.

    >>> one, other = Embeddings(np.float32([[1, 0]])), Embeddings(np.float32([[0.6, 0.8]]))
    >>> one.similarity(other)
    array([[0.6]], dtype=float32)
    """

    vectors: NDArray[np.float32]
    untrained: bool = False

    def __post_init__(self) -> None:
        if self.vectors.ndim != 2:
            raise UsageError(f"Embeddings wants vectors (n, width), not of shape {self.vectors.shape}")

    @property
    def width(self) -> int:
        """Numbers per vector."""
        return self.vectors.shape[1]

    def similarity(self, other: Embeddings) -> NDArray[np.float32]:
        """Cosines of the angles, (n, m): of every row of this with every row of `other`."""
        if self.width != other.width:
            raise UsageError(f"vectors of {self.width} and of {other.width} numbers: not of one model")
        similar: NDArray[np.float32] = self.vectors @ other.vectors.T
        return similar

    def __len__(self) -> int:
        return len(self.vectors)

    def __iter__(self) -> Iterator[NDArray[np.float32]]:
        return iter(self.vectors)

    def __getitem__(self, rows: slice | NDArray[Any] | list[int]) -> Embeddings:
        """Several rows, as a slice, a mask or indices."""
        return Embeddings(self.vectors[rows], self.untrained)

    def to_json(self, top: int | None = None) -> dict[str, Any]:
        """Plain dict of JSON types: the vectors. There is no best one, so `top` changes nothing."""
        marked = {"untrained": True} if self.untrained else {}
        return {"embeddings": self.vectors.tolist(), **marked}

    def summary(self, top: int = 5) -> str:
        """The first numbers of the first vector."""
        if not len(self):
            return f"no vectors of {self.width} numbers"
        shown = ", ".join(f"{value:.3f}" for value in self.vectors[0, :_SHOWN])
        more = f", and {len(self) - 1} vectors more" if len(self) > 1 else ""
        return f"{self.width} numbers: {shown}, ...{more}"

    def __repr__(self) -> str:
        return f"Embeddings({len(self)} x {self.width}{', UNTRAINED' if self.untrained else ''})"


def normalised(vectors: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
    """Rows of length one, rounded once; a row of zeros stays so."""
    wide = vectors.astype(np.float64)
    lengths = np.linalg.norm(wide, axis=-1, keepdims=True)
    return (wide / np.where(lengths > 0, lengths, 1.0)).astype(np.float32)
