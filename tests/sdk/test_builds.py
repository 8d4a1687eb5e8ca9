"""`saccade build` and plans in bundles: from the command line, with NVIDIA's builder for RTX, and loaded."""

from __future__ import annotations

import importlib.util
import json
import os
import pty
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests import tiny
from tests.engines.fake_tensorrt import IMAGE, IN_A_CHILD, World, logits

import saccade
from saccade.builds import BatchRange, BuildOptions, trust
from saccade.bundle import write
from saccade.engines.tensorrt.gpu import find_gpu
from saccade.errors import EngineError, EngineMismatch, UsageError
from saccade.verification import verify

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx_bindings") is None,
    reason="NVIDIA's builder is not installed: pip install 'saccade[tensorrt-rtx]'",
)
RTX = ("--flavour", "tensorrt_rtx")
COMMAND = (sys.executable, "-c", "from saccade.cli import main; main()", "build")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SACCADE_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return tiny.write_bundle(tmp_path / "tiny").path


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *map(str, arguments)], capture_output=True, text=True, check=False)


def test_a_plan_for_each_target_beside_the_graphs(bundle: Path) -> None:
    ran = run(bundle, *RTX, "--target", "sm80,sm86+sm89", "--batch", "1,2,4", "--json")
    assert ran.returncode == 0, ran.stderr
    first, second = json.loads(ran.stdout)
    assert (first["serves"], second["serves"]) == ("sm80", "sm86+sm89")
    assert first["options"]["batch"] == [1, 2, 4]
    assert first["layers"] == second["layers"] > 3
    for built in (first, second):
        assert Path(built["path"], "model.plan").stat().st_size == built["plan_bytes"]
        assert json.loads(Path(built["path"], "engine.json").read_text())["key"] == built["key"]
    # The bundle is one as before, and the graph that was built is the one without functions.
    with saccade.load(bundle) as predictor:
        assert predictor.engine_name == "onnxruntime"
    assert "graphs/openvino.onnx" in first["files"]


def test_the_python_call_and_what_it_reports(bundle: Path) -> None:
    steps: list[tuple[str, float]] = []
    options = BuildOptions(flavour="tensorrt_rtx", target="sm120", batch=BatchRange(2, 2, 2), binding="auto")
    (built,) = saccade.build(bundle, options, progress=lambda *step: steps.append(step))
    assert built.path.parent == bundle / "engines"
    assert built.record.inputs[0].shape == ("batch", 3, 32, 32)
    assert built.record.options.binding == "function"  # there is no record of acceptance for it
    assert steps[0][0].startswith("model: ")


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--flavour", "tensorrt_rtx"), 2, "no GPU to build for: name a target"),
        ((*RTX, "--target", "sm90"), 2, "builds for sm75, sm80"),
        ((*RTX, "--target", "sm80", "--precision", "fp16"), 2, "no graph in fp16: saccade convert"),
        ((*RTX, "--target", "sm80", "--batch", "4,2"), 2, "write one number, or MIN,OPT,MAX as 1,4,16"),
        ((*RTX, "--target", "sm80", "--size", "9"), 2, "write one HxW, or three"),
        ((*RTX, "--target", "sm80", "--size", "32x32"), 2, "fixed picture size"),
        ((*RTX, "--target", "sm75"), 7, "FP32 GEMM is not supported"),
        ((), 8, "tensorrt is not installed"),
    ],
)
def test_what_cannot_be_built(bundle: Path, arguments: tuple[str, ...], code: int, message: str) -> None:
    if find_gpu() is not None or importlib.util.find_spec("tensorrt") is not None:
        pytest.skip("says what a machine without a driver and TensorRT does")
    ran = run(bundle, *arguments)
    assert (ran.returncode, message in " ".join(ran.stderr.split())) == (code, True), ran.stderr
    assert not (bundle / "engines").exists()


def test_a_terminal_sees_progress_and_ctrl_c_leaves_nothing(tmp_path: Path) -> None:
    shipped = Path(saccade.__file__).parent / "demo" / "digits-stvit"
    copy = shutil.copytree(shipped, tmp_path / "digits", ignore=shutil.ignore_patterns("engines"))
    shown = b""
    ours, theirs = pty.openpty()
    child = subprocess.Popen(
        [*COMMAND, str(copy), *RTX, "--target", "sm80"],
        stderr=theirs,
        stdout=subprocess.DEVNULL,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "120"},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    os.close(theirs)
    started = time.monotonic()
    for piece in _read(ours):
        shown += piece
        if b"Building" in shown or b"graph" in shown or time.monotonic() - started > 120:
            break
    child.send_signal(signal.SIGINT)
    for piece in _read(ours):
        shown += piece
    assert child.wait(60) not in (0, None)
    os.close(ours)
    assert b"%" in shown
    assert b"model:" in shown
    assert b"Traceback" not in shown
    assert not (copy / "engines").exists()


def _read(terminal: int) -> Iterator[bytes]:
    """What a process writes to its terminal, until it is gone."""
    while True:
        try:
            piece = os.read(terminal, 4096)
        except OSError:
            return
        if not piece:
            return
        yield piece


def test_plans_from_elsewhere_are_trusted_by_command(bundle: Path, tmp_path: Path, monkeypatch: Any) -> None:
    with pytest.raises(saccade.BundleError, match="holds no plans: saccade build "):
        trust(bundle)
    saccade.build(bundle, BuildOptions(flavour="tensorrt_rtx", target="sm80"))
    monkeypatch.setenv("SACCADE_CACHE", str(tmp_path / "another"))
    (trusted,) = trust(bundle)
    assert (tmp_path / "another" / "plans" / f"{trusted.record.plan_sha256}.json").is_file()


