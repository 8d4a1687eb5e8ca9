"""A bundle: one folder with graphs, weights, card, and the evidence that they belong together.

    bundle.json         schema, name, task, card, graphs, every file's sha256 and size, provenance
    graphs/             source graphs and derived ones over one weights.bin
    verify.json         what was compared at export
    conformance.npz     the sample that `load(..., prove=True)` repeats (conformance.NAME.npz: one per graph)

Reading executes nothing of ours: JSON, ONNX, and arrays without pickles. sha256 detects corruption; it
proves no origin.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
import stat
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from saccade.engines.conformance import Sample, read_sample
from saccade.engines.detections import is_reference
from saccade.engines.engine import TensorSpec
from saccade.errors import BundleError, ExportError, UsageError
from saccade.models.card import Card

SCHEMA = 2  # 2: graphs have names
MANIFEST = "bundle.json"
MANIFEST_LIMIT = 16 * 2**20  # bytes; 21,841 labels take 0.5 MB
CHUNK = 2**20
_FLOAT32 = ("fp32", "tf32")
_TF32_ROUNDOFF = 2.0**-11  # of what products multiply; sums are float32
_HASHING_THREADS = 4


@dataclass(frozen=True, slots=True)
class Graph:
    """One graph of a bundle. files: by variant; sample: what it gave for some inputs, where that is there."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    files: Mapping[str, Path]
    sample: Path | None


@dataclass(frozen=True, slots=True)
class Bundle:
    """What bundle.json says, with paths resolved. graphs: "model" alone, or "image" and "text"."""

    path: Path
    name: str
    task: str
    card: Card
    graphs: Mapping[str, Graph]
    files: Mapping[str, Mapping[str, Any]]
    derived: Mapping[str, Any]
    untrained: bool
    provenance: Mapping[str, Any]


def graph_in(bundle: Bundle, name: str, precision: str = "fp32") -> Graph:
    """The graph `name` with its files of one precision only; UsageError where it has none of it.

    "tf32" is a way to multiply float32 graphs, and means these.
    """
    graph = bundle.graphs[name]
    if precision in _FLOAT32:
        return graph
    if precision not in graph.files:
        how = f"convert {bundle.path} --precision {precision}"
        if precision == "int8":
            how = f"quantize {bundle.path} --int8 --calibration PICTURES"
        raise UsageError(f"{bundle.name} has no graph in {precision}: saccade {how} --out DIR")
    inside = f"{precision}."
    own = {v.removeprefix(inside): path for v, path in graph.files.items() if v.startswith(inside)}
    return replace(graph, files={"source": graph.files[precision], **own})


def sample_of(bundle: Bundle, name: str, precision: str = "fp32") -> Sample:
    """What the graph `name` answered when it was exported, with the tolerances of `precision`."""
    graph = graph_in(bundle, name, precision)
    if graph.sample is None:
        raise BundleError(
            f"{bundle.path} has no sample, no conformance.npz, of its graph {name!r}: export the bundle again"
        )
    sample = read_sample(graph.sample)
    if precision == "fp32":
        return sample
    if precision == "tf32":
        from saccade.conversion import with_noise_floors, with_tolerances

        held = with_tolerances(with_noise_floors(bundle, name), _TF32_ROUNDOFF)
        tolerances = {} if is_reference(sample.outputs) else held.tolerances
    else:
        path = graph.files["source"].relative_to(bundle.path).as_posix()
        tolerances = dict(bundle.derived[path]["tolerances"])
    if set(tolerances) != set(sample.outputs):
        command = f"saccade verify {bundle.path} --layers"
        raise BundleError(
            f"{bundle.path} has no answers in {precision} to compare with: what a detector chooses may "
            f"change with rounding. Compare "
            + ("it in fp32" if precision == "tf32" else f"its layers: {command} --precision {precision}")
        )
    return replace(sample, tolerances=tolerances)


def home() -> Path:
    """Where bundles are looked up by name: `$SACCADE_HOME`, default ~/.cache/saccade/bundles."""
    return Path(os.environ.get("SACCADE_HOME", Path.home() / ".cache" / "saccade" / "bundles"))


def shipped() -> Path:
    """The folder of the demo bundles inside the installed package."""
    return Path(__file__).parent / "demo"


def names() -> list[str]:
    """Names that `resolve` finds without a path: those in `home()`, then the shipped ones."""
    found = [
        child.name
        for folder in (home(), shipped())
        if folder.is_dir()
        for child in sorted(folder.iterdir())
        if (child / MANIFEST).is_file()
    ]
    return list(dict.fromkeys(found))


