"""What acceptance found: a file per model, precision and GPU, which `binding="auto"` and tables read.

A record states what happened on the machine that wrote it. It is checked field by field when it is written
and when it is read, so that a file from elsewhere cannot be half understood.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import re
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from saccade.engines.tensorrt import plans
from saccade.errors import BundleError

SCHEMA = 2  # 2: what a row is of, its graphs' sums, profile and data
VERDICTS = ("accepted", "failed", "incomplete")
OUTCOMES = ("passed", "failed", "skipped")
DATA = ("imagenet", "coco")
_LIMIT = 2**20  # bytes; larger files are no records
logger = logging.getLogger("saccade")


@dataclass(frozen=True, slots=True)
class Step:
    """One call of a row. outcome: of `OUTCOMES`. message: why it failed or was skipped, or what it found."""

    call: str
    outcome: str
    seconds: float
    message: str = ""


@dataclass(frozen=True, slots=True)
class AcceptanceRecord:
    """One model in one precision on one GPU.

    model: as asked for: a name of the zoo, or that of the bundle's folder. graph_sha256: of what the row is
    of, graphs and weights, by path in the bundle; {} where there was no bundle. gpu, driver, and
    compute_capability ("90"): as the driver says. flavour, version: of TensorRT. versions: of Python
    packages. batch, size: the profile, (min, opt, max); None for pictures of one size. data: "imagenet" or
    "coco" where accuracy was asked for. random: whether the weights were random: nothing is then said of
    accuracy.

    plan_sha256, engine_types: by binding and graph, as "function/model"; types are the plan's own, read back.
    latency_ms: median of one run at the middle of `batch` and `size`, copies from and to the host included,
    by what ran ("function", "plugin", "torch.compile", "onnxruntime-cuda"). plugin_speedup: latency of the
    function plan over that of the plugin plan, whole engine; None where either is missing. accuracy: what was
    measured beside what was published. verdict: of `VERDICTS`; failed_call: the first that failed.
    """

    model: str
    graph_sha256: Mapping[str, str]
    precision: str
    gpu: str
    compute_capability: str
    driver: str
    flavour: str
    version: str
    versions: Mapping[str, str]
    date: str
    batch: tuple[int, int, int]
    size: tuple[tuple[int, int], tuple[int, int], tuple[int, int]] | None
    data: str
    random: bool
    plan_sha256: Mapping[str, str]
    engine_types: Mapping[str, Mapping[str, int]]
    latency_ms: Mapping[str, float]
    plugin_speedup: float | None
    accuracy: Mapping[str, float]
    verdict: str
    failed_call: str
    steps: tuple[Step, ...]
    log: tuple[str, ...]

    def __post_init__(self) -> None:
        problem = _problem(self.to_json())
        if problem:
            raise BundleError(f"this is no record of acceptance: {problem}")

    @property
    def file_name(self) -> str:
        """One file per row and GPU: a later run replaces it."""
        gpu = re.sub(r"[^a-z0-9]+", "-", self.gpu.lower()).strip("-")
        return f"{self.model}-{self.precision}-{gpu}-{self.flavour}.json"

    def proves(self, other: AcceptanceRecord) -> bool:
        """Whether `other`, a row that is only begun, would prove nothing that this one has not."""
        asked = ("graph_sha256", "precision", "flavour", "version", "gpu", "batch", "size")
        same = all(getattr(self, name) == getattr(other, name) for name in asked)
        return self.verdict == "accepted" and same and other.data in ("", self.data)

    def to_json(self) -> dict[str, Any]:
        """Plain dict of JSON types; `read` is its inverse."""
        return {
            "schema": SCHEMA,
            **dataclasses.asdict(self),
            "steps": [dataclasses.asdict(s) for s in self.steps],
        }


def _sums(value: Any) -> bool:
    return _table(value, lambda s: _text(s) and re.fullmatch(r"[0-9a-f]{64}", s) is not None)


def _rising(value: Any) -> bool:
    """Whether these are a least, a most frequent and a greatest number."""
    numbers = isinstance(value, list | tuple) and len(value) == 3 and all(type(n) is int for n in value)
    return numbers and 1 <= value[0] <= value[1] <= value[2]


def _sizes(value: Any) -> bool:
    pairs = isinstance(value, list | tuple) and all(
        isinstance(v, list | tuple) and len(v) == 2 for v in value
    )
    return pairs and all(_rising([size[axis] for size in value]) for axis in (0, 1))


# Field -> a check that says whether its JSON value is one.
_FIELDS: Mapping[str, Any] = {
    "schema": lambda v: type(v) is int and v == SCHEMA,
    **dict.fromkeys(
        ("model", "precision", "gpu", "driver", "flavour", "version"), lambda v: _text(v) and v != ""
    ),
    "compute_capability": lambda v: _text(v) and re.fullmatch(r"\d{2,3}", v) is not None,
    "versions": lambda v: _table(v, _text),
    "date": lambda v: _text(v) and re.match(r"\d{4}-\d{2}-\d{2}T", v) is not None,
    "graph_sha256": _sums,
    "batch": _rising,
    "size": lambda v: v is None or _sizes(v),
    "data": lambda v: v in ("", *DATA),
    "random": lambda v: type(v) is bool,
    "plan_sha256": _sums,
    "engine_types": lambda v: _table(v, lambda types: _table(types, lambda n: type(n) is int and n >= 0)),
    "latency_ms": lambda v: _table(v, lambda n: _number(n) and n > 0),
    "plugin_speedup": lambda v: v is None or (_number(v) and v > 0),
    "accuracy": lambda v: _table(v, _number),
    "verdict": lambda v: v in VERDICTS,
    "failed_call": lambda v: _text(v),
    "steps": lambda v: isinstance(v, list | tuple) and all(map(_is_step, v)),
    "log": lambda v: isinstance(v, list | tuple) and all(map(_text, v)),
}


def _text(value: Any) -> bool:
    return isinstance(value, str)


def _number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < float("inf")  # NaN compares false


def _table(value: Any, check: Any) -> bool:
    return isinstance(value, dict) and all(_text(key) and check(each) for key, each in value.items())


def _is_step(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and set(value) == {"call", "outcome", "seconds", "message"}
        and _text(value["call"])
        and value["outcome"] in OUTCOMES
        and _number(value["seconds"])
        and _text(value["message"])
    )


def _problem(data: Any) -> str:
    """What is wrong with the JSON value `data`; "" where nothing is."""
    if not isinstance(data, dict):
        return "it is no object"
    if different := sorted(set(data) ^ set(_FIELDS)):
        return f"fields missing or unknown: {', '.join(different)}"
    for name, check in _FIELDS.items():
        if not check(data[name]):
            return f"{name} is {data[name]!r}"
    failed = next((step["call"] for step in data["steps"] if step["outcome"] == "failed"), "")
    if (data["verdict"] == "failed") != bool(failed) or data["failed_call"] != failed:
        return (
            f"the verdict is {data['verdict']!r} of {data['failed_call']!r}, the first failed step {failed!r}"
        )
    return ""


def read(path: Path) -> AcceptanceRecord:
    """The record in the file `path`; BundleError saying which field is wrong where it is none."""
    try:
        if path.stat().st_size > _LIMIT:
            raise BundleError(f"{path} has {path.stat().st_size} bytes; a record has at most {_LIMIT}")
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BundleError(f"{path} cannot be read as JSON: {error}") from error
    if problem := _problem(data):
        raise BundleError(f"{path} is no record of acceptance: {problem}")
    fields = {name: value for name, value in data.items() if name != "schema"}
    fields |= {name: tuple(data[name]) for name in ("batch", "log")}
    fields["steps"] = tuple(Step(**step) for step in data["steps"])
    fields["size"] = data["size"] and tuple(map(tuple, data["size"]))
    return AcceptanceRecord(**fields)


def write(record: AcceptanceRecord, folder: Path) -> Path:
    """Put the record into `folder`, whole or not at all; one of the same row and GPU is replaced."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / record.file_name
    staging = path.with_name(f".{path.name}-{secrets.token_hex(4)}")
    staging.write_text(json.dumps(record.to_json(), indent=1) + "\n", encoding="utf-8")
    os.replace(staging, path)
    return path


