"""Records of acceptance: written whole, read back equal, and refused field by field."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.sdk.acceptance.accepted import record

from saccade.acceptance import records
from saccade.acceptance.records import Step
from saccade.errors import BundleError


def test_a_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    written = record()
    path = records.write(written, tmp_path / "accepted")
    assert path.name == "tiny-fp16-nvidia-l4-tensorrt.json"
    assert records.read(path) == written
    records.write(record(verdict="incomplete"), tmp_path / "accepted")
    assert [each.name for each in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schema": 2}, "schema is 2"),
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
    assert records.plugin_speedup("tiny", "NVIDIA L4", "fp16") == 0.0
    records.write(record(), folder)
    records.write(record(precision="fp32", plugin_speedup=None), folder)
    records.write(record(flavour="tensorrt_rtx", plugin_speedup=1.1), folder)
    assert records.plugin_speedup("tiny", "NVIDIA L4", "fp16") == 1.1
    assert records.plugin_speedup("tiny", "NVIDIA L4", "fp32") == 0.0
    assert records.plugin_speedup("tiny", "NVIDIA A10", "fp16") == 0.0
