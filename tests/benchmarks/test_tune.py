"""`saccade tune` and what `load` makes of it."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path

import pytest
from tests import tiny

import saccade
from saccade import bundle as bundles
from saccade import tuning
from saccade.benchmarks.measuring.harness import Settings
from saccade.benchmarks.tune import tune
from saccade.engines.engine import EngineOptions
from saccade.errors import EngineError

QUICK = Settings(seconds=0.0, iterations=8, rounds=8, warm_up_s=0.0, ceiling=False)
ONE = EngineOptions(threads=1)


@pytest.fixture
def bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> bundles.Bundle:
    monkeypatch.setenv("SACCADE_CACHE", str(tmp_path / "cache"))
    return tiny.write_bundle(tmp_path / "tiny")


def engine_of(bundle: bundles.Bundle, threads: int | None = 1) -> str:
    with saccade.load(bundle.path, threads=threads) as predictor:
        return predictor.engine_name


def test_what_is_measured_is_recorded_and_loaded(bundle: bundles.Bundle) -> None:
    tuned = tune(bundle.path, threads=1, settings=QUICK)
    assert set(tuned.milliseconds) == {"onnxruntime", "openvino"}
    assert tuned.path.is_file()
    assert json.loads(tuned.path.read_text())["engine"] == tuned.engine
    assert engine_of(bundle) == tuned.engine
    assert tuned.to_json()["errors"] == {}


def test_auto_takes_the_choice_for_equal_settings_only(bundle: bundles.Bundle) -> None:
    assert engine_of(bundle) == "onnxruntime"
    tuning.record(bundle, "fp32", ONE, "openvino", {"openvino": {"1": 1.0}})
    assert engine_of(bundle) == "openvino"
    assert engine_of(bundle, threads=2) == "onnxruntime"
    with saccade.load(bundle.path, engine="onnxruntime", threads=1) as predictor:
        assert predictor.engine_name == "onnxruntime"
    assert tuning.choice(bundle, "fp16", ONE) is None


@pytest.mark.parametrize("field", ["machine", "versions"])
def test_a_stale_choice_is_ignored_with_a_line_in_the_log(
    bundle: bundles.Bundle, field: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = tuning.record(bundle, "fp32", ONE, "openvino", {})
    kept = json.loads(path.read_text())
    other = {"machine": "64 cores of another", "versions": {"onnxruntime": "0.1"}}
    path.write_text(json.dumps({**kept, field: other[field]}))
    with caplog.at_level(logging.INFO, "saccade"):
        assert engine_of(bundle) == "onnxruntime"
    assert f"measured with other {field}: saccade tune" in caplog.text


@pytest.mark.parametrize("text", ["no JSON", "{}", '{"engine": 1, "more": 2}', "[]"])
def test_an_unreadable_choice_is_ignored(
    bundle: bundles.Bundle, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    tuning.record(bundle, "fp32", ONE, "openvino", {}).write_text(text)
    assert engine_of(bundle) == "onnxruntime"
    assert "cannot be read" in caplog.text


def test_other_graphs_have_a_choice_of_their_own(bundle: bundles.Bundle) -> None:
    tuning.record(bundle, "fp32", ONE, "openvino", {})
    name = bundle.graphs["model"].files["source"].relative_to(bundle.path).as_posix()
    changed = replace(bundle, files={**bundle.files, name: {"sha256": "0" * 64, "bytes": 1}})
    assert tuning.choice(bundle, "fp32", ONE) is not None
    assert tuning.choice(changed, "fp32", ONE) is None


def test_nothing_is_recorded_where_nothing_runs(bundle: bundles.Bundle, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="no engine ran"):
        tune(bundle.path, precision="fp16", threads=1, settings=QUICK)
    assert not (tmp_path / "cache" / "tuned").exists()


def test_ctrl_c_chooses_nothing(bundle: bundles.Bundle, tmp_path: Path) -> None:
    def press(done: int, total: int, what: str) -> None:
        if what.startswith("round 3"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tune(bundle.path, threads=1, settings=QUICK, progress=press)
    assert not (tmp_path / "cache" / "tuned").exists()
