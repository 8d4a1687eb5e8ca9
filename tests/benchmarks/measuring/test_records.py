"""Records as files, and the figures that follow from what was measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.benchmarks.records import configuration, record

from saccade.benchmarks.measuring import records
from saccade.benchmarks.measuring.records import Layer, Profile, Record
from saccade.errors import UsageError


def test_lines_give_back_what_was_written(tmp_path: Path) -> None:
    failed = Record(configuration(engine="dies"), None, None, record([1.0]).conditions, error="killed")
    profile = Profile(configuration(), (Layer("conv", "Conv", 1.5), Layer("add", "Add", 0.5)))
    items = [record([10.0, 11.0, 9.5], agreement=1e-6, noisy="it was"), failed, profile]
    path = tmp_path / "new folder" / "run.jsonl"
    records.append(path, items[:1])
    records.append(path, items[1:])
    assert len(path.read_text().splitlines()) == 3
    assert records.read(path) == items
    assert records.read_records(path) == items[:2]


def test_derived_figures() -> None:
    given = {"batch": 4, "weight_bytes": 4e6, "activation_bytes": 1e6}
    found = record([20.0], given=given)
    assert found.images_per_s == 200
    assert found.gflops == pytest.approx(400)  # 2 GFLOP x 200
    assert found.of_ceiling == pytest.approx(4 / 3)
    assert found.intensity == pytest.approx(8e9 / 8e6)
    assert records.to_json(found)["derived"]["images_per_s"] == 200
    assert record([20.0], given={"flop": None}).of_ceiling is None


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("no JSON", "line 2"),
        (json.dumps({"schema": 99, "kind": "record"}), "pip install -U saccade"),
        (json.dumps({"schema": 1, "kind": "record"}), "no record"),
        (json.dumps([1]), "line 2"),
    ],
)
def test_a_line_that_cannot_be_read_is_named(tmp_path: Path, line: str, words: str) -> None:
    path = tmp_path / "run.jsonl"
    records.append(path, [record([1.0])])
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(UsageError, match=words):
        records.read(path)


def test_a_missing_file_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        records.read(tmp_path / "none.jsonl")
