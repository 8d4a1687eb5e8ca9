"""The three stages of a cascade against mmdet's numbers, in torch and in ONNX Runtime."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests import parity
from tests.exported import Exported
from torch import Tensor, nn

from saccade.models.detection import STAGE_STDS
from saccade.models.heads.box_head import BoxHead
from saccade.models.heads.mask_head import MaskHead
from saccade.models.heads.roi_align import Form
from saccade.models.heads.roi_head import DetectionLimits, Pooling, RoIHead


@pytest.fixture(autouse=True)
def _no_gradients() -> Any:
    with torch.no_grad():
        yield


def _cascade(form: Form = "native") -> RoIHead:
    box: dict[str, Any] = {"convs": 4, "norm": True, "fcs": 1, "width": 1024, "class_agnostic": False}
    return RoIHead(
        [BoxHead(256, 7, 80, **box) for _ in range(3)],
        [MaskHead(256, 80, convs=4) for _ in range(3)],
        cascade=True,
        stds=STAGE_STDS,
        pooling=Pooling((4, 8, 16, 32), 7, 14, form),
        limits=DetectionLimits(0.05, 0.5, 100),
    ).eval()


def _small(*, agnostic: bool = False, classes: int = 3) -> RoIHead:
    torch.manual_seed(0)
    head = BoxHead(4, 7, classes, convs=0, norm=False, fcs=1, width=8, class_agnostic=agnostic)
    nn.init.normal_(head.fc_cls.weight)
    nn.init.normal_(head.fc_reg.weight)
    return RoIHead(
        [head],
        [MaskHead(4, classes, convs=1)],
        cascade=False,
        stds=STAGE_STDS[:1],
        pooling=Pooling((4, 8), 7, 14, "native"),
        limits=DetectionLimits(0.3, 0.5, 6),
    ).eval()


class Stages(nn.Module):
    """Classification and masks of given regions, with one argument for each map."""

    def __init__(self, head: RoIHead) -> None:
        super().__init__()
        self.head = head

    def forward(
        self,
        rois: Tensor,
        mask_rois: Tensor,
        labels: Tensor,
        size_hw: Tensor,
        p2: Tensor,
        p3: Tensor,
        p4: Tensor,
        p5: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        pyramid = (p2, p3, p4, p5)
        boxes, scores = self.head.classify(pyramid, rois, size_hw)
        count = torch.full_like(labels[:, 0], labels.shape[1])
        return boxes, scores, self.head.masks(pyramid, mask_rois, scores, labels, count)


@pytest.fixture(scope="module")
def reference() -> parity.Parity:
    return parity.load("detection", "cascade_heads_512x640")


@pytest.fixture(scope="module")
def head(reference: parity.Parity) -> RoIHead:
    model = _cascade()
    state = parity.state_dict(reference)
    missing, unexpected = model.load_state_dict(
        {key.removeprefix("roi_head."): value for key, value in state.items()}, strict=False
    )
    assert not unexpected
    assert all(key.endswith("num_batches_tracked") for key in missing)
    return model


def _arguments(reference: parity.Parity) -> tuple[Tensor, ...]:
    given = parity.inputs(reference)
    rois = given["rois"][None, :, 1:]
    size = torch.tensor([reference.config["img_shape_hw"]], dtype=torch.float32)
    chosen = rois[:, given["mask_rows"].long()]
    maps = [given[name] for name in ("p2", "p3", "p4", "p5")]
    return rois, chosen, given["mask_labels"].long()[None], size, *maps


def test_single_stages_as_mmdet(reference: parity.Parity, head: RoIHead) -> None:
    rois, chosen, labels, _, *pyramid = _arguments(reference)
    regions = head.features(pyramid, rois, 7)
    parity.check("roi_feats", regions, reference)
    parity.check("mask_roi_feats", head.features(pyramid, rois, 14), reference)
    for k in range(3):
        logits, deltas = head.box_heads[k](regions)
        parity.check(f"cls_{k}", logits, reference)
        parity.check(f"reg_{k}", deltas, reference)
        masks = head.mask_heads[k](head.features(pyramid, chosen, 14))
        parity.check(f"mask_logits_{k}", masks[torch.arange(8), labels[0]], reference)


@pytest.mark.parametrize("form", ["native", "separable"])
def test_refinement_and_masks_as_mmdet(reference: parity.Parity, head: RoIHead, form: Form) -> None:
    arguments = _arguments(reference)
    other = _cascade(form)
    other.load_state_dict(head.state_dict())
    _check_stages(Stages(other)(*arguments), reference)


def test_stages_in_onnx_runtime(reference: parity.Parity, head: RoIHead) -> None:
    arguments = _arguments(reference)
    names = ("rois", "mask_rois", "labels", "size_hw", "p2", "p3", "p4", "p5")
    free: dict[str, dict[int, str]] = {name: {0: "batch"} for name in names}
    for name in names[4:]:
        free[name] |= {2: f"{name}_height", 3: f"{name}_width"}
    exported = Exported(
        Stages(head), dict(zip(names, arguments, strict=True)), free, ["boxes", "scores", "masks"]
    )
    _check_stages(exported(*arguments), reference)


def _check_stages(found: tuple[Tensor, ...], reference: parity.Parity) -> None:
    boxes, scores, masks = found
    rtol, atol = reference.tolerance
    stored = {name: torch.from_numpy(reference.arrays[name]) for name in ("boxes", "scores")}
    torch.testing.assert_close(boxes[0, :, ::4], stored["boxes"], rtol=rtol, atol=atol)
    torch.testing.assert_close(scores[0], stored["scores"][:, :-1], rtol=rtol, atol=1e-5)
    parity.check("mask_prob", masks[0], reference)


def _pyramid(batch: int) -> tuple[Tensor, ...]:
    torch.manual_seed(1)
    return torch.randn(batch, 4, 16, 24), torch.randn(batch, 4, 8, 12), torch.randn(batch, 4, 4, 6)


@pytest.mark.parametrize("agnostic", [False, True])
def test_detections_are_those_of_each_picture_alone(agnostic: bool) -> None:
    head = _small(agnostic=agnostic)
    corner, size = torch.rand(3, 20, 2) * 30, torch.rand(3, 20, 2) * 34
    rois, scores = torch.cat((corner, corner + size), dim=-1), torch.rand(3, 20)
    rois[1], scores[1] = 0.0, -1.0  # a picture without proposals
    scores[2, 5:] = -1.0
    size_hw = torch.tensor([[64.0, 96.0], [60.0, 90.0], [50.0, 70.0]])
    pyramid = _pyramid(3)
    together = head(pyramid, rois, scores, size_hw)
    boxes, found_scores, labels, count, masks = together
    assert masks.shape == (3, 6, 28, 28)
    assert count[1] == 0
    assert 0 < count[2] <= 5 * 3
    assert count[0] == 6
    for i in range(3):
        row = slice(i, i + 1)
        alone = head([level[row] for level in pyramid], rois[row], scores[row], size_hw[row])
        for one, all_of_them in zip(alone, together, strict=True):
            torch.testing.assert_close(one[0], all_of_them[i])
        for column in (boxes, found_scores, labels, masks):
            assert not column[i, int(count[i]) :].any()
        assert (found_scores[i, : int(count[i])] > 0.3).all()


def test_one_class_and_fewer_regions_than_detections() -> None:
    head = _small(classes=1)
    rois = torch.tensor([[[2.0, 3.0, 30.0, 40.0]]])
    found = head(_pyramid(1), rois, torch.ones(1, 1), torch.tensor([[64.0, 96.0]]))
    assert found[0].shape == (1, 6, 4)
    assert found[3] <= 1
