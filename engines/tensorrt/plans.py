"""Plans on disk: `<key>/model.plan` with `engine.json`: what it is, where it runs, how it was made.

A plan is executable code for the GPU, and may hold code for the host. A sum inside the same folder proves
nothing of where it comes from, so plans built here are also noted in the user's cache, by sha256; others are
opened only after `trust`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from saccade.engines.engine import TensorSpec
from saccade.engines.tensorrt.flavours import flavour, installed_version, version_numbers
from saccade.engines.tensorrt.gpu import Gpu
from saccade.engines.tensorrt.options import CURRENT, BuildOptions, capabilities
from saccade.errors import BundleError, EngineError, EngineMismatch

SCHEMA = 1
RECORD = "engine.json"
PLAN = "model.plan"
FOLDER = "engines"  # inside a bundle
_RECORD_LIMIT = 2**20  # bytes


@dataclass(frozen=True, slots=True)
class Record:
    """What engine.json says.

    bundle, graph: names. files: sha256 of the graph and its weights by path in the bundle. version: of the
    library, gpu: where it was built (None without one). binding: what semantic-token nodes became.
    working_types, engine_types, device_bytes: as `compiler.Outcome` has them.
    """

    bundle: str
    graph: str
    files: Mapping[str, str]
    options: BuildOptions
    version: str
    gpu: Gpu | None
    binding: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    layers: int
    working_types: Mapping[str, int]
    engine_types: Mapping[str, int] | None
    device_bytes: int | None
    plan_sha256: str
    plan_bytes: int
    parse_seconds: float
    build_seconds: float
    wall_seconds: float
    peak_memory_mib: int
    built: str
    saccade: str
    log: tuple[str, ...]

    @property
    def serves(self) -> str:
        """The GPUs that run the plan, in a word for file names and tables."""
        if named := capabilities(self.options):
            return "+".join(f"sm{number}" for number in named)
        assert self.gpu is not None  # without targets there was a GPU to build for
        if self.options.hardware_compatible == "ampere+":
            return "ampere+"
        if self.options.hardware_compatible == "same_capability" or self.options.target == CURRENT:
            return f"sm{self.gpu.capability}"
        return f"{_slug(self.gpu.name)}-sm{self.gpu.capability}"

    @property
    def key(self) -> str:
        """The folder's name: words for people, and a sum over all that makes a plan unusable elsewhere."""
        facts = [self.files, self.options.to_json(), self.version, self.serves, self.binding]
        digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
        words = [self.graph, self.options.flavour, self.version, self.serves, self.options.precision]
        return f"{'-'.join(words)}-{digest[:12]}"

    def to_json(self) -> dict[str, Any]:
        """Plain dict of JSON types; `from_json` is its inverse."""
        fields = {**dataclasses.asdict(self), "options": self.options.to_json()}
        return {"schema": SCHEMA, "key": self.key, "serves": self.serves, **fields}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Record:
        fields = {name: data[name] for name in cls.__dataclass_fields__}
        return cls(
            **{
                **fields,
                "options": BuildOptions.from_json(data["options"]),
                "gpu": data["gpu"] and Gpu(**data["gpu"]),
                "inputs": _specs(data["inputs"]),
                "outputs": _specs(data["outputs"]),
                "log": tuple(data["log"]),
            }
        )


def _specs(entries: Sequence[Mapping[str, Any]]) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(e["name"], e["dtype"], tuple(e["shape"])) for e in entries)


