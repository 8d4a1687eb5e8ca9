"""Search in the pictures of a folder."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from saccade.errors import UsageError
from saccade.gallery import nearest
from saccade.gallery.indexing import Changes, check_model, index, latest
from saccade.gallery.store import read_manifest, read_segments
from saccade.pictures import Picture
from saccade.predictors.embedding import Embedder
from saccade.predictors.zero_shot import ZeroShotClassifier

__all__ = ["Gallery", "Hit"]

Model = Embedder | ZeroShotClassifier
FilePath = str | os.PathLike[str]


@dataclass(frozen=True, slots=True)
class Hit:
    """One picture that was found. path: its file. similarity: cosine with the query, -1..1."""

    path: Path
    similarity: float


class Gallery:
    """The pictures of a folder as vectors on disk, to be searched by text or by picture.

    `Gallery.index(folder, model, path)` makes it or brings it up to date; `Gallery(path, model)` opens it as
    it is now. model: what made the vectors, and what turns queries into vectors; it stays the caller's.

    paths: the pictures, in the order of `vectors` (n, width). changes: what indexing did, None if it was not
    asked for.
    """

    def __init__(self, path: FilePath, model: Model, *, changes: Changes | None = None) -> None:
        place, self._embed = Path(path), _embedder(model)
        manifest = read_manifest(place)
        if manifest is None:
            raise UsageError(
                f"{place} is no gallery: make one with Gallery.index(folder, model, {str(place)!r})"
            )
        check_model(manifest, self._embed, place)
        found = [each for each in latest(read_segments(place, manifest)).values() if not each.reason]
        self.folder = Path(manifest.folder)
        self.paths = tuple(self.folder / each.entry.name for each in found)
        self.vectors = _gathered(found, manifest.width)
        self.changes = changes
        self._approximate: nearest.Approximate | None = None

    @classmethod
    def index(
        cls,
        folder: FilePath,
        model: Model,
        path: FilePath,
        *,
        batch_size: int = 32,
        progress: bool | Callable[[int, int], None] = True,
    ) -> Gallery:
        """The gallery at `path`, brought up to date with the pictures in `folder` and below.

        New and changed pictures are embedded, removed ones leave; files that cannot be read are skipped, and
        `changes.skipped` says why. When it is interrupted, no more than a batch of `batch_size` is lost.
        progress: a bar on standard error, on a terminal only; or called with (done, total).
        """
        if batch_size < 1:
            raise UsageError(f"batch_size is {batch_size}; it must be at least 1")
        with _reporting(progress) as report:
            changes = index(
                Path(folder), _embedder(model), Path(path), batch_size=batch_size, progress=report
            )
        return cls(path, model, changes=changes)

    def search(self, query: str | Picture, k: int = 10, *, approximate: bool = False) -> list[Hit]:
        """The `k` pictures nearest to `query`, best first; equal ones in the order of `paths`.

        query: a text; or a picture as a `pathlib.Path`, bytes, a PIL image, or an RGB array. approximate: by
        faiss, for millions of pictures; it may miss some.
        """
        vector = self._embed.texts([query]) if isinstance(query, str) else self._embed.images([query])
        places, cosines = self.nearest(vector.vectors, k, approximate=approximate)
        return [Hit(self.paths[p], c) for p, c in zip(places[0].tolist(), cosines[0].tolist(), strict=True)]

    def nearest(
        self, queries: NDArray[np.float32], k: int = 10, *, approximate: bool = False
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Places in `paths` (q, k) and cosines (q, k) for query vectors (q, width) of length one."""
        if queries.ndim != 2 or queries.shape[1] != self.vectors.shape[1]:
            raise UsageError(f"queries are (q, {self.vectors.shape[1]}), not {queries.shape}")
        if not approximate:
            return nearest.exact(self.vectors, queries, k)
        if self._approximate is None:
            self._approximate = nearest.Approximate(self.vectors)
        return self._approximate(queries, k)

    def __len__(self) -> int:
        return len(self.paths)

    def __repr__(self) -> str:
        return f"Gallery({len(self)} pictures of {self.folder}, {self.vectors.shape[1]} numbers each)"


def _embedder(model: Model) -> Embedder:
    return model.embed if isinstance(model, ZeroShotClassifier) else model


def _gathered(found: Sequence[Any], width: int) -> NDArray[np.float32]:
    """The vectors in order: the file itself where it holds just these, else a copy."""
    segments = {id(each.segment): each.segment for each in found}
    if len(segments) == 1:
        (segment,) = segments.values()
        if [each.row for each in found] == list(range(len(segment.entries))):
            return segment.vectors
    vectors = np.empty((len(found), width), np.float32)
    for row, each in zip(vectors, found, strict=True):
        row[:] = each.segment.vectors[each.row]
    return vectors


@contextmanager
def _reporting(progress: bool | Callable[[int, int], None]) -> Iterator[Callable[[int, int], None] | None]:
    if callable(progress):
        yield progress
    elif progress and sys.stderr.isatty():
        from saccade.terminal import counting

        with counting("indexing") as advance:
            yield advance
    else:
        yield None
