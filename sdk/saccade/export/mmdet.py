"""What a configuration of mmdet says of a detector, in our words; and every field that we cannot honour.

For the families of `saccade.models.cards.detection`: Mask R-CNN and Cascade Mask R-CNN, as 2.x and 3.x write
them. A field is honoured, or must have the value that our detectors are built with, or has no effect on
inference. A field that is none of these is an error: a detector that is nearly right is hard to notice.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from saccade.errors import UsageError
from saccade.models.card import Preprocessing

__all__ = ["Described", "describe"]

# No effect on what is inferred: losses, initial weights, regularisation, what the weights themselves show.
_IDLE = {
    "type",
    "pretrained",
    "init_cfg",
    "train_cfg",
    "in_channels",
    "feat_channels",
    "conv_out_channels",
    "fc_out_channels",
    "num_convs",
    "num_shared_convs",
    "num_shared_fcs",
    "norm_cfg",
    "conv_cfg",
    "reg_class_agnostic",
    "reg_decoded_bbox",
    "stage_loss_weights",
    "drop_rate",
    "attn_drop_rate",
    "drop_path_rate",
    "use_checkpoint",
    "with_cp",
    "convert_weights",
    "frozen_stages",
    "norm_eval",
    "nms_across_levels",
    "nms_post",
}


@dataclass(frozen=True)
class Described:
    """sizes: for `saccade.models.create`. labels: () where the configuration does not name the classes."""

    sizes: Mapping[str, Any]
    preprocessing: Preprocessing
    labels: tuple[str, ...]


def describe(
    config: Mapping[str, Any], source: Path, *, cascade: bool, architecture: str, default: Preprocessing
) -> Described:
    """Read `config`, of the file `source`, for the detector over `architecture`.

    default: the preprocessing of the model's card. Raises UsageError with every field that is in the way.
    """
    problems: list[str] = []
    model = _Part(_dict(config.get("model"), "model", problems), "model", problems)
    kind = "CascadeRCNN" if cascade else "MaskRCNN"
    # A detector of boxes only is called FasterRCNN, or CascadeRCNN without a mask head.
    model.must("type", (kind, "FasterRCNN") if not cascade else (kind,))
    sizes = _backbone(model.part("backbone"), architecture)
    _neck(model.part("neck"))
    # Old files have it beside the model.
    test = _Part(
        model.take("test_cfg") or _dict(config.get("test_cfg"), "test_cfg", problems), "test_cfg", problems
    )
    sizes |= _rpn(model.part("rpn_head"), test.part("rpn"))
    sizes |= _roi(model.part("roi_head"), test.part("rcnn"), cascade)
    preprocessing = _preprocessing(model.take("data_preprocessor"), config, default, problems)
    for part in (model, test):
        part.finish()
    if problems:
        raise UsageError(
            f"{source} says what these detectors cannot do, {len(problems)} times: " + "; ".join(problems)
        )
    return Described(sizes, preprocessing, _labels(config))


class _Part:
    """One dict of the configuration, whose fields are taken out one by one."""

    def __init__(self, fields: Mapping[str, Any], path: str, problems: list[str]) -> None:
        self._fields = dict(fields)
        self.path, self.problems = path, problems

    def take(self, name: str, default: Any = None) -> Any:
        return self._fields.pop(name, default)

    def part(self, name: str) -> _Part:
        path = f"{self.path}.{name}"
        return _Part(_dict(self.take(name), path, self.problems), path, self.problems)

    def must(self, name: str, allowed: Sequence[Any], *, optional: bool = False) -> None:
        """The field has one of these values; or, if `optional`, is not there."""
        if name not in self._fields and optional:
            return
        value = self.take(name)
        if _plain(value) not in [_plain(each) for each in allowed]:
            self.problems.append(f"{self.path}.{name} is {value!r}, not {' or '.join(map(repr, allowed))}")

    def finish(self) -> None:
        """What is left over has no effect or is a problem."""
        for name, value in self._fields.items():
            if name not in _IDLE and not name.startswith("loss"):
                self.problems.append(f"{self.path}.{name} = {value!r} is unknown")


def _dict(value: Any, path: str, problems: list[str]) -> dict[str, Any]:
    if not isinstance(value, dict):
        problems.append(f"{path} is {'missing' if value is None else repr(value)}, not a dict")
        return {}
    return value


def _plain(value: Any) -> Any:
    """Tuples as lists, so that 2.x and 3.x compare equal."""
    return [_plain(each) for each in value] if isinstance(value, list | tuple) else value


def _backbone(part: _Part, architecture: str) -> dict[str, Any]:
    """The sizes of a Swin; the released windows and sampling of STViT-R."""
    if "swin" not in architecture:
        part.problems.append(f"model.backbone is mmdet's; {architecture} is built from its own settings")
        return {}
    part.must("type", ("SwinTransformer",))
    named = {"embed_dim": part.take("embed_dims", part.take("embed_dim"))}
    named |= {name: part.take(name) for name in ("depths", "num_heads", "window_size", "mlp_ratio")}
    fixed = {
        "patch_size": (4,),
        "ape": (False,),
        "use_abs_pos_embed": (False,),
        "patch_norm": (True,),
        "out_indices": ([0, 1, 2, 3],),
        "qkv_bias": (True,),
        "qk_scale": (None,),
        "strides": ([4, 2, 2, 2],),
        "pretrain_img_size": (224,),
    }
    if architecture.startswith("stvit_r"):
        fixed |= {
            "window_sample_size": (3,),
            "k_window_size_1": (14,),
            "k_window_size_2": (21,),
            "restore_k_window_size": (27,),
            "multi_scale": ("multi_scale_semantic_token1",),
            "relative_pos": (False,),
            "use_conv_pos": (False,),
            "use_layer_scale": (False,),
            "pad_mask": (True,),
        }
    for name, allowed in fixed.items():
        part.must(name, allowed, optional=True)
    part.finish()
    return {"backbone": {name: _plain(value) for name, value in named.items() if value is not None}}


def _neck(part: _Part) -> None:
    part.must("type", ("FPN",))
    part.must("num_outs", (5,))
    for name, value in {"start_level": 0, "end_level": -1, "add_extra_convs": False}.items():
        part.must(name, (value,), optional=True)
    part.take("out_channels")  # the weights show it
    part.finish()


def _rpn(head: _Part, test: _Part) -> dict[str, Any]:
    head.must("type", ("RPNHead",))
    anchors = head.part("anchor_generator")
    anchors.must("type", ("AnchorGenerator",))
    anchors.must("strides", ([4, 8, 16, 32, 64],))
    scales, ratios = anchors.take("scales"), anchors.take("ratios")
    anchors.finish()
    _coder(head.part("bbox_coder"), [1.0, 1.0, 1.0, 1.0])
    head.finish()
    test.must("min_bbox_size", (0, -1), optional=True)
    found = {
        "anchor_scales": scales,
        "anchor_ratios": ratios,
        "proposal_candidates": test.take("nms_pre"),
        "proposals": test.take("max_per_img", test.take("max_num")),
        "proposal_iou": _suppression(test, test.take("nms"), test.take("nms_thr")),
    }
    test.finish()
    return _present(found)


def _roi(head: _Part, test: _Part, cascade: bool) -> dict[str, Any]:
    head.must("type", ("CascadeRoIHead" if cascade else "StandardRoIHead",))
    boxes = head.take("bbox_head")
    stages = boxes if cascade and isinstance(boxes, list) else [boxes]
    head.must("num_stages", (len(stages),), optional=True)
    stds = [_box_head(stage, place, head) for place, stage in enumerate(stages)]
    masks = head.take("mask_head")
    found = {
        "stage_stds": stds,
        "box_size": _extractor(head.part("bbox_roi_extractor")),
        "mask_size": _extractor(head.part("mask_roi_extractor")) if masks else None,
        "masks": bool(masks),
    }
    for place, each in enumerate(masks if isinstance(masks, list) else [masks] if masks else []):
        _mask_head(
            _Part(_dict(each, "mask_head", head.problems), f"{head.path}.mask_head[{place}]", head.problems)
        )
    head.take("mask_roi_extractor")
    head.finish()
    test.must("mask_thr_binary", (0.5,), optional=True)
    found |= {
        "score_threshold": test.take("score_thr"),
        "detections": test.take("max_per_img"),
        "iou_threshold": _suppression(test, test.take("nms"), None),
    }
    test.finish()
    return _present(found)


def _box_head(fields: Any, place: int, head: _Part) -> Any:
    """The units of its deltas; the rest is in the weights."""
    part = _Part(
        _dict(fields, f"bbox_head {place}", head.problems), f"{head.path}.bbox_head[{place}]", head.problems
    )
    part.must("type", ("ConvFCBBoxHead", "Shared2FCBBoxHead", "Shared4Conv1FCBBoxHead"))
    for name in ("num_cls_convs", "num_cls_fcs", "num_reg_convs", "num_reg_fcs"):
        part.must(name, (0,), optional=True)
    for name in ("cls_predictor_cfg", "reg_predictor_cfg"):
        part.must(name, ({"type": "Linear"},), optional=True)
    part.take("roi_feat_size")  # of the extractor
    part.take("num_classes")  # the weights show it
    stds = _coder(part.part("bbox_coder"), None)
    part.finish()
    return stds


def _mask_head(part: _Part) -> None:
    part.must("type", ("FCNMaskHead",))
    part.must("class_agnostic", (False,), optional=True)
    part.must("upsample_cfg", ({"type": "deconv", "scale_factor": 2},), optional=True)
    part.must("conv_kernel_size", (3,), optional=True)
    part.take("roi_feat_size")
    part.take("num_classes")
    part.finish()


def _coder(part: _Part, stds: list[float] | None) -> Any:
    """The deviations of a box coder, which must be `stds` where these are given."""
    part.must("type", ("DeltaXYWHBBoxCoder",))
    part.must("target_means", ([0.0, 0.0, 0.0, 0.0],), optional=True)
    part.must("clip_border", (True,), optional=True)
    part.must("add_ctr_clamp", (False,), optional=True)
    if stds is not None:
        part.must("target_stds", (stds,), optional=True)
    found = part.take("target_stds")
    part.finish()
    return tuple(found) if found is not None else None


def _extractor(part: _Part) -> Any:
    """Cells of a region each way."""
    part.must("type", ("SingleRoIExtractor",))
    part.must("featmap_strides", ([4, 8, 16, 32],))
    part.must("finest_scale", (56,), optional=True)
    part.take("out_channels")
    align = part.part("roi_layer")
    align.must("type", ("RoIAlign",))
    align.must("sampling_ratio", (0,), optional=True)
    align.must("aligned", (True,), optional=True)
    size = align.take("output_size")
    align.finish()
    part.finish()
    return size


def _suppression(test: _Part, nms: Any, old: Any) -> Any:
    """The IoU above which boxes are suppressed. old: where files of 2.0 have it."""
    if nms is None and old is not None:
        return old
    part = _Part(_dict(nms, f"{test.path}.nms", test.problems), f"{test.path}.nms", test.problems)
    part.must("type", ("nms",))
    part.must("class_agnostic", (False,), optional=True)
    part.take("split_thr")  # where groups are suppressed one by one: the same result
    iou = part.take("iou_threshold", part.take("iou_thr"))
    part.finish()
    return iou


def _present(found: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _plain(value) for name, value in found.items() if value is not None and value != [None]}


def _preprocessing(
    preprocessor: Any, config: Mapping[str, Any], default: Preprocessing, problems: list[str]
) -> Preprocessing:
    """Colours, padding and size: 3.x has the first two in the model, 2.x all in the pipeline."""
    steps = {step["type"]: step for step in _steps(config) if isinstance(step, dict) and "type" in step}
    changes: dict[str, Any] = {}
    colours = preprocessor or steps.get("Normalize") or {}
    if colours.get("mean") is not None:
        changes |= {"mean_rgb": tuple(colours["mean"]), "std_rgb": tuple(colours["std"])}
    if not colours.get("bgr_to_rgb", colours.get("to_rgb", True)):
        problems.append("pictures stay in BGR order; only weights trained on RGB are supported")
    multiple = (preprocessor or {}).get("pad_size_divisor", steps.get("Pad", {}).get("size_divisor"))
    if multiple:
        changes["pad_multiple"] = multiple
    resize = {**steps.get("MultiScaleFlipAug", {}), **steps.get("Resize", {})}
    scale = resize.get("scale", resize.get("img_scale"))
    if isinstance(scale, list | tuple) and len(scale) == 2 and all(type(side) is int for side in scale):
        short, long = sorted(scale)
        padded = [-(-side // (multiple or 1)) * (multiple or 1) for side in (short, long)]
        changes |= {"resize_hw": (short, long), "input_size_hw": (padded[0], padded[1])}
    elif scale is not None:
        problems.append(f"the test pictures have the scale {scale!r}; only one (long, short) is supported")
    if not resize.get("keep_ratio", True):
        problems.append("Resize has keep_ratio=False; only pictures that keep their shape are supported")
    return dataclasses.replace(default, **changes)


def _steps(config: Mapping[str, Any]) -> list[Any]:
    """The test pipeline, what is inside its test-time augmentation included."""
    loader = config.get("test_dataloader") or config.get("val_dataloader") or {}
    test = loader.get("dataset") or (config.get("data") or {}).get("test") or {}
    outer = list(test.get("pipeline") or config.get("test_pipeline") or [])
    inner = [step for each in outer if isinstance(each, dict) for step in each.get("transforms") or []]
    return outer + inner


def _labels(config: Mapping[str, Any]) -> tuple[str, ...]:
    loader = config.get("test_dataloader") or config.get("val_dataloader") or {}
    test = loader.get("dataset") or (config.get("data") or {}).get("test") or {}
    meta = test.get("metainfo") or config.get("metainfo") or {}
    classes = meta.get("classes") or meta.get("CLASSES") or test.get("classes") or config.get("classes") or ()
    return tuple(classes) if isinstance(classes, list | tuple) else (str(classes),)
