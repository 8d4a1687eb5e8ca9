"""Whether a bundle still computes here what it computed where it was made.

`verify` repeats the check that `saccade.load(..., prove=True)` makes on one engine, on every engine, and
reports the differences instead of refusing. It needs neither torch nor the checkpoint: the expected outputs
and their tolerances travel in the bundle.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from saccade import bundle as bundles
from saccade.engines.engine import AUTO_ORDER, ENGINES, open_engine, resolve_engine
from saccade.loading import graph_for


@dataclass(frozen=True, slots=True)
class Comparison:
    """One output of one graph in one engine beside the bundle's sample.

    tolerance: the largest absolute difference that is accepted.
    """

    engine: str
    graph: str
    output: str
    max_abs_difference: float
    tolerance: float

    @property
    def agrees(self) -> bool:
        # A NaN difference compares false, as it must.
        return self.max_abs_difference <= self.tolerance


@dataclass(frozen=True, slots=True)
class Verification:
    """What was compared. `files` have the sha256 that was written; `skipped` engines are not installed."""

    name: str
    path: Path
    files: int
    comparisons: tuple[Comparison, ...]
    skipped: tuple[str, ...]

    @property
    def agrees(self) -> bool:
        return all(comparison.agrees for comparison in self.comparisons)

    def to_json(self) -> dict[str, Any]:
        return {
            **dataclasses.asdict(self),
            "path": str(self.path),
            "comparisons": [{**dataclasses.asdict(row), "agrees": row.agrees} for row in self.comparisons],
            "agrees": self.agrees,
        }


def verify(
    name_or_path: str | Path,
    engines: Sequence[str] = (),
    *,
    precision: str = "fp32",
    progress: Callable[[str], None] | None = None,
) -> Verification:
    """Check every file's sha256, then run the conformance sample on each engine.

    engines: names; one that is not installed raises MissingDependency. By default the engines that "auto"
    chooses from, those that are installed; the reference engine is slow and must be asked for.
    precision: of the graphs. progress: called with the name of each engine before it runs.
    """
    chosen, skipped = (tuple(engines), ()) if engines else _installed()
    for engine in chosen:
        resolve_engine(engine)
    bundle = bundles.read(bundles.resolve(name_or_path))
    comparisons: list[Comparison] = []
    for engine in chosen:
        if progress is not None:
            progress(engine)
        comparisons += _compare(bundle, engine, precision)
    return Verification(bundle.name, bundle.path, len(bundle.files), tuple(comparisons), skipped)


def _installed() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The engines of `AUTO_ORDER` that are installed, and those that are not."""
    resolve_engine("auto")  # MissingDependency, with the line to run, where there is none
    found = [name for name in AUTO_ORDER if find_spec(ENGINES[name].package) is not None]
    return tuple(found), tuple(name for name in AUTO_ORDER if name not in found)


def _compare(bundle: bundles.Bundle, engine: str, precision: str) -> list[Comparison]:
    rows = []
    for name in bundle.graphs:
        graph = graph_for(bundle, name, engine, precision)
        sample = bundles.sample_of(bundle, name, precision)
        with open_engine(graph.files, engine) as opened:
            differences = sample.differences(opened.run(sample.inputs))
        rows += [Comparison(engine, name, d.output, d.largest, d.tolerance) for d in differences]
    return rows