def folders() -> tuple[Path, Path]:
    """Where records are looked for: what came with this version, and what this user accepted."""
    return Path(__file__).parents[1] / "benchmarks" / "accepted", plans.cache() / "accepted"


def known() -> Iterator[AcceptanceRecord]:
    """Every record in `folders()`."""
    for folder in folders():
        yield from within(folder)


def within(folder: Path) -> Iterator[AcceptanceRecord]:
    """Every record in `folder`. What is none, or of another schema, proves nothing."""
    for path in sorted(folder.glob("[!.]*.json")):
        try:
            yield read(path)
        except BundleError as error:
            logger.warning("left out: %s", error)


def plugin_speedup(graph_sha256: Mapping[str, str], gpu: str, precision: str) -> float:
    """The least gain that plugins showed in accepted rows on GPUs of this name; 0 where there is none.

    graph_sha256: of the bundle's files. Rows of the same graphs count, whatever their weights: these change
    no kernel.
    """
    wanted = _graphs(graph_sha256)
    gains = [
        record.plugin_speedup
        for record in known()
        if (record.gpu, record.precision, record.verdict) == (gpu, precision, "accepted")
        and _graphs(record.graph_sha256) == wanted
        and record.plugin_speedup is not None
    ]
    return min(gains, default=0.0)


def _graphs(sums: Mapping[str, str]) -> dict[str, str]:
    return {name: digest for name, digest in sums.items() if name.endswith(".onnx")}
