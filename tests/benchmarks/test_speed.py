"""The table of our exports beside their peers, from records made by hand."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

import pytest

from saccade.benchmarks import speed
from saccade.benchmarks.measuring.harness import CEILING
from saccade.benchmarks.measuring.records import Conditions, Configuration, Record, Timing

PEERS = ("torch", "plain onnxruntime")


def _record(engine: str, rounds_ms: Sequence[float], *, model: str = "m", error: str = "") -> Record:
    """A model of 1 GFLOP beside a ceiling of 100 GFLOP/s."""
    median = sorted(rounds_ms)[len(rounds_ms) // 2] if rounds_ms else math.nan
    timing = Timing(
        median_ms=median,
        p90_ms=median,
        p99_ms=median,
        iterations=len(rounds_ms),
        rounds_ms=tuple(rounds_ms),
        processor_ms=tuple(rounds_ms),
        spread=0.0,
        includes=("run",),
        parts_ms={},
        open_s=0.0,
        warm_up_s=0.0,
    )
    given = Configuration(
        model=model, engine=engine, batch=1, threads=2, flop=1e9, peer=engine in PEERS, opener="none:none"
    )
    conditions = Conditions(
        run="r", sitting=0, date="", machine="", cpus=2, load_average=0.0, others_share=0.0, versions={}
    )
    return Record(given, timing if rounds_ms else None, None, conditions, ceiling_gflops=100.0, error=error)


RECORDS = [
    _record("onnxruntime", [10.0, 20.0, 12.0]),
    _record("openvino", [20.0, 40.0, 24.0]),
    _record("torch", [40.0, 80.0, 48.0]),
    _record("plain onnxruntime", [15.0, 30.0, 24.0]),
    _record("plain openvino", [], error="it died"),
    _record("numpy", [1.0, 1.0, 1.0], model=CEILING),
]


def test_row_compares_the_fastest_of_ours_with_the_fastest_peer_round_by_round() -> None:
    row = speed.row("m", 1, RECORDS)
    assert (row.ours, row.fastest_peer) == ("onnxruntime", "plain onnxruntime")
    assert row.ratio == row.onnxruntime_ratio == 1.5
    assert row.ratio_spread == (1.5, 1.75)
    assert row.peer_of_ceiling == pytest.approx(1e9 / 24e-3 / 100e9)
    assert row.errors == {"plain openvino": "it died"}
    assert "1.50x" in speed.line(row)


def test_rows_come_back_from_the_record(tmp_path: Path) -> None:
    rows = [speed.row("m", 1, RECORDS)]
    assert speed.read(tmp_path / speed.RECORD) == []
    speed._write(rows, 2, tmp_path)
    assert speed.read(tmp_path / speed.RECORD) == rows
    assert json.loads((tmp_path / speed.RECORD).read_text())["summary"]["batch 1"] == 1.5


def test_summary_is_the_geometric_mean_where_the_peer_leaves_room() -> None:
    near = speed.row("near", 1, [_record("onnxruntime", [10.0]), _record("torch", [11.0])])
    far = speed.row("far", 1, [_record("onnxruntime", [20.0]), _record("torch", [80.0])])
    means = speed.summary([near, far])
    assert means["batch 1, peer below 75% of the ceiling"] == 4.0
    assert means["batch 1"] == pytest.approx(math.sqrt(1.1 * 4.0), abs=1e-3)


def test_the_chart_has_both_as_shares_of_the_ceiling() -> None:
    row = speed.row("m", 1, RECORDS)
    ours, peer = speed.chart([row], 1).bars
    assert (ours.label, ours.pieces, ours.note) == ("m", (("ours", 62.5),), "ONNX Runtime")
    assert (peer.pieces, peer.note) == ((("fastest peer", 41.7),), "plain ONNX Runtime")
    assert speed.chart([row], 8).bars == ()


def test_a_row_needs_one_of_each() -> None:
    with pytest.raises(ValueError, match="empty"):
        speed.row("m", 1, RECORDS[:2])
