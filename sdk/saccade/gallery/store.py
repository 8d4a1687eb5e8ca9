"""A gallery on disk: vectors in .npy files, and one JSON file that says which of them count.

    manifest.json         schema, model, and the segments in their order
    000001.npy            vectors (n, width) float32
    000001.json           its n files, and those that could not be read

A segment is written under another name and renamed; it counts when the manifest names it, which is replaced
as a whole. So whatever interrupts a writer, the gallery is as it was before or after one of its segments.
"""

from __future__ import annotations

import dataclasses
import fcntl
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from saccade.errors import BundleError, UsageError

__all__ = [
    "Entry",
    "Manifest",
    "Segment",
    "Skipped",
    "append",
    "read_manifest",
    "read_segments",
    "replace",
    "writing",
]

SCHEMA = 1
_MANIFEST = "manifest.json"
_LOCK = "lock"
_OURS = re.compile(r"lock|manifest\.json(\.partial)?|\d{6,}\.(npy|json)(\.partial)?")


@dataclass(frozen=True, slots=True)
class Entry:
    """One picture. name: relative to the folder, with /. bytes, modified_ns: how it was when it was read."""

    name: str
    bytes: int
    modified_ns: int


@dataclass(frozen=True, slots=True)
class Skipped:
    """A file that is no picture that can be read, and why."""

    file: Entry
    reason: str


@dataclass(frozen=True)
class Segment:
    """What one batch adds: entries with their vectors (n, width), files skipped."""

    entries: tuple[Entry, ...]
    vectors: NDArray[np.float32]
    skipped: tuple[Skipped, ...] = ()


@dataclass(frozen=True, slots=True)
class Manifest:
    """model, width, probe: of the embedder that made the vectors (`saccade.gallery.indexing.fingerprint`).

    folder: where the pictures are. segments: names, in their order; written: how many were ever begun.
    """

    model: str
    width: int
    probe: tuple[float, ...]
    folder: str
    segments: tuple[str, ...] = ()
    written: int = 0


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Be the only writer of the gallery at `path`, which is made if need be. UsageError if there is one."""
    if path.exists() and not (path / _MANIFEST).exists() and not _is_begun(path):
        raise UsageError(f"{path} exists and is no gallery: choose another place")
    path.mkdir(parents=True, exist_ok=True)
    with (path / _LOCK).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UsageError(f"{path} is being indexed by another process: wait until it is done") from error
        yield


def _is_begun(path: Path) -> bool:
    """Whether all that is there is what an indexer leaves when it is stopped before its first batch."""
    return path.is_dir() and all(_OURS.fullmatch(file.name) for file in path.iterdir())


def read_manifest(path: Path) -> Manifest | None:
    """The manifest of the gallery at `path`; None where there is none. BundleError for a damaged one."""
    file = path / _MANIFEST
    if not file.exists():
        return None
    data = _read_json(file)
    schema = data.pop("schema", None)
    if schema != SCHEMA:
        raise BundleError(
            f"{path} has schema {schema!r}, this version reads {SCHEMA}: pip install -U saccade"
        )
    try:
        fields: dict[str, Any] = {n: tuple(v) if isinstance(v, list) else v for n, v in data.items()}
        manifest = Manifest(**fields)
        named = all(name.isascii() and name.isdigit() for name in manifest.segments)
        sound = manifest.width > 0 and isinstance(manifest.folder, str) and named
    except (TypeError, AttributeError) as error:
        raise _damaged(file, error) from error
    if not sound:
        raise _damaged(file, "its values make no sense")
    return manifest


def read_segments(path: Path, manifest: Manifest) -> list[Segment]:
    """The segments that count; their vectors are mapped, not read."""
    return [_read_segment(path, name, manifest.width) for name in manifest.segments]


def append(path: Path, manifest: Manifest, segment: Segment) -> Manifest:
    """Add `segment` to the gallery at `path`; the new manifest is on disk when this returns."""
    return _commit(path, manifest, segment, manifest.segments)


def replace(path: Path, manifest: Manifest, segment: Segment) -> Manifest:
    """Let `segment` be all that the gallery holds; the files of the others are removed afterwards."""
    replaced = _commit(path, manifest, segment, ())
    kept = {_LOCK, _MANIFEST, *(f"{name}{end}" for name in replaced.segments for end in (".npy", ".json"))}
    for file in path.iterdir():
        if file.name not in kept and _OURS.fullmatch(file.name):
            file.unlink(missing_ok=True)
    return replaced


def _commit(path: Path, manifest: Manifest, segment: Segment, before: Sequence[str]) -> Manifest:
    name = f"{manifest.written + 1:06d}"
    if segment.entries or segment.skipped:
        _write(path / f"{name}.npy", lambda file: np.save(file, segment.vectors, allow_pickle=False))
        listed = {
            "entries": [dataclasses.astuple(each) for each in segment.entries],
            "skipped": [(*dataclasses.astuple(each.file), each.reason) for each in segment.skipped],
        }
        _write_json(path / f"{name}.json", listed)
        before = (*before, name)
    changed = dataclasses.replace(manifest, segments=tuple(before), written=manifest.written + 1)
    _write_json(path / _MANIFEST, {"schema": SCHEMA, **dataclasses.asdict(changed)})
    return changed


def _read_segment(path: Path, name: str, width: int) -> Segment:
    listed = _read_json(path / f"{name}.json")
    file = path / f"{name}.npy"
    try:
        vectors = np.lib.format.open_memmap(file, mode="r") if listed["entries"] else np.empty((0, width))
        entries = tuple(Entry(*row) for row in listed["entries"])
        skipped = tuple(Skipped(Entry(*row[:3]), str(row[3])) for row in listed["skipped"])
    except (OSError, ValueError, TypeError, KeyError, IndexError) as error:
        raise _damaged(file, error) from error
    if vectors.shape != (len(entries), width) or (entries and vectors.dtype != np.float32):
        raise _damaged(
            file, f"{vectors.dtype} {vectors.shape} for {len(entries)} pictures of {width} numbers"
        )
    return Segment(entries, vectors.astype(np.float32, copy=False), skipped)


def _read_json(file: Path) -> dict[str, Any]:
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _damaged(file, error) from error
    if not isinstance(data, dict):
        raise _damaged(file, "it holds no object")
    return data


def _damaged(file: Path, reason: object) -> BundleError:
    return BundleError(f"{file} is damaged ({reason}): remove {file.parent} and index again")


def _write_json(file: Path, value: Mapping[str, Any]) -> None:
    _write(file, lambda opened: opened.write(json.dumps(value).encode()))


def _write(file: Path, fill: Callable[[BinaryIO], Any]) -> None:
    """Whole or not at all, also when the machine loses power."""
    partial = file.with_name(f"{file.name}.partial")
    with partial.open("wb") as opened:
        fill(opened)
        opened.flush()
        os.fsync(opened.fileno())
    partial.replace(file)
