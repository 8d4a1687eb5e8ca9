"""What was measured, as plain data: frozen records, one JSON object per line of a file.

A file holds the records of one run or of several, and profiles of single layers beside them. Lines say which
`schema` they have; a newer one than this version knows is refused.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from saccade.errors import UsageError

SCHEMA = 1


def cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0))


@dataclass(frozen=True, slots=True)
class Configuration:
    """One thing to measure.

    peer: it is not Saccade but what Saccade is compared with. flop, activation_bytes: floating-point
    operations (two to a multiply-accumulate) and least traffic of activations for one picture; weight_bytes
    once per run; None where not known. accuracy: in percent, as the bundle's evidence has it.
    opener: "module:function" that, called with the configuration in a process of its own, gives a `Subject`;
    arguments: for it, JSON types only.
    """

    model: str
    engine: str
    batch: int = 1
    precision: str = "fp32"
    threads: int = field(default_factory=cores)
    device: str = "cpu"
    peer: bool = False
    flop: float | None = None
    weight_bytes: float | None = None
    activation_bytes: float | None = None
    accuracy: float | None = None
    opener: str = "saccade.benchmarks.measuring.subjects:bundle"
    arguments: Mapping[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> tuple[str, str, str, int, int, str]:
        """What makes two records, of two runs, records of the same thing."""
        return self.model, self.engine, self.precision, self.batch, self.threads, self.device

    @property
    def label(self) -> str:
        return self.engine if self.precision == "fp32" else f"{self.engine} {self.precision}"


@dataclass(frozen=True, slots=True)
class Timing:
    """Milliseconds of one run of one batch, `includes` says of what; the percentiles are over all iterations.

    rounds_ms: the median of each round; processor_ms: the processor time of all threads for one iteration, in
    each round. spread: the quartiles of `rounds_ms` are this share of their median apart.
    parts_ms: medians of steps timed apart, outside of the rounds. open_s: imports, reading, compiling.
    """

    median_ms: float
    p90_ms: float
    p99_ms: float
    iterations: int
    rounds_ms: tuple[float, ...]
    processor_ms: tuple[float, ...]
    spread: float
    includes: tuple[str, ...]
    parts_ms: Mapping[str, float]
    open_s: float
    warm_up_s: float


@dataclass(frozen=True, slots=True)
class Resources:
    """What the process took. None where the machine cannot say.

    energy_j: of the processor packages (RAPL) or of the GPU (NVML), for one picture.
    """

    peak_rss_mib: float
    device_memory_mib: float | None = None
    energy_j: float | None = None


@dataclass(frozen=True, slots=True)
class Conditions:
    """Where and when. run: the same for all records of one call; sitting: the same for those that took turns.

    others_share: of the machine's processor time while this was timed, what other processes used.
    """

    run: str
    sitting: int
    date: str
    machine: str
    cpus: int
    load_average: float
    others_share: float
    versions: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Record:
    """One configuration, measured. timing is None where `error` says what stopped it.

    ceiling_gflops: of a float32 matrix product in the same sitting, on as many threads; stream_gbs: of a copy
    in memory. agreement: the largest difference from the bundle's sample, as a share of the largest value.
    noisy: why these figures are not to be trusted to a few percent; "" where they are. complete: all rounds
    were run.
    """

    configuration: Configuration
    timing: Timing | None
    resources: Resources | None
    conditions: Conditions
    ceiling_gflops: float | None = None
    stream_gbs: float | None = None
    agreement: float | None = None
    noisy: str = ""
    complete: bool = True
    error: str = ""

    @property
    def images_per_s(self) -> float | None:
        return 1e3 * self.configuration.batch / self.timing.median_ms if self.timing else None

    @property
    def gflops(self) -> float | None:
        """10^9 floating-point operations per second, of the model's work: what an engine saves counts too."""
        rate, flop = self.images_per_s, self.configuration.flop
        return rate * flop / 1e9 if rate and flop else None

    @property
    def of_ceiling(self) -> float | None:
        """`gflops` as a share of the ceiling."""
        return self.gflops / self.ceiling_gflops if self.gflops and self.ceiling_gflops else None

    @property
    def intensity(self) -> float | None:
        """Operations per byte that must be moved at least: weights once, activations of every picture."""
        given = self.configuration
        if given.flop is None or given.weight_bytes is None or given.activation_bytes is None:
            return None
        return given.flop * given.batch / (given.weight_bytes + given.batch * given.activation_bytes)


@dataclass(frozen=True, slots=True)
class Layer:
    """Milliseconds of one layer in one run, as the engine's own profiler tells."""

    name: str
    operator: str
    ms: float


@dataclass(frozen=True, slots=True)
class Profile:
    """Where the time of one run goes, slowest layer first. Profiling slows small layers: shares count."""

    configuration: Configuration
    layers: tuple[Layer, ...]


def to_json(item: Record | Profile) -> dict[str, Any]:
    """One line's object; derived figures of a record are added for readers that are not this program."""
    kind = "record" if isinstance(item, Record) else "profile"
    plain: dict[str, Any] = {"schema": SCHEMA, "kind": kind, **dataclasses.asdict(item)}
    if isinstance(item, Record):
        names = ("images_per_s", "gflops", "of_ceiling", "intensity")
        plain["derived"] = {name: _rounded(getattr(item, name)) for name in names}
    return plain


def from_json(plain: Mapping[str, Any]) -> Record | Profile:
    """The inverse of `to_json`; UsageError for what is no such object."""
    schema = plain.get("schema") if isinstance(plain, Mapping) else None
    if isinstance(schema, int) and schema > SCHEMA:
        raise UsageError(
            f"records of schema {schema}, this version reads up to {SCHEMA}: pip install -U saccade"
        )
    try:
        configuration = Configuration(**plain["configuration"])
        if plain["kind"] == "profile":
            return Profile(configuration, tuple(Layer(**layer) for layer in plain["layers"]))
        given = {key: value for key, value in plain.items() if key not in ("schema", "kind", "derived")}
        timing, resources = plain["timing"], plain["resources"]
        given |= {
            "configuration": configuration,
            "timing": Timing(**_with_tuples(timing)) if timing else None,
            "resources": Resources(**resources) if resources else None,
            "conditions": Conditions(**plain["conditions"]),
        }
        return Record(**given)
    except (KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"this is no record of `saccade bench`: {error!r}") from error


def append(path: Path, items: Iterable[Record | Profile]) -> None:
    """Add lines to the file `path`, which is made where it is missing. Each line is written whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        for item in items:
            file.write(json.dumps(to_json(item)) + "\n")


def read(path: Path) -> list[Record | Profile]:
    """Every line of `path`, in order. UsageError names the line that cannot be read."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror or error}") from error
    found = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                found.append(from_json(json.loads(line)))
            except (ValueError, UsageError) as error:
                raise UsageError(f"{path}, line {number}: {error}") from error
    return found


def read_records(path: Path) -> list[Record]:
    """The records of `path`, without its profiles."""
    return [item for item in read(path) if isinstance(item, Record)]


def _with_tuples(plain: Mapping[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in plain.items()}


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.5g}")
