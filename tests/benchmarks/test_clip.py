"""The record of CLIP's towers and of search: what is compared computes the same."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from saccade.benchmarks import clip


def test_interleaved_takes_turns() -> None:
    calls: list[str] = []
    runs = {"one": lambda: calls.append("one"), "other": lambda: calls.append("other")}
    rows = clip.interleaved("thing", 3, runs, rounds=2)
    assert calls == ["one", "other"] * 4  # two rounds warm up
    assert [(row.how, row.batch, row.rounds) for row in rows] == [("one", 3, 2), ("other", 3, 2)]
    assert all(0 <= row.least_ms <= row.median_ms for row in rows)


def test_search_is_measured_on_equal_answers(tmp_path: Path) -> None:
    rows = clip.measure_search(500, 16, [1, 3], rounds=1)
    assert [(row.how, row.batch) for row in rows] == [
        (how, batch) for batch in (1, 3) for how in ("saccade", "NumPy argsort", "faiss flat")
    ]
    clip.save(rows, tmp_path)
    clip.save(clip.measure_search(500, 16, [1], rounds=2), tmp_path)  # replaces what it repeats
    record = json.loads((tmp_path / clip.RECORD).read_text())
    assert sorted((row["batch"], row["rounds"]) for row in record["latencies"]) == [(1, 2)] * 3 + [(3, 1)] * 3


@pytest.mark.slow
def test_towers_are_measured_on_equal_answers() -> None:
    """MobileCLIP-S1 at full size; torch.compile left out, it takes minutes."""
    rows = clip.measure_towers("mobileclip_s1", [1], rounds=1, compiled=False)
    assert {row.what for row in rows} == {"mobileclip_s1 image", "mobileclip_s1 text"}
    assert len(rows) == 6
