"""Anchors and proposals against mmdet's numbers, in torch and in ONNX Runtime."""

from __future__ import annotations

import pytest
import torch
from tests import parity
from tests.exported import Exported
from torch import Tensor, nn
from torchvision.ops import box_iou

from saccade.models.heads.rpn import ProposalLimits, RPNHead, flatten_map

LEVELS = ("p2", "p3", "p4", "p5", "p6")


def _head(channels: int, candidates: int = 1000, kept: int = 1000, strides: tuple[int, ...] = ()) -> RPNHead:
    return RPNHead(
        channels,
        strides=strides or (4, 8, 16, 32, 64),
        scales=(8.0,),
        ratios=(0.5, 1.0, 2.0),
        limits=ProposalLimits(candidates, 0.7, kept),
    ).eval()


def test_anchors_as_mmdet() -> None:
    reference = parity.load("detection", "anchors")
    head = _head(4)
    parity.check("base", head.base_anchors, reference)
    sizes = [(height, width) for height, width in reference.config["sizes_hw"]]
    for i, anchors in enumerate(head.anchors(sizes)):
        parity.check(f"grid_{i}", anchors, reference)


class Proposals(nn.Module):
    """Raw maps of the first two levels, then proposals, with one argument for each map."""

    def __init__(self, head: RPNHead) -> None:
        super().__init__()
        self.head = head

    def forward(
        self, size_hw: Tensor, p2: Tensor, p3: Tensor, p4: Tensor, p5: Tensor, p6: Tensor
    ) -> tuple[Tensor, Tensor]:
        return self.head.proposals((p2, p3, p4, p5, p6), size_hw)


def _check_proposals(name: str, boxes: Tensor, scores: Tensor, reference: parity.Parity) -> None:
    """Every stored proposal is among ours, and the scores fall alike; those of equal score may swap."""
    stored = torch.from_numpy(reference.arrays[name])
    tolerance = reference.spec["proposal_tolerance"]
    torch.testing.assert_close(scores, stored[:, 4], rtol=0, atol=tolerance["score_atol"])
    distance = torch.cdist(stored[:, :4], boxes, p=float("inf"))
    apart = (stored[:, None, 4] - scores).abs() > tolerance["score_atol"]
    nearest = torch.where(apart, float("inf"), distance).amin(1)
    assert nearest.max() <= tolerance["box_atol"]


def test_proposals_as_mmdet() -> None:
    reference = parity.load("detection", "rpn_256x320")
    given = parity.inputs(reference)
    state = {key.removeprefix("rpn_head."): value for key, value in parity.state_dict(reference).items()}
    size = torch.tensor([reference.config["img_shape_hw"]], dtype=torch.float32)
    for name, run in reference.config["runs"].items():
        head = _head(256, run["nms_pre"], run["max_per_img"])
        head.load_state_dict(state)
        with torch.no_grad():
            logits, deltas = head(tuple(given.values()))
            boxes, scores = head.proposals(tuple(given.values()), size)
        for i in range(5):
            parity.check(f"cls_{i}", logits[i], reference)
            parity.check(f"reg_{i}", deltas[i], reference)
        _check_proposals(name, boxes[0], scores[0], reference)
    free = {name: {0: "batch", 2: f"{name}_height", 3: f"{name}_width"} for name in LEVELS}
    samples = {"size_hw": size, **{name: given[name][:, :, :3, :4] for name in LEVELS}}
    exported = Exported(Proposals(head), samples, free | {"size_hw": {0: "batch"}}, ["boxes", "scores"])
    boxes, scores = exported(size, *given.values())
    _check_proposals(name, boxes[0], scores[0], reference)


def test_few_anchors_are_filled_up() -> None:
    """Two tiny maps, two pictures: what is missing are zero boxes of score -1."""
    torch.manual_seed(0)
    head = _head(4, candidates=20, kept=50, strides=(16, 32))
    pyramid = torch.randn(2, 4, 2, 3), torch.randn(2, 4, 1, 2)
    with torch.no_grad():
        boxes, scores = head.proposals(pyramid, torch.tensor([[32.0, 48.0], [20.0, 30.0]]))
    assert boxes.shape == (2, 50, 4)
    for box, score, (height, width) in zip(boxes, scores, [(32, 48), (20, 30)], strict=True):
        real = score >= 0
        count = int(real.sum())
        assert 0 < count <= 18 + 6
        assert (score.diff()[: count - 1] <= 0).all()
        assert not box[count:].any()
        assert (score[count:] == -1).all()
        assert box[:, [0, 2]].max() <= width
        assert box[:, [1, 3]].max() <= height


def test_maps_and_anchors_have_one_order() -> None:
    head = _head(4, strides=(8,))
    (anchors,) = head.anchors([(3, 5)])
    grid = torch.arange(15.0).reshape(1, 1, 3, 5).expand(1, 3, 3, 5) * 3 + torch.arange(3.0)[:, None, None]
    order = flatten_map(grid, 1)[0, :, 0]
    assert order.tolist() == list(range(45))
    centres = (anchors[:, :2] + anchors[:, 2:]) / 2
    assert centres[::3].round().tolist() == [[8.0 * x, 8.0 * y] for y in range(3) for x in range(5)]
    assert (box_iou(anchors[:3], anchors[:3]) < 0.99).sum() == 6


@pytest.mark.parametrize("scales", [(4.0,), (2.0, 8.0)])
def test_scales_and_ratios_are_configuration(scales: tuple[float, ...]) -> None:
    head = RPNHead(4, strides=(4, 8), scales=scales, ratios=(1.0,), limits=ProposalLimits(10, 0.7, 10))
    sides = head.base_anchors[:, :, 2] - head.base_anchors[:, :, 0]
    assert sides.tolist() == [[stride * scale for scale in scales] for stride in (4, 8)]
