"""Mask R-CNN and Cascade Mask R-CNN over any backbone with feature maps; boxes only without a mask head.

Weights are mmdet's (2.x and 3.x) or those that this module saves. What they show of the heads (stages,
classes, convolutions, widths) is read from them; the rest are the released settings or `config`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, cast

from torch import Tensor, nn

from saccade.errors import CheckpointError, UsageError
from saccade.models.checkpoint import Checkpoint, load_strict
from saccade.models.factory import create
from saccade.models.heads.box_head import BoxHead
from saccade.models.heads.fpn import FPN
from saccade.models.heads.mask_head import MaskHead
from saccade.models.heads.roi_align import Form
from saccade.models.heads.roi_head import DetectionLimits, Pooling, RoIHead, Stds
from saccade.models.heads.rpn import ProposalLimits, RPNHead
from saccade.models.simple_pyramid import SimplePyramid

# Units of the box deltas, stage by stage; Mask R-CNN has the first stage only.
STAGE_STDS = ((0.1, 0.1, 0.2, 0.2), (0.05, 0.05, 0.1, 0.1), (0.033, 0.033, 0.067, 0.067))


class Detector(nn.Module):
    """(B, 3, H, W), (B, 2) -> boxes, scores, labels, count[, masks].

    image: float32, normalised, padded right and bottom. size_hw: float32, height and width of each picture
    without the padding. Outputs, K = the most detections kept, zeros from row `count` on:
    boxes (B, K, 4) float32 x1 y1 x2 y2 in pixels of `image`; scores (B, K) float32, falling;
    labels (B, K) int64; count (B,) int64; masks (B, K, 28, 28) float32, the label's probability over the box.
    """

    def __init__(self, backbone: nn.Module, neck: nn.Module, rpn_head: RPNHead, roi_head: RoIHead) -> None:
        super().__init__()
        self.backbone, self.neck = backbone, neck
        self.rpn_head, self.roi_head = rpn_head, roi_head

    def pyramid(self, image: Tensor) -> tuple[Tensor, ...]:
        """P2 to P6, finest first."""
        maps: tuple[Tensor, ...] = self.neck(self.backbone(image))
        return maps

    def forward(self, image: Tensor, size_hw: Tensor) -> tuple[Tensor, ...]:
        pyramid = self.pyramid(image)
        rois, scores = self.rpn_head.proposals(pyramid, size_hw)
        found: tuple[Tensor, ...] = self.roi_head(pyramid, rois, scores, size_hw)
        return found


def detector(
    *,
    checkpoint: Checkpoint | None,
    features: bool,
    architecture: str,
    cascade: bool,
    backbone: Mapping[str, Any] | None = None,
    num_classes: int | None = None,
    channels: int | None = None,
    box_convs: int | None = None,
    box_norm: bool | None = None,
    box_fcs: int | None = None,
    box_width: int | None = None,
    class_agnostic: bool | None = None,
    masks: bool | None = None,
    mask_convs: int | None = None,
    box_size: int = 7,
    mask_size: int = 14,
    stage_stds: Sequence[Stds] | None = None,
    anchor_scales: Sequence[float] = (8.0,),
    anchor_ratios: Sequence[float] = (0.5, 1.0, 2.0),
    proposal_candidates: int = 1000,
    proposal_iou: float = 0.7,
    proposals: int = 1000,
    score_threshold: float = 0.05,
    iou_threshold: float = 0.5,
    detections: int = 100,
    roi_align: Form = "native",
) -> nn.Module:
    """A detector over the backbone `architecture`, a name of the zoo.

    backbone: sizes that replace the backbone's (`embed_dim`, `depths`, ...).
    num_classes to mask_convs: see `HeadSizes`; None takes the checkpoint's, or the released ones without it.
    box_size, mask_size: cells of a pooled region each way. stage_stds: units of the box deltas by stage.
    proposal_candidates: taken from each level before NMS; proposals, detections: kept after it.
    roi_align: "native", or "separable" for run times without that operator (see `heads.roi_align`).
    """
    if features:
        raise UsageError(
            f"a detector has no feature maps of its own: create({architecture!r}, features=True)"
        )
    state = {} if checkpoint is None else checkpoint.state
    stds = STAGE_STDS[: 3 if cascade else 1] if stage_stds is None else tuple(stage_stds)
    if checkpoint is not None:
        _check_family(state, cascade, len(stds))
    given = {
        "num_classes": num_classes,
        "channels": channels,
        "box_convs": box_convs,
        "box_norm": box_norm,
        "box_fcs": box_fcs,
        "box_width": box_width,
        "class_agnostic": class_agnostic,
        "masks": masks,
        "mask_convs": mask_convs,
    }
    released = FOUR_CONV_ONE_FC if cascade else TWO_FC
    sizes = HeadSizes(
        **asdict(released) | _sizes_in(state) | {k: v for k, v in given.items() if v is not None}
    )
    trunk_state = {k.removeprefix("backbone."): v for k, v in state.items() if k.startswith("backbone.")}
    trunk = create(architecture, trunk_state or None, features=True, **(backbone or {}))
    neck, strides = _neck(trunk, sizes.channels)
    rpn_head = RPNHead(
        sizes.channels,
        strides=strides,
        scales=anchor_scales,
        ratios=anchor_ratios,
        limits=ProposalLimits(proposal_candidates, proposal_iou, proposals),
    )
    roi_head = RoIHead(
        [_box_head(sizes, box_size) for _ in stds],
        [_mask_head(sizes) for _ in stds if sizes.masks],
        cascade=cascade,
        stds=stds,
        pooling=Pooling(strides[:-1], box_size, mask_size, roi_align),
        limits=DetectionLimits(score_threshold, iou_threshold, detections),
    )
    model = Detector(trunk, neck, rpn_head, roi_head)
    if checkpoint is not None:
        family = "Cascade Mask R-CNN" if cascade else "Mask R-CNN"
        load_strict(model, state, what=f"{family} over {architecture}", ignore=_is_backbone)
    return model


@dataclass(frozen=True, slots=True)
class HeadSizes:
    """What a checkpoint shows of the heads.

    channels: of the pyramid and of every convolution in the heads. box_*: layers before a box head's two
    outputs (convolutions, whether with batch norm, FCs and their width). class_agnostic: one box per region
    instead of one per class. masks: whether there are mask heads, of `mask_convs` convolutions.
    """

    num_classes: int
    channels: int
    box_convs: int
    box_norm: bool
    box_fcs: int
    box_width: int
    class_agnostic: bool
    masks: bool
    mask_convs: int


TWO_FC = HeadSizes(80, 256, 0, False, 2, 1024, False, True, 4)
FOUR_CONV_ONE_FC = HeadSizes(80, 256, 4, True, 1, 1024, False, True, 4)

_BOX = re.compile(r"roi_head\.bbox_head\.(?:(\d+)\.)?fc_cls\.weight")


def _is_backbone(key: str) -> bool:
    return key.startswith("backbone.")


def _check_family(state: Mapping[str, Tensor], cascade: bool, stages: int) -> None:
    """Raise CheckpointError unless the weights are a detector's of this kind."""
    heads = [match for match in map(_BOX.fullmatch, state) if match]
    if not heads or "rpn_head.rpn_conv.weight" not in state:
        parts = ", ".join(sorted({key.split(".")[0] for key in state})[:8])
        raise CheckpointError(
            f"these are no weights of Mask R-CNN or Cascade Mask R-CNN: their parts are {parts}; needed are "
            "backbone, neck, rpn_head and roi_head. A classifier's weights go into its backbone only"
        )
    found = sum(match[1] is not None for match in heads)
    if bool(found) != cascade:
        right = "cascade_mask_rcnn_*" if found else "mask_rcnn_*"
        raise CheckpointError(f"these weights have {found or 1} box heads: create one of {right} for them")
    if not any(map(_is_backbone, state)):
        raise CheckpointError("these weights of a detector hold no weights of a backbone (backbone.*)")
    if cascade and found != stages:
        raise CheckpointError(
            f"these weights have {found} stages, stage_stds has {stages}: give one row for each"
        )


