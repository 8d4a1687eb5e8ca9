"""What mmdet's configurations say becomes sizes, preprocessing and labels; what cannot be done is named."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

from saccade import UsageError
from saccade.export.mmdet import Described, describe
from saccade.models import zoo

CODER = {"type": "DeltaXYWHBBoxCoder", "target_means": [0.0] * 4, "target_stds": [0.1, 0.1, 0.2, 0.2]}


def extractor(size: int) -> dict[str, Any]:
    layer = {"type": "RoIAlign", "output_size": size, "sampling_ratio": 0}
    strides = [4, 8, 16, 32]
    return {"type": "SingleRoIExtractor", "roi_layer": layer, "out_channels": 256, "featmap_strides": strides}


def box_head(stds: list[float]) -> dict[str, Any]:
    return {
        "type": "ConvFCBBoxHead",
        "num_shared_convs": 4,
        "num_shared_fcs": 1,
        "roi_feat_size": 7,
        "num_classes": 2,
        "bbox_coder": {**CODER, "target_stds": stds},
        "reg_class_agnostic": False,
        "norm_cfg": {"type": "SyncBN"},
        "loss_cls": {"type": "CrossEntropyLoss"},
        "loss_bbox": {"type": "GIoULoss"},
    }


def model(cascade: bool) -> dict[str, Any]:
    """The parts that 2.x and 3.x share."""
    stds = [[0.1, 0.1, 0.2, 0.2], [0.05, 0.05, 0.1, 0.1], [0.033, 0.033, 0.067, 0.067]]
    mask_head = {"type": "FCNMaskHead", "num_convs": 4, "num_classes": 2, "loss_mask": {"use_mask": True}}
    return {
        "type": "CascadeRCNN" if cascade else "MaskRCNN",
        "backbone": {
            "type": "SwinTransformer",
            "depths": [2, 2, 18, 2],
            "num_heads": [3, 6, 12, 24],
            "window_size": 7,
        },
        "neck": {"type": "FPN", "in_channels": [96, 192, 384, 768], "out_channels": 256, "num_outs": 5},
        "rpn_head": {
            "type": "RPNHead",
            "anchor_generator": {
                "type": "AnchorGenerator",
                "scales": [6],
                "ratios": [0.5, 2.0],
                "strides": [4, 8, 16, 32, 64],
            },
            "bbox_coder": {**CODER, "target_stds": [1.0] * 4},
        },
        "roi_head": {
            "type": "CascadeRoIHead" if cascade else "StandardRoIHead",
            "bbox_roi_extractor": extractor(7),
            "bbox_head": [box_head(each) for each in stds] if cascade else box_head(stds[0]),
            "mask_roi_extractor": extractor(14),
            "mask_head": mask_head,
            **({"num_stages": 3, "stage_loss_weights": [1, 0.5, 0.25]} if cascade else {}),
        },
        "train_cfg": {"rpn": {"anything": "goes"}},
        "test_cfg": {
            "rpn": {
                "nms_pre": 900,
                "max_per_img": 800,
                "nms": {"type": "nms", "iou_threshold": 0.6},
                "min_bbox_size": 0,
            },
            "rcnn": {
                "score_thr": 0.1,
                "nms": {"type": "nms", "iou_threshold": 0.4},
                "max_per_img": 50,
                "mask_thr_binary": 0.5,
            },
        },
    }


def old() -> dict[str, Any]:
    """A cascade over STViT-R as 2.x writes it, test settings beside the model as before 2.4."""
    config: dict[str, Any] = {"model": model(cascade=True)}
    config["test_cfg"] = config["model"].pop("test_cfg")
    config["model"]["pretrained"] = None
    config["model"]["backbone"] |= {"embed_dim": 96, "ape": False, "pad_mask": True, "k_window_size_1": 14}
    transforms = [
        {"type": "Resize", "keep_ratio": True},
        {"type": "RandomFlip"},
        {"type": "Normalize", "mean": [1.0, 2.0, 3.0], "std": [4.0, 5.0, 6.0], "to_rgb": True},
        {"type": "Pad", "size_divisor": 64},
    ]
    flips = {"type": "MultiScaleFlipAug", "img_scale": (1000, 600), "flip": False, "transforms": transforms}
    config["data"] = {"test": {"classes": ("ant", "bee"), "pipeline": [{"type": "LoadImageFromFile"}, flips]}}
    return config


def new() -> dict[str, Any]:
    """A Mask R-CNN over Swin as 3.x writes it."""
    config: dict[str, Any] = {"model": model(cascade=False)}
    config["model"]["data_preprocessor"] = {
        "type": "DetDataPreprocessor",
        "mean": [1.0, 2.0, 3.0],
        "std": [4.0, 5.0, 6.0],
        "bgr_to_rgb": True,
        "pad_size_divisor": 64,
    }
    config["model"]["backbone"] |= {"embed_dims": 96, "out_indices": (0, 1, 2, 3), "with_cp": False}
    pipeline = [{"type": "Resize", "scale": (1000, 600), "keep_ratio": True}, {"type": "PackDetInputs"}]
    dataset = {"metainfo": {"classes": ("ant", "bee")}, "pipeline": pipeline}
    config["test_dataloader"] = {"dataset": dataset}
    return config


def read(config: dict[str, Any], name: str) -> Described:
    entry = zoo.entry(name)
    return describe(
        config,
        Path("config.py"),
        cascade=bool(entry.config["cascade"]),
        architecture=str(entry.config["architecture"]),
        default=entry.card.preprocessing,
    )


OLD, NEW = "cascade_mask_rcnn_stvit_r_swin_small", "mask_rcnn_swin_small"


@pytest.mark.parametrize(("config", "name"), [(old(), OLD), (new(), NEW)], ids=["2.x", "3.x"])
def test_what_both_generations_say(config: dict[str, Any], name: str) -> None:
    described = read(config, name)
    stds = [[0.1, 0.1, 0.2, 0.2], [0.05, 0.05, 0.1, 0.1], [0.033, 0.033, 0.067, 0.067]]
    backbone = {"embed_dim": 96, "depths": [2, 2, 18, 2], "num_heads": [3, 6, 12, 24], "window_size": 7}
    assert described.sizes == {
        "backbone": backbone,
        "anchor_scales": [6],
        "anchor_ratios": [0.5, 2.0],
        "proposal_candidates": 900,
        "proposals": 800,
        "proposal_iou": 0.6,
        "stage_stds": stds if name == OLD else stds[:1],
        "box_size": 7,
        "mask_size": 14,
        "masks": True,
        "score_threshold": 0.1,
        "iou_threshold": 0.4,
        "detections": 50,
    }
    assert described.labels == ("ant", "bee")
    made = described.preprocessing
    assert (made.resize_hw, made.input_size_hw, made.pad_multiple) == ((600, 1000), (640, 1024), 64)
    assert (made.mean_rgb, made.std_rgb) == ((1, 2, 3), (4, 5, 6))


def test_what_is_not_said_is_the_card_s() -> None:
    config = new()
    del config["test_dataloader"], config["model"]["data_preprocessor"]
    described = read(config, NEW)
    assert described.preprocessing == zoo.entry(NEW).card.preprocessing
    assert described.labels == ()


def test_boxes_only() -> None:
    config = new()
    config["model"]["type"] = "FasterRCNN"
    del config["model"]["roi_head"]["mask_head"], config["model"]["roi_head"]["mask_roi_extractor"]
    sizes = read(config, NEW).sizes
    assert sizes["masks"] is False
    assert "mask_size" not in sizes


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("model.type", "RetinaNet", "model.type is 'RetinaNet', not 'MaskRCNN'"),
        ("model.backbone.type", "ResNet", "model.backbone.type is 'ResNet'"),
        ("model.backbone.ape", True, "model.backbone.ape is True, not False"),
        ("model.backbone.depth", 50, "model.backbone.depth = 50 is unknown"),
        ("model.neck.num_outs", 6, "model.neck.num_outs is 6, not 5"),
        ("model.neck.add_extra_convs", "on_input", "add_extra_convs is 'on_input'"),
        ("model.rpn_head.anchor_generator.strides", [8, 16], "strides is [8, 16]"),
        ("model.rpn_head.anchor_generator.center_offset", 0.5, "center_offset = 0.5 is unknown"),
        ("model.rpn_head.bbox_coder.target_stds", [0.5] * 4, "rpn_head.bbox_coder.target_stds is [0.5"),
        ("model.roi_head.type", "PointRendRoIHead", "roi_head.type is 'PointRendRoIHead'"),
        ("model.roi_head.bbox_head.type", "DoubleConvFCBBoxHead", "bbox_head[0].type is 'DoubleConv"),
        ("model.roi_head.bbox_head.num_cls_fcs", 2, "bbox_head[0].num_cls_fcs is 2, not 0"),
        ("model.roi_head.bbox_head.cls_predictor_cfg", {"type": "NormedLinear"}, "cls_predictor_cfg is"),
        ("model.roi_head.bbox_roi_extractor.roi_layer.sampling_ratio", 2, "sampling_ratio is 2, not 0"),
        ("model.roi_head.mask_head.class_agnostic", True, "mask_head[0].class_agnostic is True"),
        ("model.roi_head.semantic_head", {"type": "X"}, "roi_head.semantic_head = {'type': 'X'} is unknown"),
        ("model.test_cfg.rcnn.nms.type", "soft_nms", "rcnn.nms.type is 'soft_nms', not 'nms'"),
        ("model.test_cfg.rcnn.mask_thr_binary", 0.4, "mask_thr_binary is 0.4, not 0.5"),
        ("model.test_cfg.rpn.min_bbox_size", 8, "min_bbox_size is 8"),
        ("model.data_preprocessor.bgr_to_rgb", False, "pictures stay in BGR order"),
        ("test_dataloader.dataset.pipeline", [{"type": "Resize", "scale": [(9, 9)] * 2}], "have the scale"),
        (
            "test_dataloader.dataset.pipeline",
            [{"type": "Resize", "scale": (9, 9), "keep_ratio": False}],
            "keep_ratio=False",
        ),
        ("model.rpn_head", None, "model.rpn_head is missing"),
        ("model", None, "model is missing"),
    ],
)
def test_what_cannot_be_honoured_is_named(path: str, value: Any, message: str) -> None:
    config = copy.deepcopy(new())
    *parents, last = path.split(".")
    fields = config
    for name in parents:
        fields = fields[name]
    fields[last] = value
    with pytest.raises(UsageError) as caught:
        read(config, NEW)
    assert message in str(caught.value)
    assert "config.py" in str(caught.value)


def test_every_problem_is_named_at_once() -> None:
    config = new()
    config["model"]["neck"]["num_outs"] = 4
    config["model"]["test_cfg"]["rcnn"]["nms"]["type"] = "soft_nms"
    with pytest.raises(UsageError, match=r"2 times: .*num_outs is 4.*soft_nms"):
        read(config, NEW)


def test_another_family_s_configuration_is_refused() -> None:
    with pytest.raises(UsageError, match=r"model\.type is 'CascadeRCNN', not 'MaskRCNN'"):
        read(old(), "mask_rcnn_stvit_r_swin_small")
    config = old()
    config["model"]["backbone"]["window_sample_size"] = 5
    with pytest.raises(UsageError, match="window_sample_size is 5, not 3"):
        read(config, OLD)
