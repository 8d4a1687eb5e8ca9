"""Measure configurations beside each other: each in a process of its own, taking turns in short rounds.

    from saccade.benchmarks.measuring import harness, peers

    path = "bundles/deit_small"
    ours = [harness.of_bundle(path, engine, batch=8, threads=2) for engine in ("onnxruntime", "openvino")]
    theirs = peers.of_bundle(path, batches=[8], threads=2)
    run = harness.measure([*ours, *theirs], harness.Settings(seconds=5, rounds=10), out=Path("run.jsonl"))
    for record in run.records:
        print(record.configuration.label, record.timing and record.timing.median_ms, record.of_ceiling)

All of one model, batch and number of threads take turns: whatever the machine does meanwhile, it does to
all of them, and their rounds can be compared one by one (`compare.paired`). With them
runs a matrix product, the ceiling of the same minutes. A process that dies leaves a record with the error.
Ctrl-C ends the run and keeps what is measured; so does a file given as `out` if the power fails.

Anything else can be measured through an opener of one's own: see `saccade.benchmarks.measuring.subjects`.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path

from saccade.benchmarks.measuring import records, work
from saccade.benchmarks.measuring.records import Configuration, Record, cores
from saccade.benchmarks.measuring.sitting import CEILING, Settings, Sitting
from saccade.errors import UsageError

__all__ = ["CEILING", "Progress", "Run", "Settings", "measure", "of_bundle"]


@dataclass(frozen=True, slots=True)
class Run:
    """records: one per configuration in its order, ceilings last; those never reached are missing."""

    records: tuple[Record, ...]
    interrupted: bool


Progress = Callable[[int, int, str], None]  # steps done, steps in all, what is being done


def of_bundle(
    path: str | os.PathLike[str],
    engine: str,
    *,
    batch: int = 1,
    precision: str = "fp32",
    threads: int | None = None,
    device: str = "cpu",
) -> Configuration:
    """A bundle in one of our engines, with the work that its graph holds."""
    from saccade import bundle as bundles

    read = bundles.read(bundles.resolve(path), check=False)
    counted = work.of_bundle(read)
    return Configuration(
        model=read.name,
        engine=engine,
        batch=batch,
        precision=precision,
        threads=threads or cores(),
        device=device,
        flop=counted.flop,
        weight_bytes=counted.weight_bytes,
        activation_bytes=counted.activation_bytes,
        accuracy=work.accuracy(read, precision),
        arguments={"path": str(read.path)},
    )


def measure(
    configurations: Sequence[Configuration],
    settings: Settings | None = None,
    *,
    out: Path | None = None,
    progress: Progress = lambda done, total, what: None,
) -> Run:
    """Measure `configurations`, a sitting after the other. out: records are added to this file by sitting."""
    settings = settings or Settings()
    name = f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{secrets.token_hex(2)}"
    plan = list(_sittings(configurations, settings))
    total = sum(len(each) * (settings.rounds + 2) for each in plan)
    measured: list[Record] = []
    done = 0
    for number, sitting in enumerate(plan):
        table = Sitting(sitting, settings, name, number)
        try:
            for what in table.steps():
                progress(done, total, what)
                done += 1
        except KeyboardInterrupt:
            return Run(_kept(measured, table.records(complete=False), out, configurations), interrupted=True)
        finally:
            table.close()
        _kept(measured, table.records(complete=True), out, configurations)
    return Run(_ordered(measured, configurations), interrupted=False)


def _kept(
    measured: list[Record], new: Sequence[Record], out: Path | None, order: Sequence[Configuration]
) -> tuple[Record, ...]:
    measured += new
    if out is not None:
        records.append(out, new)
    return _ordered(measured, order)


def _ordered(measured: Iterable[Record], order: Sequence[Configuration]) -> tuple[Record, ...]:
    places = {each.key: place for place, each in enumerate(order)}
    return tuple(sorted(measured, key=lambda record: places.get(record.configuration.key, len(places))))


def _sittings(configurations: Sequence[Configuration], settings: Settings) -> Iterator[list[Configuration]]:
    """What takes turns: rows of one model, batch and threads stay together as long as `together` allows."""

    def row(each: Configuration) -> tuple[str, str, int, int]:
        return each.model, each.device, each.threads, each.batch

    doubled = {each.key for each in configurations}
    if len(doubled) < len(configurations):
        raise UsageError(
            "two configurations have the same model, engine, precision, batch, threads and device"
        )
    room = settings.together - settings.ceiling
    for _, group in groupby(sorted(configurations, key=row), key=row):
        members = list(group)
        for start in range(0, len(members), max(room, 1)):
            sitting = members[start : start + max(room, 1)]
            yield [*sitting, _ceiling(sitting[0])] if settings.ceiling else sitting


def _ceiling(beside: Configuration) -> Configuration:
    from saccade.benchmarks.measuring.subjects import DEVICE_SIDE, SIDE

    side = SIDE if beside.device == "cpu" else DEVICE_SIDE
    return Configuration(
        model=CEILING,
        engine="numpy" if beside.device == "cpu" else "torch",
        precision="fp32" if beside.device == "cpu" else beside.precision,
        threads=beside.threads,
        device=beside.device,
        flop=2.0 * side**3,
        opener="saccade.benchmarks.measuring.subjects:matrix_product",
    )
