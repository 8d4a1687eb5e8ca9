"""The doctor sees what is installed, what overwrites what, and gives lines that mend it."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from saccade import doctor

CLASHES = [
    ({"onnxruntime": "1.22.0"}, None),
    ({"onnxruntime-gpu": "1.22.0", "opencv-python": "4.9.0"}, None),
    (
        {"onnxruntime": "1.22.0", "onnxruntime-gpu": "1.23.0"},
        "pip uninstall -y onnxruntime onnxruntime-gpu && pip install onnxruntime-gpu==1.23.0",
    ),
    (
        {"opencv-python": "4.9.0", "opencv-python-headless": "5.0.0", "numpy": "2.0"},
        "pip uninstall -y opencv-python opencv-python-headless && pip install opencv-python-headless==5.0.0",
    ),
    (
        {"opencv-python": "4.9.0", "opencv-contrib-python": "4.9.0"},
        "pip uninstall -y opencv-python opencv-contrib-python && pip install opencv-python==4.9.0",
    ),
]


@pytest.mark.parametrize(("installed", "mend"), CLASHES)
def test_overwriting_wheels_clash(installed: dict[str, str], mend: str | None) -> None:
    assert [clash.mend for clash in doctor.find_clashes(installed)] == ([mend] if mend else [])


def test_both_pairs_are_reported() -> None:
    names = ["onnxruntime", "onnxruntime-gpu", "opencv-python", "opencv-python-headless"]
    clashes = doctor.find_clashes({name: "1.0" for name in names})
    assert [clash.installed for clash in clashes] == [
        ("onnxruntime 1.0", "onnxruntime-gpu 1.0"),
        ("opencv-python 1.0", "opencv-python-headless 1.0"),
    ]


def test_versions_are_read_from_the_metadata_whatever_the_spelling(tmp_path: Path) -> None:
    for folder, name in [
        ("onnxruntime-1.22.0", "onnxruntime"),
        ("ONNXRuntime_GPU-1.23.0", "ONNXRuntime_GPU"),
    ]:
        (tmp_path / f"{folder}.dist-info").mkdir()
        version = folder.rpartition("-")[2]
        text = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        (tmp_path / f"{folder}.dist-info" / "METADATA").write_text(text)
    installed = doctor.installed_versions([str(tmp_path)])
    assert installed == {"onnxruntime": "1.22.0", "onnxruntime-gpu": "1.23.0"}
    assert len(doctor.find_clashes(installed)) == 1


def test_this_machine() -> None:
    report = doctor.examine()
    engines = {part.name: part for part in report.engines}
    assert {"onnxruntime", "openvino", "tensorrt", "reference"} == set(engines)
    assert engines["onnxruntime"].status == "ready"
    assert "CPU" in engines["onnxruntime"].detail
    assert report.machine.cores >= 1
    assert report.machine.memory_mib > 256
    assert report.healthy == (not report.clashes)
    assert json.loads(json.dumps(report.to_json()))["machine"]["cores"] == report.machine.cores


def test_what_is_missing_comes_with_the_line_that_installs_it() -> None:
    features = [doctor._feature(name, {}) for name in doctor._FEATURES]
    assert {part.status for part in features} == {"missing"}
    assert "pip install 'saccade[export]'" in {part.mend for part in features}
    partly = doctor._feature("export", {"torch": "2.15.0", "onnx": "1.20"})
    assert partly.status == "missing"
    assert "timm" in partly.detail
    assert doctor._feature("video", {"opencv-python": "4.9.0"}).status == "ready"


def test_an_engine_that_is_missing_or_broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "saccade_broken_runtime.py").write_text("raise OSError('libfoo.so.1: cannot open\\nmore')")
    monkeypatch.syspath_prepend(str(tmp_path))
    broken = doctor._engine("saccade_broken_runtime", "cpu", lambda _: "")
    assert (broken.status, broken.detail) == ("broken", "libfoo.so.1: cannot open")
    assert broken.mend == "pip install 'saccade[cpu]' --force-reinstall"
    missing = doctor._engine("saccade_absent_runtime", "cpu", lambda _: "")
    assert (missing.status, missing.mend) == ("missing", "pip install 'saccade[cpu]'")


DRIVERS = [
    (
        "echo '580.65.06, NVIDIA H100 80GB HBM3, 81559 MiB'",
        ("NVIDIA H100 80GB HBM3, 81559 MiB",),
        "580.65.06",
    ),
    (
        "printf '575.51, NVIDIA L4, 23034 MiB\\n575.51, NVIDIA L4, 23034 MiB\\n'",
        ("NVIDIA L4, 23034 MiB",) * 2,
        "575.51",
    ),
    ("echo 'NVIDIA-SMI has failed'; exit 9", (), "nvidia-smi is installed but does not answer"),
]


@pytest.mark.parametrize(("script", "gpus", "driver"), DRIVERS)
def test_gpus_are_read_from_the_driver(
    script: str, gpus: tuple[str, ...], driver: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    machine = doctor.examine().machine
    assert (machine.gpus, machine.gpu_driver) == (gpus, driver)
