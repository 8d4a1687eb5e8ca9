"""Non-maximum suppression: the torch form and the operator's body, against mmcv's result and torchvision."""

from __future__ import annotations

import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper
from tests import parity
from torch import Tensor
from torchvision.ops import batched_nms as torchvision_batched_nms

from saccade.models.heads.nms import batched_nms, take
from saccade.models.operators import BATCHED_NMS, DOMAIN, OPSET, PLUGIN_ATTRIBUTES, VERSION


def _body(boxes: Tensor, scores: Tensor, *, iou: float, score: float, kept: int) -> Tensor:
    """The operator's ONNX definition in ONNX Runtime."""
    attributes = {"iou_threshold": iou, "score_threshold": score, "kept": kept}
    node = helper.make_node(
        BATCHED_NMS.name, BATCHED_NMS.inputs, ["y"], domain=DOMAIN, **attributes, **PLUGIN_ATTRIBUTES
    )
    inputs = [
        helper.make_tensor_value_info("boxes", TensorProto.FLOAT, ["b", "g", "n", 4]),
        helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["b", "g", "n"]),
    ]
    output = helper.make_tensor_value_info("y", TensorProto.INT64, [None, None])
    model = helper.make_model(
        helper.make_graph([node], "one", inputs, [output]),
        opset_imports=[helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, VERSION)],
        functions=[onnx.parser.parse_function(BATCHED_NMS.body)],
        ir_version=9,
    )
    onnx.checker.check_model(model, full_check=True)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (kept_index,) = session.run(None, {"boxes": boxes.numpy(), "scores": scores.numpy()})
    return torch.from_numpy(kept_index)


FORMS = pytest.mark.parametrize("nms", [batched_nms, _body], ids=["torch", "onnx"])


def _random(batch: int, groups: int, count: int) -> tuple[Tensor, Tensor]:
    corner, size = torch.rand(batch, groups, count, 2) * 100, torch.rand(batch, groups, count, 2) * 60
    return torch.cat((corner, corner + size), dim=-1), torch.rand(batch, groups, count)


@FORMS
def test_as_mmcv(nms: type[batched_nms]) -> None:
    reference = parity.load("detection", "batched_nms")
    given = parity.inputs(reference)
    groups, kept = reference.config["groups"], torch.from_numpy(reference.arrays["keep"]).long()
    own = given["ids"] == torch.arange(groups)[:, None]
    scores = torch.where(own, given["scores"], -1.0)[None]
    boxes = given["boxes"].expand(1, groups, -1, -1)
    index = nms(boxes, scores, iou=reference.config["iou_threshold"], score=-0.5, kept=300)[0]
    assert torch.equal(index[: len(kept)] % len(given["ids"]), kept)
    assert (index[len(kept) :] == -1).all()


@FORMS
@pytest.mark.parametrize(
    ("batch", "groups", "count", "score", "kept"),
    [(1, 5, 40, -0.5, 100), (2, 3, 60, 0.3, 30), (3, 1, 7, 0.5, 20), (1, 80, 20, 0.9, 10), (2, 2, 9, 1.0, 4)],
)
def test_random_groups_against_torchvision(
    nms: type[batched_nms], batch: int, groups: int, count: int, score: float, kept: int
) -> None:
    torch.manual_seed(count)
    boxes, scores = _random(batch, groups, count)
    boxes[0, 0, 0] = boxes[0, 0, 1] = 0.0  # no area, IoU 0 / 0: both stay
    actual = nms(boxes, scores, iou=0.5, score=score, kept=kept)
    assert actual.shape == (batch, kept)
    ids = torch.arange(groups)[:, None].expand(groups, count).flatten()
    for i in range(batch):
        alive = (scores[i].flatten() > score).nonzero().flatten()
        survivors = torchvision_batched_nms(
            boxes[i].flatten(0, 1)[alive], scores[i].flatten()[alive], ids[alive], 0.5
        )
        expected = torch.full((kept,), -1)
        expected[: len(survivors)] = alive[survivors][:kept]
        assert torch.equal(actual[i], expected)


def test_taking_rows() -> None:
    values = torch.arange(12.0).reshape(2, 3, 2)
    taken = take(values, torch.tensor([[2, -1], [0, 1]]), -7.0)
    assert taken.tolist() == [[[4.0, 5.0], [-7.0, -7.0]], [[6.0, 7.0], [8.0, 9.0]]]
