"""Measure the engines that can run a bundle here, and record which one `auto` takes."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from saccade import bundle as bundles
from saccade import tuning
from saccade.benchmarks.measuring import harness
from saccade.benchmarks.measuring.compare import differ
from saccade.benchmarks.measuring.harness import Progress, Settings
from saccade.benchmarks.measuring.records import Record
from saccade.engines.engine import AUTO_ORDER, ENGINES, EngineOptions, resolve_engine
from saccade.errors import EngineError, MissingDependency

__all__ = ["SETTINGS", "Tuned", "tune"]

SETTINGS = Settings(seconds=3.0, ceiling=False)


@dataclass(frozen=True, slots=True)
class Tuned:
    """engine: what `auto` takes from now on, and the reason. path: where that is kept.

    milliseconds: medians by engine and batch. records: what was measured, failures included.
    """

    name: str
    engine: str
    reason: str
    milliseconds: Mapping[str, Mapping[str, float]]
    path: Path
    records: tuple[Record, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain dict of JSON types, without the records but for their errors."""
        errors = {r.configuration.engine: r.error for r in self.records if r.error}
        plain = {key: value for key, value in asdict(self).items() if key != "records"}
        return {**plain, "path": str(self.path), "errors": errors}


def tune(
    name_or_path: str | os.PathLike[str],
    *,
    precision: str = "fp32",
    batches: Sequence[int] = (1,),
    threads: int | None = None,
    device: str = "cpu",
    settings: Settings = SETTINGS,
    progress: Progress = lambda done, total, what: None,
) -> Tuned:
    """Time the engines in turns and record the fastest over `batches`, for `load` with the same settings.

    Where no engine is seen to be faster than the one that `auto` takes without a record, that one stays.
    Raises EngineError when no engine could run the bundle. Ctrl-C records nothing: half a measurement chooses
    nothing.
    """
    bundle = bundles.read(bundles.resolve(name_or_path), check=False)
    options = EngineOptions(device, threads)
    engines = _candidates(options)
    run = harness.measure(
        [
            harness.of_bundle(
                bundle.path, engine, batch=batch, precision=precision, threads=threads, device=device
            )
            for engine in engines
            for batch in batches
        ],
        settings,
        progress=progress,
    )
    if run.interrupted:
        raise KeyboardInterrupt
    rows = {
        engine: [record for record in run.records if record.configuration.engine == engine]
        for engine in engines
    }
    whole = {engine: found for engine, found in rows.items() if all(record.timing for record in found)}
    if not whole:
        raise EngineError(f"no engine ran {bundle.name}: {run.records[0].error}")
    chosen, reason = _choose(whole)
    milliseconds = {
        engine: {str(r.configuration.batch): r.timing.median_ms for r in found if r.timing}
        for engine, found in whole.items()
    }
    path = tuning.record(bundle, precision, options, chosen, milliseconds)
    return Tuned(bundle.name, chosen, reason, milliseconds, path, run.records)


def _candidates(options: EngineOptions) -> list[str]:
    """The engines that are installed and made for speed on the device, `auto`'s own order first."""
    names = AUTO_ORDER if not options.on_cuda else (*AUTO_ORDER, "tensorrt")
    found = []
    for name in names:
        if options.on_cuda and not ENGINES[name].cuda:
            continue
        try:
            found.append(resolve_engine(name, options))
        except MissingDependency:
            continue
    if not found:
        resolve_engine("auto", options)  # raises, with the line to run
    return found


def _choose(rows: Mapping[str, Sequence[Record]]) -> tuple[str, str]:
    """The first engine, unless another takes less time over all batches and is seen faster at one."""
    default = next(iter(rows))
    fastest = min(rows, key=lambda engine: _mean_ms(rows[engine]))
    if fastest == default:
        return default, "the fastest here" if len(rows) > 1 else "the only one that runs it here"
    verdicts = [differ(a, b).verdict for a, b in zip(rows[default], rows[fastest], strict=True)]
    if "faster" not in verdicts:
        return default, f"no difference seen to {fastest}"
    share = _mean_ms(rows[fastest]) / _mean_ms(rows[default])
    return fastest, f"takes {share:.0%} of the time of {default}"


def _mean_ms(records: Sequence[Record]) -> float:
    """Geometric mean of the medians."""
    logarithms = [math.log(record.timing.median_ms) for record in records if record.timing]
    return math.exp(sum(logarithms) / len(logarithms))
