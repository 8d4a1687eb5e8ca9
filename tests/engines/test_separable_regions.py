"""RoiAlign in matrix products: equal to ONNX's operator, and within reach of NVIDIA's parser."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from saccade.engines.passes.tensorrt import differs, for_tensorrt

FORM = {"coordinate_transformation_mode": "half_pixel", "mode": "avg", "sampling_ratio": 0}


def _model(size: int, scale: float, kind: int = TensorProto.FLOAT, **changes: Any) -> onnx.ModelProto:
    """Features of seven regions in each of two pictures; of a map in the type `kind`."""
    attributes = {**FORM, "output_height": size, "output_width": size, "spatial_scale": scale, **changes}
    nodes = [
        helper.make_node("Cast", ["features"], ["low"], to=kind),
        helper.make_node("Cast", ["low"], ["widened"], to=TensorProto.FLOAT),
        helper.make_node("RoiAlign", ["widened", "rois", "picture"], ["pooled"], name="pool", **attributes),
    ]
    inputs = [
        helper.make_tensor_value_info("features", TensorProto.FLOAT, [2, 6, "height", "width"]),
        helper.make_tensor_value_info("rois", TensorProto.FLOAT, [14, 4]),
    ]
    output = helper.make_tensor_value_info("pooled", TensorProto.FLOAT, [14, 6, size, size])
    picture = onnx.numpy_helper.from_array(np.repeat([0, 1], 7), "picture")
    graph = helper.make_graph(nodes, "regions", inputs, [output], [picture])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    return onnx.shape_inference.infer_shapes(model)


def _run(model: onnx.ModelProto, *arrays: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    feeds = dict(zip(("features", "rois"), arrays, strict=True))
    result: np.ndarray[Any, Any] = session.run(None, feeds)[0]
    return result


@pytest.mark.parametrize(("size", "scale"), [(7, 1 / 4), (14, 1 / 16), (3, 1.0)])
@pytest.mark.parametrize(("kind", "near"), [(TensorProto.FLOAT, 2e-5), (TensorProto.FLOAT16, 1e-2)])
def test_equal_to_onnxs_operator(size: int, scale: float, kind: int, near: float) -> None:
    rng = np.random.default_rng(size)
    features = rng.standard_normal((2, 6, 11, 17)).astype(np.float32)
    corners = rng.uniform(-3, 12, (14, 2))
    extents = rng.uniform(0.1, 9, (14, 2))
    rois = (np.concatenate([corners, corners + extents], 1) / scale).astype(np.float32)
    model = _model(size, scale, kind)
    rewritten = for_tensorrt(model)
    assert differs(model)
    assert not differs(rewritten)
    assert not any(node.domain for node in rewritten.graph.node)
    products = {node.op_type for node in rewritten.graph.node}
    assert "MatMul" in products
    expected = _run(model, features, rois)
    np.testing.assert_allclose(_run(rewritten, features, rois), expected, rtol=near, atol=near)


@pytest.mark.parametrize("changes", [{"mode": "max"}, {"sampling_ratio": 2}])
def test_another_form_stays(changes: dict[str, Any]) -> None:
    assert differs(for_tensorrt(_model(7, 0.25, **changes)))


@pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx_bindings") is None,
    reason="NVIDIA's parser is not installed: pip install 'saccade[tensorrt-rtx]'",
)
def test_nvidias_parser_takes_it(tmp_path: Path) -> None:
    from saccade.engines.tensorrt.parser import ShapeRange, judge

    profile = {"features": ShapeRange((2, 6, 8, 8), (2, 6, 16, 16), (2, 6, 32, 32))}
    for name, model in {"native": _model(7, 0.25), "separable": for_tensorrt(_model(7, 0.25))}.items():
        onnx.save(model, tmp_path / f"{name}.onnx")
    native = judge(tmp_path / "native.onnx", profile=profile, build=False)
    assert "ROIAlign plugin was not found" in str(native.errors)
    verdict = judge(tmp_path / "separable.onnx", profile=profile)
    assert verdict.ok, verdict.errors
