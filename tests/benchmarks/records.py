"""Records of known times, for tests of what is made of records."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from saccade.benchmarks.measuring.records import Conditions, Configuration, Record, Resources, Timing

CONDITIONS = Conditions(
    run="one",
    sitting=0,
    date="2026-01-01T00:00:00+00:00",
    machine="a machine",
    cpus=2,
    load_average=0.5,
    others_share=0.01,
    versions={"saccade": "0.1.0", "numpy": "2.0"},
)


def configuration(**changes: Any) -> Configuration:
    given: dict[str, Any] = {"model": "tiny", "engine": "onnxruntime", "threads": 2, "flop": 2e9}
    return Configuration(**{**given, **changes})


def timing(rounds_ms: Sequence[float], **changes: Any) -> Timing:
    given: dict[str, Any] = {
        "median_ms": sorted(rounds_ms)[len(rounds_ms) // 2],
        "p90_ms": max(rounds_ms),
        "p99_ms": max(rounds_ms),
        "iterations": 20,
        "rounds_ms": tuple(rounds_ms),
        "processor_ms": tuple(2 * each for each in rounds_ms),
        "spread": 0.01,
        "includes": ("run",),
        "parts_ms": {"preprocess": 2.0, "postprocess": 0.1},
        "open_s": 0.5,
        "warm_up_s": 0.2,
    }
    return Timing(**{**given, **changes})


def record(rounds_ms: Sequence[float], *, run: str = "one", sitting: int = 0, **changes: Any) -> Record:
    """A record of these rounds. changes: of the record; `given` of its configuration."""
    from dataclasses import replace

    given = changes.pop("given", {})
    made = Record(
        configuration(**given),
        timing(rounds_ms),
        Resources(peak_rss_mib=120.0),
        replace(CONDITIONS, run=run, sitting=sitting),
        ceiling_gflops=300.0,
        stream_gbs=20.0,
    )
    return replace(made, **changes)
