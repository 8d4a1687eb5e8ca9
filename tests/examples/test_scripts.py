"""The example scripts run, in short form, as a user would start them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from digits import detector, nets
from saccade import bundle

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def run(script: str, *arguments: str) -> str:
    program = [sys.executable, str(EXAMPLES / script), *arguments]
    done = subprocess.run(program, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_script_is_run_here() -> None:
    text = Path(__file__).read_text(encoding="utf-8")
    for script in EXAMPLES.glob("*.py"):
        assert f'"{script.name}"' in text, script.name


def test_classify() -> None:
    assert "four" in run("01_classify.py")


def test_train(tmp_path: Path) -> None:
    said = run(
        "02_train_digits.py",
        "deepmad",
        "--epochs",
        "1",
        "--pictures",
        "32",
        "--held-out",
        "40",
        "--out",
        str(tmp_path),
    )
    assert "epoch 1/1" in said
    assert nets.stored_config(tmp_path / "deepmad.safetensors") == nets.net("deepmad").config


def test_compare_engines() -> None:
    said = run("03_compare_engines.py", "deepmad", "--pictures", "20")
    assert "onnxruntime" in said
    assert "openvino" in said


@pytest.mark.slow
def test_break_naive_conversions() -> None:
    assert "naive int8" in run("04_break_naive_conversions.py", "deepmad", "--pictures", "20")


def test_train_detector(tmp_path: Path) -> None:
    weights = tmp_path / "detector.safetensors"
    short = ["--steps", "2", "--validation", "2", "--held-out", "2"]
    said = run("05_train_detector.py", *short, "--out", str(weights))
    assert "step 2/2" in said
    assert "2 held-out scenes: box AP" in said
    assert nets.stored_config(weights) == detector.NET.config


def test_demo(tmp_path: Path) -> None:
    said = run("demo.py", "--out", str(tmp_path), "--pictures", "48")
    assert "agrees" in said
    assert bundle.read(tmp_path / "digits-stvit").card.labels[4] == "four"
    with Image.open(tmp_path / "demo.png") as sheet:
        assert sheet.width > 1600
