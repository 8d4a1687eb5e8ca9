"""Box arithmetic against mmdet's numbers and torchvision's coder."""

from __future__ import annotations

import pytest
import torch
from tests import parity
from torchvision.models.detection._utils import BoxCoder

from saccade.models.heads.boxes import clip, decode, encode


@pytest.mark.parametrize("stage", ["rpn", "s0", "s1", "s2"])
def test_decoding_as_mmdet(stage: str) -> None:
    reference = parity.load("detection", "bbox_decode")
    given, stds = parity.inputs(reference), reference.config["stds"][stage]
    size = torch.tensor([reference.config["max_shape_hw"]], dtype=torch.float32)
    single = clip(decode(given["rois"], given["deltas"][:, :4], stds)[None], size)[0]
    parity.check(f"dec4_{stage}", single, reference)
    by_class = decode(given["rois"][:, None], given["deltas"].reshape(-1, 3, 4), stds)
    parity.check(f"dec12_{stage}", clip(by_class[None], size)[0].flatten(1), reference)


def _boxes(count: int) -> torch.Tensor:
    corner, size = torch.rand(count, 2) * 300, torch.rand(count, 2) * 200 + 1
    return torch.cat((corner, corner + size), dim=1)


def test_coding_against_torchvision() -> None:
    torch.manual_seed(0)
    boxes, targets, stds = _boxes(50), _boxes(50), (0.1, 0.1, 0.2, 0.2)
    coder = BoxCoder(tuple(1 / std for std in stds))
    deltas = encode(boxes, targets, stds)
    torch.testing.assert_close(deltas, coder.encode_single(targets, boxes), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(decode(boxes, deltas, stds), targets, rtol=1e-4, atol=1e-3)
    noise = torch.randn(50, 4)
    torch.testing.assert_close(decode(boxes, noise, stds), coder.decode_single(noise, boxes))


def test_every_picture_has_its_own_limits() -> None:
    boxes = torch.tensor([[-5.0, -6.0, 70.0, 80.0]]).expand(2, 3, 4)
    cut = clip(boxes, torch.tensor([[60.0, 50.0], [90.0, 40.0]]))
    assert cut[:, 0].tolist() == [[0.0, 0.0, 50.0, 60.0], [0.0, 0.0, 40.0, 80.0]]
