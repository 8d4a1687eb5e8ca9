"""Records of acceptance: written whole, read back equal, and refused field by field."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.sdk.acceptance.accepted import SUMS, record

from saccade.acceptance import records
from saccade.acceptance.records import Step
from saccade.errors import BundleError


def test_a_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    written = record(size=((64, 64), (96, 128), (128, 128)))
    path = records.write(written, tmp_path / "accepted")
    assert path.name == "tiny-fp16-nvidia-l4-tensorrt.json"
    assert records.read(path) == written
    records.write(record(verdict="incomplete"), tmp_path / "accepted")
    assert [each.name for each in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schema": 3}, "schema is 3"),
        ({"schema": 1}, "schema is 1"),
        ({"graph_sha256": {"model": "abc"}}, "graph_sha256 is"),
        ({"batch": 8}, "batch is 8"),
        ({"batch": [4, 2, 8]}, "batch is"),
        ({"size": [[64, 64], [32, 96], [128, 128]]}, "size is"),
        ({"size": [64, 64, 64]}, "size is"),
        ({"data": "cifar"}, "data is 'cifar'"),
        ({"gpu": ""}, "gpu is ''"),
        ({"compute_capability": "8.9"}, "compute_capability is '8.9'"),
        ({"date": "yesterday"}, "date is 'yesterday'"),
        ({"plan_sha256": {"function": "abc"}}, "plan_sha256 is"),
        ({"latency_ms": {"function": -1.0}}, "latency_ms is"),
        ({"latency_ms": {"function": float("nan")}}, "latency_ms is"),
        ({"plugin_speedup": "fast"}, "plugin_speedup is 'fast'"),
        ({"verdict": "fine"}, "verdict is 'fine'"),
        ({"verdict": "failed"}, "the first failed step ''"),
        ({"steps": [{"call": "x", "outcome": "failed", "seconds": 1, "message": ""}]}, "failed step 'x'"),
        ({"steps": [{"call": "x"}]}, "steps is"),
        ({"extra": 1}, "fields missing or unknown: extra"),
    ],
)
def test_what_is_no_record_is_refused_by_field(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps({**record().to_json(), **changes}))
    with pytest.raises(BundleError, match=r"a\.json is no record of acceptance: .*" + message):
        records.read(path)


def test_nobody_can_make_a_record_that_contradicts_itself() -> None:
    with pytest.raises(BundleError, match="verdict is 'accepted'"):
        record(steps=(Step("run function", "failed", 0.1, "differs"),))


def test_plugins_count_where_every_accepted_row_gained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SACCADE_CACHE", str(tmp_path))
    folder = records.folders()[1]
    assert records.plugin_speedup(SUMS, "NVIDIA L4", "fp16") == 0.0
    records.write(record(), folder)
    records.write(record(precision="fp32", plugin_speedup=None), folder)
    records.write(record(flavour="tensorrt_rtx", plugin_speedup=1.1), folder)
    assert records.plugin_speedup(SUMS, "NVIDIA L4", "fp16") == 1.1
    assert records.plugin_speedup(SUMS, "NVIDIA L4", "fp32") == 0.0
    assert records.plugin_speedup(SUMS, "NVIDIA A10", "fp16") == 0.0


def test_plugins_count_for_the_graph_and_not_for_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SACCADE_CACHE", str(tmp_path))
    records.write(record(), records.folders()[1])
    for changed, gain in (("graphs/weights.bin", 1.25), ("graphs/model.onnx", 0.0)):
        assert records.plugin_speedup({**SUMS, changed: "d" * 64}, "NVIDIA L4", "fp16") == gain


def test_a_record_of_another_schema_proves_nothing_and_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("SACCADE_CACHE", str(tmp_path))
    folder = records.folders()[1]
    path = records.write(record(), folder)
    path.with_name("old.json").write_text(json.dumps({**record().to_json(), "schema": 1}))
    assert list(records.known()) == [record()]
    assert "left out" in caplog.text
    assert "schema is 1" in caplog.text


@pytest.mark.parametrize(
    ("changes", "proves"),
    [
        ({}, True),
        ({"data": ""}, True),  # less was asked than was measured
        ({"data": "coco"}, False),
        ({"batch": (1, 1, 1)}, False),
        ({"size": ((64, 64), (64, 64), (64, 64))}, False),
        ({"version": "10.17.0"}, False),
        ({"graph_sha256": {**SUMS, "graphs/weights.bin": "d" * 64}}, False),
    ],
)
def test_an_accepted_row_proves_what_was_asked_of_it(changes: dict[str, Any], proves: bool) -> None:
    assert record().proves(record(**changes)) is proves
    assert not record(verdict="incomplete").proves(record(**changes))
