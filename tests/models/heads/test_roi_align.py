"""RoIAlign in both forms, in torch and in ONNX Runtime, against mmcv's numbers and torchvision."""

from __future__ import annotations

import pytest
import torch
from tests import parity
from tests.exported import Exported
from torch import Tensor, nn
from torchvision.ops import roi_align
from torchvision.ops.poolers import LevelMapper

from saccade.models.heads.roi_align import Form, region_features, region_levels

FORMS: tuple[Form, ...] = ("native", "separable")
STRIDES = (4, 8, 16, 32)


class Pool(nn.Module):
    """Pooling from one map, as a module that can be exported."""

    def __init__(self, size: int, form: Form) -> None:
        super().__init__()
        self.size, self.form = size, form

    def forward(self, rois: Tensor, features: Tensor) -> Tensor:
        return region_features([features], (4,), rois, self.size, self.form)


def _small() -> tuple[parity.Parity, Tensor, Tensor]:
    """The reference, its map, and its regions: a row for each picture, zero boxes for those of the other."""
    reference = parity.load("detection", "roi_align_small")
    given = parity.inputs(reference)
    own = given["rois"][:, :1] == torch.arange(len(given["feat"]))[:, None, None]
    return reference, given["feat"], torch.where(own, given["rois"][:, 1:], 0.0)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("size", [7, 14])
def test_as_mmcv(form: Form, size: int) -> None:
    reference, features, rois = _small()
    pooled = Pool(size, form)(rois, features).unflatten(0, rois.shape[:2])
    parity.check(f"out_{size}", pooled.sum(0), reference)


@pytest.mark.parametrize("form", FORMS)
def test_as_mmcv_in_onnx_runtime(form: Form) -> None:
    reference, features, rois = _small()
    free = {"rois": {0: "batch"}, "features": {0: "batch", 2: "height", 3: "width"}}
    exported = Exported(Pool(7, form), {"rois": rois, "features": features[:, :, :14, :15]}, free, ["y"])
    (pooled,) = exported(rois, features)
    parity.check("out_7", pooled.unflatten(0, rois.shape[:2]).sum(0), reference)


def _regions(batch: int, count: int, height: float, width: float) -> Tensor:
    """Boxes of all sizes and shapes inside the picture, some without area."""
    limit = torch.tensor([width, height])
    a, b = torch.rand(batch, count, 2) * limit, torch.rand(batch, count, 2) ** 3 * limit
    rois = torch.cat((torch.minimum(a, b), torch.maximum(a, b)), dim=-1)
    rois[:, 0] = torch.tensor([0.0, 0.0, width, height])
    rois[:, 1, 2] = rois[:, 1, 0]
    return rois


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("size_hw", [(512, 640), (96, 800)])
def test_routing_against_torchvision(form: Form, size_hw: tuple[int, int]) -> None:
    torch.manual_seed(0)
    pyramid = [torch.randn(2, 3, size_hw[0] // stride, size_hw[1] // stride) for stride in STRIDES]
    rois = _regions(2, 60, *size_hw)
    levels = LevelMapper(2, 5)(list(rois))
    assert set(levels.tolist()) >= {0, 1, 2}
    assert torch.equal(region_levels(rois, 4).flatten(), levels)
    picture = torch.arange(2.0).repeat_interleave(60)[:, None]
    expected = torch.zeros(120, 3, 7, 7)
    for i, (features, stride) in enumerate(zip(pyramid, STRIDES, strict=True)):
        indexed = torch.cat((picture, rois.flatten(0, 1)), dim=1)[levels == i]
        expected[levels == i] = roi_align(features, indexed, 7, 1 / stride, aligned=True)
    actual = region_features(pyramid, STRIDES, rois, 7, form)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


def test_both_forms_agree() -> None:
    torch.manual_seed(1)
    pyramid = [torch.randn(2, 4, 200 // 2**i, 334 // 2**i) for i in range(4)]
    rois = _regions(2, 200, 800, 1333)
    native, separable = (region_features(pyramid, STRIDES, rois, 7, form) for form in FORMS)
    torch.testing.assert_close(separable, native, rtol=1e-4, atol=2e-5)
    assert not native[1].any()
    assert native[0].any()


def test_level_boundaries() -> None:
    side = torch.tensor([0.0, 1, 111.99, 112, 223.9, 224, 447.9, 448, 4000])
    rois = torch.stack((torch.zeros(9), torch.zeros(9), side, side), dim=-1)
    assert region_levels(rois, 4).tolist() == [0, 0, 0, 1, 1, 2, 2, 3, 3]