def _sizes_in(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """The fields of HeadSizes that `state` shows, from its first stage."""
    prefix = next((key.removesuffix("fc_cls.weight") for key in state if _BOX.fullmatch(key)), None)
    if prefix is None:
        return {}
    fcs = [v for k, v in state.items() if re.fullmatch(re.escape(prefix) + r"shared_fcs\.\d+\.weight", k)]
    convs = _count(state, re.escape(prefix) + r"shared_convs\.\d+\.conv\.weight")
    found = {
        "num_classes": state[f"{prefix}fc_cls.weight"].shape[0] - 1,
        "channels": state["rpn_head.rpn_conv.weight"].shape[0],
        "box_convs": convs,
        "box_norm": f"{prefix}shared_convs.0.bn.weight" in state,
        "box_fcs": len(fcs),
        "class_agnostic": state[f"{prefix}fc_reg.weight"].shape[0] == 4,
        "masks": any(key.startswith("roi_head.mask_head.") for key in state),
    }
    if fcs:
        found["box_width"] = fcs[0].shape[0]
    if found["masks"]:
        found["mask_convs"] = _count(state, r"roi_head\.mask_head\.(0\.)?convs\.\d+\.conv\.weight")
    return found


def _count(state: Mapping[str, Tensor], pattern: str) -> int:
    return sum(re.fullmatch(pattern, key) is not None for key in state)


def _neck(backbone: nn.Module, channels: int) -> tuple[nn.Module, tuple[int, ...]]:
    """The pyramid that suits the backbone's maps, and the strides of its five levels."""
    widths = cast("tuple[int, ...]", backbone.channels)
    strides = cast("tuple[int, ...]", backbone.strides)
    if len(set(strides)) == 1:  # a plain vision transformer
        return SimplePyramid(widths[-1], channels), tuple(strides[-1] * 2**i // 4 for i in range(5))
    return FPN(widths, channels), (*strides, 2 * strides[-1])


def _box_head(sizes: HeadSizes, size: int) -> BoxHead:
    return BoxHead(
        sizes.channels,
        size,
        sizes.num_classes,
        convs=sizes.box_convs,
        norm=sizes.box_norm,
        fcs=sizes.box_fcs,
        width=sizes.box_width,
        class_agnostic=sizes.class_agnostic,
    )


def _mask_head(sizes: HeadSizes) -> MaskHead:
    return MaskHead(sizes.channels, sizes.num_classes, convs=sizes.mask_convs)
