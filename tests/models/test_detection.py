"""Whole detectors: names of weights, sizes from weights, one graph for all sizes, and mmdet's detections."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests import parity
from tests.exported import Exported
from tests.models.test_checkpoint import HistoryBuffer, importable_as
from torch import Tensor, nn
from torchvision.ops import box_iou

from saccade.errors import CheckpointError, UsageError
from saccade.models import create
from saccade.models.card import Card
from saccade.models.cards import detection
from saccade.models.entry import Entry
from saccade.models.labels import coco_80

SMALL: dict[str, Any] = {
    "backbone": {"embed_dim": 16, "depths": (1, 2, 6, 1), "num_heads": (1, 1, 2, 4)},
    "num_classes": 5,
    "channels": 16,
    "box_width": 32,
    "proposal_candidates": 60,
    "proposals": 40,
    "detections": 12,
    "score_threshold": 0.2,
}
OUTPUTS = ("boxes", "scores", "labels", "count", "masks")


@pytest.fixture(autouse=True)
def _no_gradients() -> Any:
    with torch.no_grad():
        yield


def _small(name: str = "mask_rcnn_stvit_r_swin_tiny", **config: Any) -> nn.Module:
    """A small detector whose random weights give opinions instead of near-zeros."""
    torch.manual_seed(0)
    model = create(name, **{**SMALL, **config})
    for key, parameter in model.named_parameters():
        if "layer_scale" in key:
            nn.init.ones_(parameter)
        elif key.endswith(("rpn_cls.weight", "fc_cls.weight", "conv_logits.weight")):
            nn.init.normal_(parameter, std=0.5)
        elif key.endswith(("rpn_reg.weight", "fc_reg.weight")):
            nn.init.normal_(parameter, std=0.05)
    return model


def _pictures(batch: int, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Noise, and unpadded sizes that differ from picture to picture."""
    sizes = [[height - 3.0 * i, width - 5.0 * i] for i in range(batch)]
    return torch.randn(batch, 3, height, width), torch.tensor(sizes)


# --- names and shapes of weights -------------------------------------------------------------------------


@pytest.mark.parametrize("size", ["small", "base"])
def test_weights_have_the_names_of_the_released_detectors(size: str) -> None:
    with torch.device("meta"):
        model = create(f"cascade_mask_rcnn_stvit_r_swin_{size}")
    manifest = _manifest(f"cascade_mask_rcnn_stvit_swin_{size[0]}")
    recomputed = ("relative_position_index",)
    expected = {
        key: tuple(shape) for key, shape, *_ in manifest["state_dict"] if not key.endswith(recomputed)
    }
    assert {key: tuple(value.shape) for key, value in model.state_dict().items()} == expected
    assert sum(parameter.numel() for parameter in model.parameters()) == manifest["parameters"]


def test_weights_of_two_fc_heads_have_mmdets_names() -> None:
    with torch.device("meta"):
        state = create("mask_rcnn_swin_tiny").state_dict()
    heads = {key: list(value.shape) for key, value in state.items() if not key.startswith("backbone.")}
    assert heads == {key: shape for key, shape, *_ in _manifest("mask_rcnn_2fc_parts")["state_dict"]}


def _manifest(name: str) -> Any:
    return json.loads((parity.DATA / "detection" / f"manifest_{name}.json").read_text())


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("mask_rcnn_swin_tiny", {}),
        ("cascade_mask_rcnn_swin_tiny", {}),
        ("mask_rcnn_stvit_r_swin_tiny", {"box_convs": 2, "box_norm": True, "box_fcs": 1, "mask_convs": 1}),
        ("cascade_mask_rcnn_stvit_r_swin_small", {"class_agnostic": True}),
        ("mask_rcnn_swin_tiny", {"masks": False}),
        ("cascade_mask_rcnn_swin_tiny", {"masks": False, "box_convs": 0, "box_norm": False, "box_fcs": 0}),
    ],
)
def test_sizes_of_heads_are_read_from_weights(name: str, config: dict[str, Any]) -> None:
    saved = _small(name, **config)
    loaded = create(name, saved.state_dict(), backbone=SMALL["backbone"])
    assert str(loaded) == str(saved)
    for key, value in saved.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value), key


