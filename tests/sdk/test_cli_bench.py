"""bench, compare-bench and tune from the command line."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from tests import tiny
from tests.benchmarks.records import record

from saccade import cli
from saccade.benchmarks.measuring import records


def run(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: object
) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["saccade", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    captured = capsys.readouterr()
    return int(ended.value.code or 0), captured.out, captured.err


def test_bench_measures_records_and_reports(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = tiny.write_bundle(tmp_path / "tiny").path
    out, report = tmp_path / "run.jsonl", tmp_path / "report"
    options = ("--engine", "onnxruntime,reference", "--threads", 1, "--seconds", 0, "--rounds", 2)
    code, text, errors = run(capsys, monkeypatch, "bench", bundle, *options, "--out", out, "--report", report)
    assert code == 0, errors
    assert "of ceiling" in text
    found = records.read_records(out)
    assert [r.configuration.engine for r in found] == ["onnxruntime", "reference", "numpy"]
    assert all(r.timing for r in found)
    page = (report / "report.html").read_text(encoding="utf-8")
    assert "Conv" in page  # of the profile
    code, text, _ = run(capsys, monkeypatch, "compare-bench", out, out, "--json")
    assert code == 0
    assert {row["verdict"] for row in json.loads(text)} == {"no difference seen"}


def test_compare_bench_fails_where_something_became_slower(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = tmp_path / "old.jsonl", tmp_path / "new.jsonl"
    times = [10.0 + 0.01 * n for n in range(10)]
    records.append(old, [record(times)])
    records.append(new, [record([1.2 * each for each in times], run="two")])
    code, text, _ = run(capsys, monkeypatch, "compare-bench", old, new)
    assert code == 1
    assert "slower" in text
    assert "1.200" in text
    code, text, _ = run(capsys, monkeypatch, "compare-bench", new, old)
    assert code == 0
    assert "faster" in text


def test_tune_says_what_auto_takes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SACCADE_CACHE", str(tmp_path / "cache"))
    bundle = tiny.write_bundle(tmp_path / "tiny").path
    code, text, errors = run(capsys, monkeypatch, "tune", bundle, "--threads", 1, "--seconds", 0)
    assert code == 0, errors
    assert "auto takes" in text


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--batch", "1,x"), "numbers above 0"),
        (("--threads", "0"), "numbers above 0"),
        (("--engine", "onnxruntme"), "did you mean"),
    ],
)
def test_wrong_lists_are_named(
    arguments: tuple[str, ...],
    words: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bundle = tiny.write_bundle(tmp_path / "tiny").path
    code, text, errors = run(capsys, monkeypatch, "bench", bundle, "--seconds", 0, "--rounds", 1, *arguments)
    assert (code, words in text + errors) == (2, True)
