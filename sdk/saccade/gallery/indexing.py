"""From a folder to a gallery: what is new or changed is embedded, batch by batch, and what is gone leaves."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from saccade.errors import InputError, UsageError
from saccade.gallery.store import (
    Entry,
    Manifest,
    Segment,
    Skipped,
    append,
    read_manifest,
    read_segments,
    replace,
    writing,
)
from saccade.pictures import list_pictures
from saccade.predictors.embedding import Embedder

__all__ = ["Changes", "check_model", "fingerprint", "index"]

# How far apart two answers of one model may be, as a share of how far the probes are apart: engines differ by
# a millionth, half precision by a thousandth, other weights by about one.
_SAME = 0.02


@dataclass(frozen=True, slots=True)
class Changes:
    """Files by what became of them. skipped: those among them that could not be read, with the reason."""

    new: int
    changed: int
    removed: int
    unchanged: int
    skipped: Mapping[str, str]


def index(
    folder: Path,
    embedder: Embedder,
    path: Path,
    *,
    batch_size: int = 32,
    progress: Callable[[int, int], None] | None = None,
) -> Changes:
    """Bring the gallery at `path` up to date with the pictures in `folder` and below.

    Every batch is on disk before the next one begins; an interrupted run goes on where it stopped. A file is
    the same while its size and time of change are. progress: called with (done, total) after every batch.
    UsageError when the gallery is of another folder or model.
    """
    with writing(path):
        return _index(folder, embedder, path, batch_size, progress or (lambda done, total: None))


def _index(
    folder: Path, embedder: Embedder, path: Path, batch_size: int, progress: Callable[[int, int], None]
) -> Changes:
    manifest = _opened(folder, embedder, path)
    files = dict(_listed(folder))
    known = latest(read_segments(path, manifest))
    same = {name for name, place in known.items() if files.get(name) == place.entry}
    todo = [entry for name, entry in files.items() if name not in same]
    for start in range(0, len(todo), batch_size):
        segment = _embedded(folder, embedder, todo[start : start + batch_size])
        manifest = append(path, manifest, segment)
        progress(min(start + batch_size, len(todo)), len(todo))
    removed = known.keys() - files.keys()
    current = latest(read_segments(path, manifest))
    if len(manifest.segments) != 1 or removed:
        replace(
            path, manifest, _joined([each for name, each in current.items() if name in files], manifest.width)
        )
    skipped = {name: each.reason for name, each in current.items() if each.reason and name in files}
    changed = sum(entry.name in known for entry in todo)
    return Changes(len(todo) - changed, changed, len(removed), len(same), skipped)


@dataclass(frozen=True)
class Place:
    """Where an entry's vector is; reason: why there is none."""

    entry: Entry
    segment: Segment
    row: int = -1
    reason: str = ""


def latest(segments: Iterable[Segment]) -> dict[str, Place]:
    """Every file of the gallery, by name, in order of the names; a later segment outdates an earlier one."""
    found: dict[str, Place] = {}
    for segment in segments:
        found |= {entry.name: Place(entry, segment, row) for row, entry in enumerate(segment.entries)}
        found |= {each.file.name: Place(each.file, segment, reason=each.reason) for each in segment.skipped}
    return dict(sorted(found.items()))


def _joined(places: Sequence[Place], width: int) -> Segment:
    """One segment of all that counts."""
    kept = [each for each in places if not each.reason]
    vectors = np.empty((len(kept), width), np.float32)
    for row, each in zip(vectors, kept, strict=True):
        row[:] = each.segment.vectors[each.row]
    skipped = tuple(Skipped(each.entry, each.reason) for each in places if each.reason)
    return Segment(tuple(each.entry for each in kept), vectors, skipped)


def _embedded(folder: Path, embedder: Embedder, entries: Sequence[Entry]) -> Segment:
    """Vectors of the entries that can be read. A file that spoils its batch is found one by one."""
    try:
        return Segment(tuple(entries), _vectors(folder, embedder, entries))
    except (InputError, OSError) as error:
        if len(entries) == 1:
            nothing = np.empty((0, embedder.width), np.float32)
            return Segment((), nothing, (Skipped(entries[0], str(error)),))
    parts = [_embedded(folder, embedder, [entry]) for entry in entries]
    return Segment(
        tuple(entry for part in parts for entry in part.entries),
        np.concatenate([part.vectors for part in parts]),
        tuple(each for part in parts for each in part.skipped),
    )


def _vectors(folder: Path, embedder: Embedder, entries: Sequence[Entry]) -> NDArray[np.float32]:
    return embedder.images([folder / entry.name for entry in entries], batch_size=len(entries)).vectors


def _listed(folder: Path) -> Iterable[tuple[str, Entry]]:
    for file in list_pictures(folder):
        name = file.relative_to(folder).as_posix()
        try:
            status = file.stat()
        except OSError:  # a dangling link, or removed since it was listed: reading it says so
            yield name, Entry(name, -1, -1)
        else:
            yield name, Entry(name, status.st_size, status.st_mtime_ns)


# --- whose vectors they are -----------------------------------------------------------------------------


def _opened(folder: Path, embedder: Embedder, path: Path) -> Manifest:
    """The gallery's manifest, or that of a new one."""
    manifest = read_manifest(path)
    place = str(folder.resolve())
    if manifest is None:
        probe = fingerprint(embedder)
        return Manifest(embedder.card.name, embedder.width, tuple(probe.ravel().tolist()), place)
    check_model(manifest, embedder, path)
    if manifest.folder != place:
        raise UsageError(f"{path} is the gallery of {manifest.folder}, not of {place}: choose another place")
    return manifest


def fingerprint(embedder: Embedder) -> NDArray[np.float32]:
    """(4, width): what the model says of four mosaics that are always the same."""
    tiles = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), np.uint8)
    return embedder.images([each.repeat(8, axis=0).repeat(8, axis=1) for each in tiles]).vectors


def check_model(manifest: Manifest, embedder: Embedder, path: Path) -> None:
    """Raise UsageError unless the vectors at `path` are of this model, whichever engine made them."""
    if manifest.width == embedder.width:
        expected = np.array(manifest.probe, np.float32).reshape(-1, manifest.width)
        actual = fingerprint(embedder)
        if expected.shape == actual.shape and _apart(expected, actual) <= _SAME:
            return
    raise UsageError(
        f"{path} was made with another model ({manifest.model}, {manifest.width} numbers per picture) than "
        f"this one ({embedder.card.name}, {embedder.width}): search with that model, or index elsewhere"
    )


def _apart(expected: NDArray[np.float32], actual: NDArray[np.float32]) -> float:
    """How far two answers are apart, as a share of the spread of the first."""
    spread = np.linalg.norm(expected - expected.mean(axis=0))
    return float(np.linalg.norm(actual - expected) / max(spread, np.finfo(np.float32).tiny))