def test_boxes_only_without_mask_head() -> None:
    model = _small(masks=False)
    found = model(*_pictures(2, 64, 96))
    assert [tuple(each.shape) for each in found] == [(2, 12, 4), (2, 12), (2, 12), (2,)]


@pytest.mark.parametrize("entry", detection.ENTRIES, ids=lambda entry: entry.card.name)
def test_cards_count_what_is_built(entry: Entry) -> None:
    card = entry.card
    with torch.device("meta"):
        model = create(card.name)
    assert sum(parameter.numel() for parameter in model.parameters()) == card.parameters
    assert Card.from_json(card.to_json()) == card
    assert card.labels == coco_80()
    assert card.licence or not card.weights
    assert card.weights or card.remark, "a card without weights says why"


def test_cocos_classes() -> None:
    assert len(set(coco_80())) == 80
    places = {0: "person", 10: "fire hydrant", 39: "bottle", 50: "broccoli", 62: "tv", 79: "toothbrush"}
    assert {i: coco_80()[i] for i in places} == places


@pytest.mark.parametrize(
    ("name", "backbone", "size_hw"),
    [
        ("mask_rcnn_tiny_vit_5m_224", {"embed_dims": (16, 32, 32, 64), "num_heads": (1, 1, 1, 2)}, (96, 160)),
        ("mask_rcnn_fastvit_mci2", {"embed_dims": (16, 32, 64, 64), "layers": (1, 1, 1, 1)}, (96, 160)),
        (
            "mask_rcnn_clip_vit_b_16",
            {"embed_dim": 64, "depth": 4, "num_heads": 2, "img_size": 128},
            (128, 128),
        ),
        ("mask_rcnn_deepmad_r18", {}, (96, 160)),
    ],
)
def test_other_backbones(name: str, backbone: dict[str, Any], size_hw: tuple[int, int]) -> None:
    model = _small(name, backbone=backbone)
    maps = model.pyramid(torch.zeros(1, 3, *size_hw))  # type: ignore[operator]
    assert [tuple(x.shape[2:]) for x in maps] == [
        tuple(-(-side // stride) for side in size_hw) for stride in (4, 8, 16, 32, 64)
    ]
    picture = _pictures(1, *size_hw)
    loaded = create(name, model.state_dict(), **{**SMALL, "backbone": backbone})
    for actual, expected in zip(loaded(*picture), model(*picture), strict=True):
        assert torch.equal(actual, expected)


# --- checkpoints of mmdet 3 ------------------------------------------------------------------------------


def _as_mmdet3(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The names and the order of merged patches in mmdet 3's Swin, from the official ones."""
    renamed = {}
    for key, value in state.items():
        if ".downsample." in key:
            # Four neighbours after each other become the four neighbours of every channel, column first.
            value = value.unflatten(-1, (4, -1))[..., [0, 2, 1, 3], :].transpose(-1, -2).flatten(-2)
        for ours, theirs in (
            ("patch_embed.proj.", "patch_embed.projection."),
            ("backbone.layers.", "backbone.stages."),
            (".attn.", ".attn.w_msa."),
            (".mlp.fc1.", ".ffn.layers.0.0."),
            (".mlp.fc2.", ".ffn.layers.1."),
        ):
            key = key.replace(ours, theirs) if key.startswith("backbone.") else key
        renamed[key] = value
    return renamed


def test_mmdet_3_file_with_its_logs(tmp_path: Path) -> None:
    """HistoryBuffer objects under message_hub are passed over; nothing of them is imported or run."""
    saved = _small("mask_rcnn_swin_tiny")
    path = tmp_path / "epoch_12.pth"
    with importable_as(HistoryBuffer, "mmengine.logging.history_buffer"):
        content = {
            "meta": {"epoch": 12, "cfg": "model = dict(type='MaskRCNN')"},
            "state_dict": OrderedDict(_as_mmdet3(saved.state_dict())),
            "message_hub": {"log_scalars": OrderedDict(loss=HistoryBuffer()), "runtime_info": OrderedDict()},
        }
        torch.save(content, path)
    loaded = create("mask_rcnn_swin_tiny", path, backbone=SMALL["backbone"])
    for key, value in saved.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value), key


def _without(prefix: str) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda state: {key: value for key, value in state.items() if not key.startswith(prefix)}


@pytest.mark.parametrize(
    ("name", "change", "config", "message"),
    [
        ("cascade_mask_rcnn_swin_tiny", dict, {}, r"1 box heads: create one of mask_rcnn_\*"),
        (
            "mask_rcnn_swin_tiny",
            _without("roi_head."),
            {},
            "no weights of Mask R-CNN.*backbone, neck, rpn_head",
        ),
        ("mask_rcnn_swin_tiny", _without("roi_head.mask_head."), {"masks": True}, "missing.*mask_head"),
        ("mask_rcnn_swin_tiny", _without("neck.fpn_convs.2"), {}, r"missing: neck\.fpn_convs\.2"),
        ("mask_rcnn_swin_tiny", _without("backbone."), {}, "hold no weights of a backbone"),
        ("mask_rcnn_swin_tiny", dict, {"num_classes": 7}, "mis-shaped.*fc_cls"),
        ("mask_rcnn_stvit_r_swin_tiny", dict, {}, "does not fit STViT-R"),
    ],
)
def test_wrong_weights_are_named(
    name: str, change: Callable[[dict[str, Tensor]], dict[str, Tensor]], config: dict[str, Any], message: str
) -> None:
    state = change(_small("mask_rcnn_swin_tiny").state_dict())
    with pytest.raises(CheckpointError, match=f"(?s){message}"):
        create(name, state, backbone=SMALL["backbone"], **config)


def test_stages_without_deltas_units() -> None:
    state = _small("cascade_mask_rcnn_swin_tiny").state_dict()
    state = _without("roi_head.bbox_head.2.")(state)
    with pytest.raises(CheckpointError, match="2 stages, stage_stds has 3"):
        create("cascade_mask_rcnn_swin_tiny", state, backbone=SMALL["backbone"])


def test_a_detector_has_no_feature_maps() -> None:
    with pytest.raises(UsageError, match=r"create\('swin_tiny', features=True\)"):
        create("mask_rcnn_swin_tiny", features=True)


# --- detections ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "form"),
    [
        ("mask_rcnn_stvit_r_swin_tiny", "native"),
        ("mask_rcnn_stvit_r_swin_tiny", "separable"),
        ("cascade_mask_rcnn_swin_tiny", "native"),
    ],
)
@pytest.mark.slow
def test_one_graph_serves_every_size(name: str, form: str) -> None:
    model = _small(name, roi_align=form, box_convs=0, box_fcs=2)  # scores far apart, so that order is fixed
    free = {"image": {0: "batch", 2: "height", 3: "width"}, "size_hw": {0: "batch"}}
    image, size_hw = _pictures(2, 64, 96)
    exported = Exported(model, {"image": image, "size_hw": size_hw}, free, OUTPUTS)
    rows = SMALL["detections"]
    shapes = [
        [dim.dim_param or dim.dim_value for dim in output.type.tensor_type.shape.dim]
        for output in exported.graph.graph.output
    ]
    assert shapes == [
        ["batch", rows, 4],
        ["batch", rows],
        ["batch", rows],
        ["batch"],
        ["batch", rows, 28, 28],
    ]
    for batch, height, width in [(1, 256, 320), (2, 224, 320), (1, 320, 256), (1, 416, 608), (3, 32, 32)]:
        picture = _pictures(batch, height, width)
        expected = model(*picture)
        assert int(expected[3].sum()) > 0
        for name, actual, wanted in zip(OUTPUTS, exported(*picture), expected, strict=True):
            assert actual.dtype == wanted.dtype
            torch.testing.assert_close(actual, wanted, rtol=1e-3, atol=1e-3, msg=f"{name} {height}x{width}")


def test_pictures_of_a_batch_do_not_meet() -> None:
    model = _small()
    image, size_hw = _pictures(3, 96, 128)
    together = model(image, size_hw)
    for i in range(3):
        for one, all_of_them in zip(model(image[i : i + 1], size_hw[i : i + 1]), together, strict=True):
            torch.testing.assert_close(one[0], all_of_them[i], rtol=1e-4, atol=1e-3)
        boxes, count = together[0][i], int(together[3][i])
        assert (boxes[:, 0::2] <= size_hw[i, 1]).all()
        assert (boxes[:, 1::2] <= size_hw[i, 0]).all()
        assert not any(column[i, count:].any() for column in (*together[:3], together[4]))


def test_nothing_found() -> None:
    boxes, scores, labels, count, masks = _small(score_threshold=0.999)(*_pictures(2, 64, 64))
    assert count.tolist() == [0, 0]
    assert not any(each.any() for each in (boxes, scores, labels, masks))


def test_both_forms_of_region_features_give_the_same_detections() -> None:
    picture = _pictures(2, 160, 224)
    native, separable = (_small(roi_align=form)(*picture) for form in ("native", "separable"))
    assert int(native[3].sum()) > 0
    for actual, expected in zip(separable, native, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("form", ["torch", "onnx"])
@pytest.mark.slow
def test_detections_of_the_released_model(form: str) -> None:
    """Whole Cascade Mask R-CNN: matched by label and overlap, as the reference asks."""
    reference = parity.load("detection", "cascade_mask_rcnn_stvit_swin_s_256x320")
    threshold = reference.config["rcnn"]["score_thr"]
    model = create(
        "cascade_mask_rcnn_stvit_r_swin_small", parity.state_dict(reference), score_threshold=threshold
    )
    image = parity.inputs(reference)["image"]
    size_hw = torch.tensor([[256.0, 320.0]])
    if form == "torch":
        pyramid = model.pyramid(image)  # type: ignore[operator]
        parity.check("p2", pyramid[0], reference)
        parity.check("p5", pyramid[3], reference)
        found = model(image, size_hw)
    else:
        free = {"image": {0: "batch", 2: "height", 3: "width"}, "size_hw": {0: "batch"}}
        samples = {"image": torch.zeros(2, 3, 224, 288), "size_hw": torch.tensor([[224.0, 288.0]] * 2)}
        found = Exported(model, samples, free, OUTPUTS)(image, size_hw)
    _check_detections(found, reference)


def _check_detections(found: tuple[Tensor, ...], reference: parity.Parity) -> None:
    boxes, scores, labels, count, masks = (each[0] for each in found)
    stored = {name: torch.from_numpy(array) for name, array in reference.arrays.items()}
    tolerance = reference.spec["tolerance"]
    allowed = tolerance["unmatched_allowed"]
    assert abs(int(count) - len(stored["labels"])) <= allowed
    same = (labels[: int(count)] == stored["labels"][:, None]) & (
        box_iou(stored["dets"][:, :4], boxes[: int(count)]) > 0.98
    )
    matched = same.any(1)
    assert int((~matched).sum()) <= allowed
    ours = same.int().argmax(1)[matched]
    theirs = stored["dets"][matched]
    torch.testing.assert_close(boxes[ours], theirs[:, :4], rtol=0, atol=tolerance["box_atol"])
    torch.testing.assert_close(scores[ours], theirs[:, 4], rtol=0, atol=tolerance["score_atol"])
    torch.testing.assert_close(
        masks[ours], stored["mask_prob"][matched], rtol=0, atol=tolerance["mask_prob_atol"]
    )
