"""A detector from the zoo to plans of TensorRT for RTX, fp32 and fp16: compared at every step, and built."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import onnx
import pytest
from tests import tiny

import saccade
from saccade.builds import BatchRange, BuildOptions, SizeRange
from saccade.bundle import Bundle
from saccade.conversion import convert
from saccade.engines.passes.tensorrt import differs
from saccade.engines.tensorrt.options import Precision
from saccade.export import export_bundle

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def low(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("detector")
    plain = export_bundle(
        "mask_rcnn_swin_tiny",
        None,
        folder / "plain",
        random=True,
        config=tiny.DETECTOR,
        input_size_hw=(128, 192),
    )
    return convert(plain.path, ["fp16"], folder / "low")


def test_every_precision_has_its_form_and_was_compared(low: Bundle) -> None:
    files = low.graphs["model"].files
    assert (files["tensorrt"].name, files["fp16.tensorrt"].name) == (
        "model.tensorrt.onnx",
        "model.fp16.tensorrt.onnx",
    )
    for variant in ("tensorrt", "fp16.tensorrt"):
        graph = onnx.load(files[variant], load_external_data=False)
        assert not differs(graph)
        assert not any(node.domain for node in graph.graph.node)
        derived = low.derived[f"graphs/{files[variant].name}"]
        assert {"use_matrix_nms", "use_separable_regions"} <= set(derived["passes"])
    report = json.loads((low.path / "verify.json").read_text())
    whole = [row for row in report["comparisons"] if row["graph"] == "model.tensorrt.onnx"]
    assert {row["engine"] for row in whole} == {"onnxruntime"}
    assert {row["output"] for row in whole} == {"boxes", "scores", "labels", "count", "masks"}
    assert all(row["agrees"] for row in whole)
    low_rows = report["precisions"]["model.fp16.onnx"]["comparisons"]
    ran = [row for row in low_rows if row["file"] == "model.fp16.tensorrt.onnx"]
    assert {row["arithmetic"] for row in ran} == {"onnxruntime"}
    answers = report["precisions"]["model.fp16.onnx"]["detections"]
    assert 0 < answers["found"] <= answers["rows"]
    assert all(row["agrees"] for row in ran)


@pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx_bindings") is None,
    reason="NVIDIA's builder is not installed: pip install 'saccade[tensorrt-rtx]'",
)
@pytest.mark.parametrize(
    ("precision", "target"), [("fp32", "sm80+sm86+sm89+sm120"), ("fp16", "sm75+sm80+sm86+sm89+sm120")]
)
def test_it_builds_for_every_gpu(
    low: Bundle, precision: Precision, target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SACCADE_CACHE", str(tmp_path))
    sizes = SizeRange((128, 128), (160, 224), (256, 320))
    options = BuildOptions("tensorrt_rtx", precision, BatchRange(1, 1, 2), sizes, target)
    (built,) = saccade.build(low.path, options)
    assert f"graphs/model.{'' if precision == 'fp32' else 'fp16.'}tensorrt.onnx" in built.record.files
    assert ("HALF" in built.record.working_types) == (precision == "fp16")
    if precision == "fp16":
        assert set(built.record.working_types) <= {"HALF", "FLOAT"}
