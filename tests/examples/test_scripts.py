"""The example scripts run, in short form, as a user would start them."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from digits import bundles, contrastive, detector, nets, segmentation
from saccade import bundle

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def run(script: str, *arguments: str) -> str:
    program = [sys.executable, str(EXAMPLES / script), *arguments]
    done = subprocess.run(program, capture_output=True, text=True, timeout=900)
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
    said = run("03_compare_engines.py", "deepmad", "segmenter", "--pictures", "20", "--scenes", "2")
    assert said.count("onnxruntime") == 2
    assert said.count("openvino") == 2


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


def test_train_contrastive(tmp_path: Path) -> None:
    weights = tmp_path / "pair.safetensors"
    said = run(
        "06_train_contrastive.py",
        *("--epochs", "1", "--pool", "64", "--validation", "20", "--held-out", "40", "--out", str(weights)),
    )
    assert "epoch 1/1" in said
    assert "recall@1" in said
    assert nets.stored_config(weights) == contrastive.NET.config


def test_search_a_folder(tmp_path: Path) -> None:
    sheet = tmp_path / "found.png"
    said = run("07_search_a_folder.py", "a handwritten two", "--pictures", "24", "--out", str(sheet))
    assert "_two_" in said.splitlines()[0]
    with Image.open(sheet) as picture:
        assert picture.width > 900


def test_train_segmenter(tmp_path: Path) -> None:
    narrow, weights = tmp_path / "narrow.safetensors", tmp_path / "segmenter.safetensors"
    short = ["--epochs", "1", "--scenes", "8", "--validation", "2", "--held-out", "2"]
    said = run("08_train_segmenter.py", *short, "--out", str(narrow))
    assert "epoch 1/1" in said
    assert "2 held-out scenes" in said
    assert nets.stored_config(narrow) == dict(segmentation.NARROW.config)
    run("08_train_segmenter.py", *short, "--start", str(narrow), "--out", str(weights))
    assert nets.stored_config(weights) == dict(segmentation.NET.config)


@pytest.mark.slow
def test_segment(tmp_path: Path) -> None:
    said = run("09_segment.py", "--scenes", "300", "--out", str(tmp_path))
    reached = [float(value) for value in re.findall(r"mean IoU ([\d.]+) %", said)]
    assert len(reached) == 3, "PyTorch, ONNX Runtime, OpenVINO"
    assert min(reached) >= 87.0
    assert max(reached) - min(reached) < 0.5
    with Image.open(tmp_path / "aerial.png") as drawing:
        assert drawing.width == 1600


@pytest.mark.slow
def test_lower_precision(tmp_path: Path) -> None:
    record = tmp_path / "kept.json"
    short = ["deepmad", "--pictures", "20", "--strengths", "1", "--out", str(record)]
    assert "bf16" in run("10_lower_precision.py", *short)
    (row,) = json.loads(record.read_text())
    assert row["agreement"] == {"fp16": 1.0, "bf16": 1.0}


def test_demo(tmp_path: Path) -> None:
    said = run("demo.py", "--out", str(tmp_path), "--pictures", "48", "--scenes", "0", "--searched", "0")
    assert "agrees" in said
    assert bundle.read(tmp_path / "digits-stvit").card.labels[4] == "four"
    with Image.open(tmp_path / "demo.png") as sheet:
        assert sheet.width > 1600


@pytest.mark.slow
def test_demo_finds_labels_and_searches(tmp_path: Path) -> None:
    said = run("demo.py", "--out", str(tmp_path), "--pictures", "8", "--scenes", "6", "--searched", "60")
    assert "mask AP50" in said
    assert "mean IoU" in said
    assert '"a picture of the number zero": ' in said
    assert "differs" not in said
    for name, task in (
        ("detector", "instance_segmentation"),
        ("segmenter", "semantic_segmentation"),
        ("contrastive", "zero_shot"),
    ):
        assert bundle.read(tmp_path / f"digits-{name}").task == task
    for name, least_px in (("detected", 600), ("segmented", 1600), ("found", 1600)):
        with Image.open(tmp_path / f"demo-{name}.png") as sheet:
            assert sheet.width > least_px
    assert len(list((tmp_path / "pictures").iterdir())) == 60


@pytest.fixture(scope="module")
def detector_bundle(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("detector") / "digits-detector"
    return str(bundles.export_detector(detector.NET, folder).path)


@pytest.mark.slow
def test_track_video(detector_bundle: str, tmp_path: Path) -> None:
    video = tmp_path / "tracked.mp4"
    run("11_track_video.py", detector_bundle, "--frames", "12", "--out", str(video))
    assert video.stat().st_size > 10_000


@pytest.mark.slow
def test_large_image(detector_bundle: str, tmp_path: Path) -> None:
    drawing = tmp_path / "large.png"
    said = run("12_large_image.py", detector_bundle, "--out", str(drawing))
    whole, tiled = (int(count) for count in re.findall(r": (\d+) of \d+ digits", said))
    assert tiled > whole
    with Image.open(drawing) as picture:
        assert picture.width == 1600