def resolve(name_or_path: str | os.PathLike[str]) -> Path:
    """The folder of a bundle: an existing path, a name in `home()`, or a shipped demo, in this order.

    A .zip is unpacked into the cache first. UsageError with the nearest names otherwise.
    """
    path = Path(name_or_path)
    if path.is_dir():
        return path
    if path.exists():
        return _unpacked(path)
    for folder in (home(), shipped()):
        if len(path.parts) == 1 and (folder / path / MANIFEST).is_file():
            return folder / path
    raise UsageError(_not_found(str(name_or_path)))


def _unpacked(path: Path) -> Path:
    """The folder of a zipped bundle, in the cache under the zip's own sum, so that it is unpacked once."""
    from saccade.archive import is_zip, unpack

    if not is_zip(path):
        raise BundleError(f"{path} is not a bundle: a bundle is a folder with {MANIFEST}, or a .zip of one")
    target = home() / ".unpacked" / sha256(path)[:32]
    return target if target.is_dir() else unpack(path, target, marker=MANIFEST)


def _not_found(name: str) -> str:
    import difflib

    from saccade.models.zoo import ENTRIES

    near = difflib.get_close_matches(name, names(), n=3, cutoff=0.5)
    hint = f"Did you mean {' or '.join(near)}? " if near else ""
    model = next(iter(difflib.get_close_matches(name, ENTRIES, n=1, cutoff=0.8)), "NAME")
    return (
        f"there is no bundle {name!r}: no such path, and none of that name in {home()} or among the demos. "
        f"{hint}To make one: saccade export {model} --weights FILE --out DIR"
    )


def read(path: str | os.PathLike[str], *, check: bool = True) -> Bundle:
    """Read the bundle in the folder `path`; with `check` compare every file with its recorded sha256.

    Raises BundleError when something is missing, changed, unlisted, outside the folder or too new.
    """
    folder = Path(path)
    bundle = _parse(folder, _manifest(folder))
    _check_files(folder, bundle.files)
    if check:
        verify_files(bundle)
    return bundle


def verify_files(bundle: Bundle, names: Iterable[str] | None = None) -> None:
    """Compare files (default: all) with their recorded sha256; BundleError names the first that differs."""
    from concurrent.futures import ThreadPoolExecutor

    chosen = list(bundle.files if names is None else names)
    with ThreadPoolExecutor(_HASHING_THREADS) as pool:
        digests = pool.map(sha256, [bundle.path / name for name in chosen])
        for name, digest in zip(chosen, digests, strict=True):
            recorded = bundle.files[name]["sha256"]
            if digest != recorded:
                raise BundleError(
                    f"{bundle.path / name} has changed since the bundle was written (sha256 {digest[:12]}, "
                    f"recorded {recorded[:12]}): copy or export it again"
                )


def sha256(path: Path) -> str:
    """Hex digest of a file, read in pieces so that memory stays flat."""
    digest = hashlib.sha256()
    piece = bytearray(CHUNK)
    view = memoryview(piece)
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(piece):
            digest.update(view[:count])
    return digest.hexdigest()


def write(out: str | os.PathLike[str], fill: Callable[[Path], Mapping[str, Any]]) -> Bundle:
    """Make the bundle `out` whole or not at all.

    fill: called with an empty folder; writes the files there and returns the manifest less `schema` and
    `files`. On any error nothing stays behind. Raises UsageError where `out` exists already.
    """
    target = Path(out)
    if target.exists():
        raise UsageError(f"{target} exists already: remove it or choose another --out")
    staging = target.with_name(f".{target.name}-{secrets.token_hex(4)}")
    try:
        staging.mkdir(parents=True)
        manifest = {"schema": SCHEMA, **fill(staging), "files": _listing(staging)}
        content = json.dumps(manifest, indent=1, ensure_ascii=False)
        (staging / MANIFEST).write_text(content + "\n", encoding="utf-8")
        read(staging, check=False)
        _flush(staging)
        staging.rename(target)
    except OSError as error:
        raise ExportError(
            f"{target} could not be written: {error.strerror or error}; nothing was left behind"
        ) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return read(target, check=False)


