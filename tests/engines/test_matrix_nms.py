"""NMS in matrix products: equal to the operator's own body, and within reach of NVIDIA's builder."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper
from torch import Tensor

from saccade.engines.passes.inline import inline
from saccade.engines.passes.matrix_nms import use_matrix_nms
from saccade.models.heads.nms import batched_nms
from saccade.models.operators import BATCHED_NMS, DOMAIN, OPSET, PLUGIN_ATTRIBUTES, VERSION


def _model(groups: int, count: int, kept: int, *, iou: float, score: float) -> onnx.ModelProto:
    attributes = {"iou_threshold": iou, "score_threshold": score, "kept": kept, **PLUGIN_ATTRIBUTES}
    node = helper.make_node(BATCHED_NMS.name, BATCHED_NMS.inputs, ["y"], domain=DOMAIN, **attributes)
    inputs = [
        helper.make_tensor_value_info("boxes", TensorProto.FLOAT, ["batch", groups, count, 4]),
        helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", groups, count]),
    ]
    output = helper.make_tensor_value_info("y", TensorProto.INT64, ["batch", kept])
    model = helper.make_model(
        helper.make_graph([node], "nms", inputs, [output]),
        opset_imports=[helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, VERSION)],
        functions=[onnx.parser.parse_function(BATCHED_NMS.body)],
        ir_version=9,
    )
    return inline(use_matrix_nms(model))


def _boxes(batch: int, groups: int, count: int, spread: float) -> tuple[Tensor, Tensor]:
    """Boxes along a line, so that chains of overlapping boxes are long where they are `spread` little."""
    torch.manual_seed(count)
    corner = torch.rand(batch, groups, count, 2) * torch.tensor([spread, 3.0])
    boxes = torch.cat((corner, corner + 20 + torch.rand(batch, groups, count, 2)), dim=-1)
    boxes[:, :, :2] = 0.0  # without area
    return boxes, torch.rand(batch, groups, count)


@pytest.mark.parametrize(
    ("batch", "groups", "count", "kept", "score", "spread"),
    [
        (1, 5, 200, 300, -0.5, 2000.0),
        (2, 3, 100, 60, 0.3, 200.0),
        (1, 1, 300, 50, -0.5, 900.0),
        (2, 20, 9, 10, 0.8, 100.0),
        (1, 2, 5, 40, 0.99, 30.0),
    ],
)
def test_equal_to_greedy_suppression(
    batch: int, groups: int, count: int, kept: int, score: float, spread: float
) -> None:
    boxes, scores = _boxes(batch, groups, count, spread)
    model = _model(groups, count, kept, iou=0.5, score=score)
    assert "NonMaxSuppression" not in {node.op_type for node in model.graph.node}
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (actual,) = session.run(None, {"boxes": boxes.numpy(), "scores": scores.numpy()})
    expected = batched_nms(boxes, scores, iou=0.5, score=score, kept=kept)
    assert torch.equal(torch.from_numpy(actual), expected)


def test_more_pairs_than_tensorrts_top_k_takes() -> None:
    """80 classes of 100 regions: exact since fewer than 3840 pairs exceed the score."""
    boxes, scores = _boxes(1, 80, 100, 3000.0)
    model = _model(80, 100, 100, iou=0.5, score=0.7)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (actual,) = session.run(None, {"boxes": boxes.numpy(), "scores": scores.numpy()})
    assert torch.equal(torch.from_numpy(actual), batched_nms(boxes, scores, iou=0.5, score=0.7, kept=100))


def test_nvidias_builder_takes_it(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx_libs", reason="TensorRT for RTX is not installed")
    from saccade.engines.tensorrt.parser import ShapeRange, judge

    path = tmp_path / "nms.onnx"
    onnx.save(_model(4, 50, 20, iou=0.5, score=0.05), path)
    profile = {
        "boxes": ShapeRange((1, 4, 50, 4), (2, 4, 50, 4), (4, 4, 50, 4)),
        "scores": ShapeRange((1, 4, 50), (2, 4, 50), (4, 4, 50)),
    }
    verdict = judge(path, profile=profile)
    assert verdict.ok, verdict.errors