def test_loading_without_a_driver_or_a_plan(bundle: Path) -> None:
    if find_gpu() is None:
        with pytest.raises(EngineError, match="no NVIDIA driver"):
            saccade.load(bundle, "tensorrt")
    else:
        with pytest.raises(EngineMismatch, match="has no fp32 plan"):
            saccade.load(bundle, "tensorrt")
    with pytest.raises(UsageError, match="tf32 is for engine='tensorrt'"):
        saccade.load(bundle, "onnxruntime", precision="tf32")


# --- full size -----------------------------------------------------------------------------------------

ROOT = Path(__file__).resolve().parents[2]


def recorded_layers(name: str) -> int:
    """Layers of the network of a model in float32, as last recorded; a rise is a regression."""
    record = json.loads((ROOT / "benchmarks" / "results" / "tensorrt_rtx_builds.json").read_text("utf-8"))
    (layers,) = (
        row["layers"] for row in record["rows"] if row["model"] == name and row["precision"] == "fp32"
    )
    assert isinstance(layers, int)
    return layers


@pytest.mark.slow
@pytest.mark.parametrize("name", ["stvit_r_swin_small", "tiny_vit_21m_224", "deepmad_29m_224"])
def test_full_size_models_build(name: str, tmp_path: Path) -> None:
    from saccade.export import export_bundle

    made = export_bundle(name, None, tmp_path / name, random=True)
    (built,) = saccade.build(made.path, BuildOptions(flavour="tensorrt_rtx", target="sm86+sm89"))
    assert built.record.layers <= recorded_layers(name)
    assert set(built.record.working_types) == {"FLOAT"}
    assert built.record.plan_bytes > 10 * 2**20


# --- a whole bundle on a stand-in of a GPU -------------------------------------------------------------


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A bundle of the stand-in's network, with a plan in it, on a machine with the stand-in's GPU."""
    enter(tmp_path, monkeypatch, "10.16.1.11")
    path = write_stood_in(tmp_path / "stood-in", "source")
    saccade.build(path, BuildOptions(batch=BatchRange(1, 2, 4)))
    return path


def enter(folder: Path, monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    """Be on a machine with the stand-in's GPU and that version of it, as the child that builds is."""
    library = folder / "library"
    library.mkdir()
    (library / "tensorrt.py").write_text(IN_A_CHILD.format(version=version))
    monkeypatch.setenv("PYTHONPATH", str(library))
    World(version=version).enter(monkeypatch)


def write_stood_in(path: Path, *variants: str) -> Path:
    """A bundle of the stand-in's network; `variants` of its graph are the same."""
    pixels = np.random.default_rng(0).standard_normal((2, *IMAGE)).astype(np.float32)

    def fill(folder: Path) -> dict[str, Any]:
        (folder / "graphs").mkdir()
        files = {variant: f"graphs/{variant}.onnx" for variant in variants}
        for name in files.values():
            (folder / name).write_text("FLOAT")
        (folder / "verify.json").write_text("{}")
        arrays = {
            "input:image": pixels,
            "output:logits": logits(pixels),
            "tolerance:logits": np.float32(1e-6),
        }
        np.savez(folder / "conformance.npz", **arrays)  # type: ignore[arg-type]
        card = tiny.with_preprocessing(input_size_hw=IMAGE[1:], resize_hw=IMAGE[1:], resize="stretch")
        graph = {
            "inputs": [{"name": "image", "dtype": "float32", "shape": ["batch", *IMAGE]}],
            "outputs": [{"name": "logits", "dtype": "float32", "shape": ["batch", 10]}],
            "files": files,
            "sample": "conformance.npz",
        }
        manifest = {"name": "stood-in", "task": card.task, "card": card.to_json(), "graphs": {"model": graph}}
        return {**manifest, "derived": {}, "untrained": False, "provenance": {}}

    return write(path, fill).path


def test_a_predictor_over_a_plan(served: Path) -> None:
    picture = np.random.default_rng(1).integers(0, 256, (9, 7, 3), np.uint8)
    with saccade.load(served, "tensorrt", prove=True, device="cuda:0", contexts=2) as predictor:
        assert predictor.engine_name == "tensorrt"
        assert predictor([picture] * 3)[2].labels == predictor(picture).labels == tiny.LABELS
    (comparison,) = verify(served, ("tensorrt",)).comparisons
    assert comparison.agrees


@pytest.mark.parametrize("binding", ["function", "plugin"])
def test_before_plugins_plans_come_from_the_form_in_standard_operators(
    binding: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    enter(tmp_path, monkeypatch, "10.14.1.48")
    path = write_stood_in(tmp_path / "stood-in", "source", "openvino")
    (built,) = saccade.build(path, BuildOptions(binding=binding))
    assert list(built.record.files) == ["graphs/openvino.onnx"]
    assert built.record.binding == "function"


def test_the_plan_of_another_precision_is_not_taken(served: Path) -> None:
    with pytest.raises(EngineMismatch, match=r"has no tf32 plan .*: saccade build \S+ .*--precision tf32"):
        saccade.load(served, "tensorrt", precision="tf32")
    saccade.build(served, BuildOptions(precision="tf32"))
    saccade.load(served, "tensorrt", precision="tf32").close()