def _slug(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-").lower()


# --- reading and writing -------------------------------------------------------------------------------


def read(folder: Path) -> Record:
    """The record of the plan in `folder`. BundleError where it is missing, damaged or too new."""
    path = folder / RECORD
    try:
        if path.stat().st_size > _RECORD_LIMIT:
            raise BundleError(f"{path} has {path.stat().st_size} bytes; at most {_RECORD_LIMIT} are read")
        data = json.loads(path.read_text(encoding="utf-8"))
        schema = data["schema"]
        if type(schema) is int and schema > SCHEMA:
            raise BundleError(f"{path} has schema {schema}: pip install -U saccade")
        return Record.from_json(data)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BundleError(f"{path} cannot be read ({error!r}): build the plan again") from error


def records(bundle: Path) -> Iterator[tuple[Path, Record]]:
    """Folder and record of every plan in a bundle, the newest first."""
    folders = [path.parent for path in (bundle / FOLDER).glob(f"*/{RECORD}") if path.parent.name[0] != "."]
    found = [(folder, read(folder)) for folder in folders]
    yield from sorted(found, key=lambda pair: pair[1].built, reverse=True)


def read_plan(folder: Path, record: Record) -> bytes:
    """The plan's bytes, as they were built, here or by somebody that the user trusts."""
    path, bundle = folder / PLAN, folder.parent.parent
    command = build_command(bundle, record.options.flavour, record.options.precision)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise BundleError(f"{path} cannot be read ({error.strerror}): {command}") from error
    digest = hashlib.sha256(content).hexdigest()
    if digest != record.plan_sha256:
        raise BundleError(f"{path} has changed since it was built: {command}")
    if not _noted(digest).is_file():
        raise EngineError(
            f"{path} was not built on this machine, and a plan is code: {command}, "
            f"or, where you trust whoever built it, saccade trust {bundle}"
        )
    return content


def trust(folder: Path) -> Record:
    """Note the plan in `folder` as one that may be opened."""
    record = read(folder)
    path = _noted(record.plan_sha256)
    path.parent.mkdir(parents=True, exist_ok=True)
    staging = path.with_name(f".{path.name}-{secrets.token_hex(4)}")
    staging.write_text(json.dumps({"bundle": record.bundle, "key": record.key}) + "\n", encoding="utf-8")
    os.replace(staging, path)
    return record


def forget(record: Record) -> None:
    """Take back the note of a plan that is gone."""
    _noted(record.plan_sha256).unlink(missing_ok=True)


def cache() -> Path:
    """Where timings and the notes of trusted plans are kept: `$SACCADE_CACHE`, default ~/.cache/saccade."""
    return Path(os.environ.get("SACCADE_CACHE", Path.home() / ".cache" / "saccade"))


def _noted(sha256: str) -> Path:
    return cache() / "plans" / f"{sha256}.json"


def publish(staging: Path, record: Record, engines: Path) -> Path:
    """Turn the folder `staging`, which holds the plan, into `engines`/<key>; an older one of the key goes."""
    text = json.dumps(record.to_json(), indent=1, ensure_ascii=False)
    (staging / RECORD).write_text(text + "\n", encoding="utf-8")
    target, old = engines / record.key, engines / f".{record.key}-{secrets.token_hex(4)}"
    trust(staging)
    if target.exists():
        target.rename(old)
    staging.rename(target)
    shutil.rmtree(old, ignore_errors=True)
    return target


def device_bytes(folder: Path, record: Record, contexts: int = 1) -> int | None:
    """About how much device memory an engine over the plan in `folder` takes, for that many concurrent runs:
    weights, scratch memory, inputs and outputs of the largest shapes.

    None where only opening it tells: it was built without a GPU, or a dimension follows from others.
    """
    greatest = {name: high for name, (_, _, high) in record.options.dimensions().items()}
    tensors = 0
    for spec in (*record.inputs, *record.outputs):
        shape = [greatest.get(size) if isinstance(size, str) else size for size in spec.shape]
        if None in shape:
            return None
        tensors += math.prod(size for size in shape if size) * np.dtype(spec.dtype).itemsize
    if record.device_bytes is None:
        return None
    weights = record.plan_bytes
    if record.options.stripped:  # they come from the graph
        files = [folder.parent.parent / name for name in record.files]
        weights += sum(path.stat().st_size for path in files if path.is_file())
    return weights + contexts * (record.device_bytes + tensors)


# --- where a plan runs ---------------------------------------------------------------------------------


def obstacle(record: Record, version: str, gpu: Gpu) -> str | None:
    """Why the plan does not run with this version of its library on this GPU; None where it does."""
    ours, theirs = version_numbers(version), version_numbers(record.version)
    if record.options.version_compatible:
        if ours[0] != theirs[0] or ours < theirs:
            needed = f"{record.options.flavour} {record.version} or a later {theirs[0]}.x"
            return f"it needs {needed}, here is {version}"
    elif ours != theirs:
        return f"it was built by {record.options.flavour} {record.version}, here is {version}"
    return _gpu_obstacle(record, gpu)


def _gpu_obstacle(record: Record, gpu: Gpu) -> str | None:
    here = f"{gpu.name} (sm{gpu.capability})"
    named = capabilities(record.options)
    if named:
        return None if gpu.capability in named else f"it was built for {record.serves}, here is {here}"
    assert record.gpu is not None
    level = record.options.hardware_compatible
    same_capability = gpu.capability == record.gpu.capability
    if level == "ampere+":
        fits = int(gpu.capability) >= 80
    elif level == "same_capability" or record.options.target == CURRENT:
        fits = same_capability
    else:
        fits = same_capability and gpu.name == record.gpu.name
    return None if fits else f"it was built for {record.serves}, here is {here}"


def build_command(bundle: Path, flavour_name: str, precision: str) -> str:
    """What to run to get a plan for the machine where it is run."""
    return f"saccade build {bundle} --flavour {flavour_name} --precision {precision}"


def find(
    bundle: Path,
    graph: str,
    files: Mapping[str, str],
    gpu: Gpu,
    precision: str = "fp32",
    version_of: Callable[[str], str | None] = installed_version,
) -> Path:
    """The newest plan of `graph` for this machine; its folder.

    files: sha256 of the bundle's files by path. version_of: the version of a flavour, None where it is not
    installed. EngineMismatch with the reasons and the command where there is none.
    """
    refused = []
    for folder, record in records(bundle):
        if record.graph != graph or record.options.precision != precision:
            continue
        reason = _reason_against(record, files, gpu, version_of)
        if reason is None:
            return folder
        refused.append(f"\n  {record.key}: {reason}")
    command = build_command(bundle, "tensorrt", precision)
    raise EngineMismatch(
        f"{bundle} has no {precision} plan of its graph {graph!r} for {gpu.name} and what is installed: "
        f"{command}{''.join(refused)}"
    )


def _reason_against(
    record: Record, files: Mapping[str, str], gpu: Gpu, version_of: Callable[[str], str | None]
) -> str | None:
    if any(files.get(path) != digest for path, digest in record.files.items()):
        return "it was built from another graph"
    lean = ("tensorrt_lean",) if record.options.version_compatible else ()
    versions = [version_of(name) for name in (record.options.flavour, *lean)]
    version = next(filter(None, versions), None)
    if version is None:
        return f"{record.options.flavour} is not installed: {flavour(record.options.flavour).install}"
    return obstacle(record, version, gpu)