def _manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    if not path.is_file():
        raise BundleError(f"{folder} is not a bundle: it has no {MANIFEST}")
    if path.stat().st_size > MANIFEST_LIMIT:
        raise BundleError(f"{path} has {path.stat().st_size} bytes; at most {MANIFEST_LIMIT} are read")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise BundleError(f"{path} is not JSON ({error}): copy or export the bundle again") from error
    schema = manifest.get("schema") if isinstance(manifest, dict) else None
    if type(schema) is not int or schema < 1:
        raise BundleError(f"{path} has no valid schema number: {schema!r}")
    if schema > SCHEMA:
        raise BundleError(
            f"{folder} has schema {schema}, this version reads up to {SCHEMA}: pip install -U saccade"
        )
    return dict(manifest)


def _parse(folder: Path, manifest: Mapping[str, Any]) -> Bundle:
    try:
        return Bundle(
            path=folder,
            name=_text(manifest["name"]),
            task=_text(manifest["task"]),
            card=Card.from_json(manifest["card"]),
            graphs=_graphs(folder, manifest),
            files={name: _file(entry) for name, entry in manifest["files"].items()},
            derived=dict(manifest.get("derived", {})),
            untrained=bool(manifest["untrained"]),
            provenance=dict(manifest.get("provenance", {})),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BundleError(f"{folder / MANIFEST} is malformed ({error!r}): export the bundle again") from error


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError(f"{value!r} is not a text")
    return value


def _specs(entries: Any) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(_text(e["name"]), _text(e["dtype"]), tuple(e["shape"])) for e in entries)


def _file(entry: Any) -> dict[str, Any]:
    if type(entry["bytes"]) is not int or len(entry["sha256"]) != 64:
        raise ValueError(f"{entry!r} is no record of a file")
    return {"sha256": entry["sha256"], "bytes": entry["bytes"]}


def _graphs(folder: Path, manifest: Mapping[str, Any]) -> dict[str, Graph]:
    entries = manifest["graphs"] if manifest["schema"] > 1 else {"model": _schema_1_graph(manifest)}
    graphs = {_text(name): _graph(folder, entry, set(manifest["files"])) for name, entry in entries.items()}
    if not graphs:
        raise ValueError("there are no graphs")
    return graphs


def _graph(folder: Path, entry: Mapping[str, Any], listed: set[str]) -> Graph:
    files, sample = dict(entry["files"]), entry.get("sample")
    if "source" not in files or not {*files.values(), *([sample] if sample else [])} <= listed:
        raise ValueError(f"graph {entry}: one file is called source, and each is among the files")
    return Graph(
        _specs(entry["inputs"]),
        _specs(entry["outputs"]),
        {variant: folder / name for variant, name in files.items()},
        folder / sample if sample else None,
    )


def _schema_1_graph(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """The one graph of a bundle of schema 1, as schema 2 writes it."""
    sample = "conformance.npz" if "conformance.npz" in manifest["files"] else None
    tensors = {key: manifest[key] for key in ("inputs", "outputs")}
    return {**tensors, "files": manifest["graphs"], "sample": sample}


def _check_files(folder: Path, files: Mapping[str, Mapping[str, Any]]) -> None:
    """Names stay inside, sizes are as recorded, nothing else is there but engines built later."""
    for name, entry in files.items():
        parts = PurePosixPath(name)
        if parts.is_absolute() or ".." in parts.parts or "\\" in name or str(parts) != name:
            raise BundleError(f"{folder}: the file name {name!r} points outside the bundle")
        path = folder / name
        if not path.exists():
            raise BundleError(f"{path} is missing: copy or export the bundle again")
        if not path.resolve().is_relative_to(folder.resolve()) or not stat.S_ISREG(path.lstat().st_mode):
            raise BundleError(f"{path} is a link or a special file; a bundle holds plain files")
        if path.stat().st_size != entry["bytes"]:
            raise BundleError(
                f"{path} has {path.stat().st_size} bytes, recorded are {entry['bytes']}: copy it again"
            )
    present = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if not p.is_dir()}
    unknown = sorted(p for p in present - set(files) - {MANIFEST} if not p.startswith("engines/"))
    if unknown:
        raise BundleError(f"{folder} holds files that bundle.json does not list: {', '.join(unknown[:5])}")


def _listing(folder: Path) -> dict[str, dict[str, Any]]:
    paths = sorted(p for p in folder.rglob("*") if p.is_file())
    return {p.relative_to(folder).as_posix(): {"sha256": sha256(p), "bytes": p.stat().st_size} for p in paths}


def _flush(folder: Path) -> None:
    """Bring files and folders to the disk before the rename that makes them a bundle."""
    for path in (folder, *folder.rglob("*")):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
