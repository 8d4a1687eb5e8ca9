"""`saccade bench` from Python: every combination of what is wanted, measured, recorded and reported."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from saccade.benchmarks.measuring import harness, peers, profiling, records
from saccade.benchmarks.measuring.harness import Progress, Run, Settings
from saccade.benchmarks.measuring.records import Configuration, Profile
from saccade.engines.engine import AUTO_ORDER, EngineOptions, resolve_engine
from saccade.errors import MissingDependency, UsageError

__all__ = ["Wanted", "bench"]


@dataclass(frozen=True, slots=True)
class Wanted:
    """What to measure: all combinations. weights: see `peers.of_bundle`.

    engines: () for those of `auto` that are installed; threads: () for all cores.
    """

    bundles: tuple[str, ...]
    engines: tuple[str, ...] = ()
    precisions: tuple[str, ...] = ("fp32",)
    batches: tuple[int, ...] = (1,)
    threads: tuple[int, ...] = ()
    device: str = "cpu"
    peers: bool = False
    weights: Path | None = None

    def __post_init__(self) -> None:
        if not self.bundles or not self.precisions or not self.batches:
            raise UsageError("name at least one bundle, one precision and one batch")
        if self.weights is not None and (len(self.bundles) > 1 or not self.weights.is_file()):
            raise UsageError(f"--weights {self.weights} must be a file, the checkpoint of the only bundle")


def bench(
    wanted: Wanted,
    settings: Settings | None = None,
    *,
    out: Path | None = None,
    report: Path | None = None,
    progress: Progress = lambda done, total, what: None,
) -> Run:
    """Measure, add records to `out`, and write the report into the folder `report`.

    With a report the engines are profiled too, layer by layer, at the smallest batch.
    """
    configurations = list(combinations(wanted))
    run = harness.measure(configurations, settings, out=out, progress=progress)
    if report is not None:
        from saccade.benchmarks.reporting.report import write

        profiles: list[Profile] = []
        try:
            for found in _profiles(() if run.interrupted else configurations, progress):
                profiles.append(found)  # one by one: Ctrl-C keeps those that are done
        except KeyboardInterrupt:
            run = replace(run, interrupted=True)
        if out is not None:
            records.append(out, profiles)
        write(run.records, profiles, report)
    return run


def combinations(wanted: Wanted) -> Iterator[Configuration]:
    """Every bundle, engine, precision, batch and number of threads, and the peers of each."""
    options = EngineOptions(wanted.device)
    engines = tuple(resolve_engine(name, options) for name in wanted.engines) or _installed(wanted.device)
    threads = wanted.threads or (records.cores(),)
    for bundle in dict.fromkeys(wanted.bundles):
        for engine, precision, batch, count in itertools.product(
            engines, wanted.precisions, wanted.batches, threads
        ):
            yield harness.of_bundle(
                bundle, engine, batch=batch, precision=precision, threads=count, device=wanted.device
            )
        if wanted.peers:
            for count in threads:
                yield from peers.of_bundle(
                    bundle,
                    batches=wanted.batches,
                    threads=count,
                    device=wanted.device,
                    precisions=wanted.precisions,
                    weights=wanted.weights,
                )


def _installed(device: str) -> tuple[str, ...]:
    """The engines that `auto` chooses from and that can run here."""
    found = []
    for name in AUTO_ORDER:
        try:
            found.append(resolve_engine(name, EngineOptions(device)))
        except (MissingDependency, UsageError):
            continue
    return tuple(found) or (resolve_engine("auto", EngineOptions(device)),)


def _profiles(configurations: Iterable[Configuration], progress: Progress) -> Iterator[Profile]:
    """Of each model in each of our engines, at its smallest batch and first number of threads."""
    first: dict[tuple[str, str, str], Configuration] = {}
    for each in sorted(configurations, key=lambda each: each.batch):
        if not each.peer:
            first.setdefault((each.model, each.engine, each.precision), each)
    for done, each in enumerate(first.values()):
        progress(done, len(first), f"layers of {each.model}, {each.label}")
        found = profiling.profile(each)
        if found is not None:
            yield found
