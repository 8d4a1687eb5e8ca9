"""The demo's detector, and what it learns from a batch of scenes: the five losses of Mask R-CNN.

Assignment, sampling and losses of Ren et al., "Faster R-CNN", arXiv:1506.01497, section 3.1, and He et al.,
"Mask R-CNN", arXiv:1703.06870, section 3.1, with L1 for boxes as in mmdet's recipes for Swin.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import box_iou, roi_align

from digits import nets
from digits.objects import Scene
from digits.scenes import LABELS
from saccade.models import create
from saccade.models.detection import Detector
from saccade.models.heads.box_head import BoxHead
from saccade.models.heads.boxes import encode
from saccade.models.heads.rpn import STDS, flatten_map

NET = nets.Net(
    "detector",
    "Mask R-CNN over STViT-R",
    "mask_rcnn_stvit_r_swin_tiny",
    {
        "backbone": {
            "embed_dim": 16,
            "depths": [2, 2, 6, 2],
            "num_heads": [1, 2, 4, 8],
        },  # the demo's STViT-R
        "num_classes": len(LABELS),
        "channels": 64,
        "box_fcs": 2,
        "box_width": 256,
        "class_agnostic": True,  # where a digit ends does not depend on which it is
        "mask_convs": 2,
        # Two sizes per level, all of a digit's shape: each digit of 24 to 136 px has an anchor close to it.
        "anchor_scales": [6.0, 8.5],
        "anchor_ratios": [1.5],
        "proposal_candidates": 200,
        "proposals": 100,
        "detections": 50,
    },
    epochs=1,  # no digit is painted twice alike
    learning_rate=1e-3,
    batch=8,
)
STEPS = 2000

IGNORED, BACKGROUND, OBJECT = -1, 0, 1


@dataclasses.dataclass(frozen=True)
class Rule:
    """Which boxes are taken for objects, and how many are learnt from.

    A box whose best IoU with a true one is at least `object_iou` is an object, below `background_iou` it is
    background. rescue: the best boxes of every true one are objects too, if their IoU is at least
    `background_iou`. drawn: boxes per picture, objects among them at most `object_share`.
    """

    object_iou: float
    background_iou: float
    rescue: bool
    drawn: int
    object_share: float


ANCHORS = Rule(0.7, 0.3, True, 256, 0.5)
REGIONS = Rule(0.5, 0.5, False, 64, 0.375)


@dataclasses.dataclass(frozen=True)
class Truth:
    """One picture's objects: boxes_xyxy (n, 4) and masks (n, H, W) of 0 and 1 float32; labels (n,) int64."""

    boxes_xyxy: Tensor
    labels: Tensor
    masks: Tensor


@dataclasses.dataclass(frozen=True)
class Regions:
    """B pictures' boxes to learn from, objects first, zero boxes last.

    boxes_xyxy (B, R, 4). labels (B, R) int64: the number of classes for background, IGNORED for zero boxes.
    objects (B, R) int64: which true box the region shows, where it shows one.
    """

    boxes_xyxy: Tensor
    labels: Tensor
    objects: Tensor


def untrained() -> Detector:
    """The detector to be trained: random heads over the demo classifier's backbone."""
    detector = cast(Detector, create(NET.model, **NET.config))
    classifier = nets.net("stvit")
    start = create(classifier.model, classifier.weights, features=True, **NET.config["backbone"])
    detector.backbone.load_state_dict(start.state_dict())
    return detector


def trained() -> Detector:
    """The detector with its committed weights, in eval mode."""
    return cast(Detector, create(NET.model, NET.weights, **NET.config))


def batch(scenes: Sequence[Scene]) -> tuple[Tensor, list[Truth]]:
    """Scenes of one size as a detector's input (B, 3, H, W) and what it should answer."""
    truths = [
        Truth(*map(torch.from_numpy, (scene.boxes_xyxy, scene.labels, scene.masks.astype(np.float32))))
        for scene in scenes
    ]
    return nets.inputs(np.stack([scene.image for scene in scenes])), truths


def losses(detector: Detector, images: Tensor, truths: Sequence[Truth]) -> dict[str, Tensor]:
    """The losses of the proposals' and the regions' classes and boxes, and of the masks; all scalars."""
    pyramid = detector.pyramid(images)
    with torch.no_grad():
        size_hw = torch.tensor(images.shape[2:], dtype=images.dtype).expand(len(images), 2)
        proposed = detector.rpn_head.proposals(pyramid, size_hw)
    classes = _classes(detector)
    drawn = [
        regions_of(rois[s >= 0], truth, classes) for rois, s, truth in zip(*proposed, truths, strict=True)
    ]
    regions = Regions(*(torch.stack(column) for column in zip(*drawn, strict=True)))
    return {
        **_proposal_losses(detector, pyramid, truths),
        **_box_losses(detector, pyramid, regions, truths),
        **_mask_losses(detector, pyramid, regions, truths),
    }


def assign(boxes: Tensor, truth: Tensor, rule: Rule) -> tuple[Tensor, Tensor]:
    """For every box (N, 4): OBJECT, BACKGROUND or IGNORED, and its best true box; both (N,) int64."""
    overlap = box_iou(boxes, truth)
    best, nearest = overlap.max(1)
    kind = torch.full_like(nearest, IGNORED)
    kind[best < rule.background_iou] = BACKGROUND
    kind[best >= rule.object_iou] = OBJECT
    if rule.rescue:
        highest = overlap.amax(0)
        rescued, whose = ((overlap == highest) & (highest >= rule.background_iou)).nonzero().unbind(1)
        kind[rescued], nearest[rescued] = OBJECT, whose
    return kind, nearest


def draw(kind: Tensor, rule: Rule) -> tuple[Tensor, Tensor]:
    """Random indices of objects and of background, `rule.drawn` together where there are so many."""
    objects, background = ((kind == each).nonzero()[:, 0] for each in (OBJECT, BACKGROUND))
    objects = objects[torch.randperm(len(objects))[: int(rule.drawn * rule.object_share)]]
    return objects, background[torch.randperm(len(background))[: rule.drawn - len(objects)]]


def regions_of(proposals: Tensor, truth: Truth, classes: int) -> tuple[Tensor, Tensor, Tensor]:
    """A picture's rows of `Regions`, drawn from the proposals and the true boxes."""
    candidates = torch.cat((truth.boxes_xyxy, proposals))
    kind, nearest = assign(candidates, truth.boxes_xyxy, REGIONS)
    kind[(candidates[:, 2:] - candidates[:, :2]).amin(1) < 1] = IGNORED  # nothing to pool, no logarithm
    objects, background = draw(kind, REGIONS)
    chosen = torch.cat((objects, background))
    missing = REGIONS.drawn - len(chosen)
    labels = torch.cat((truth.labels[nearest[objects]], torch.full_like(background, classes)))
    return (
        F.pad(candidates[chosen], (0, 0, 0, missing)),
        F.pad(labels, (0, missing), value=IGNORED),
        F.pad(nearest[chosen], (0, missing)),
    )


def _proposal_losses(
    detector: Detector, pyramid: Sequence[Tensor], truths: Sequence[Truth]
) -> dict[str, Tensor]:
    logits, deltas = detector.rpn_head(pyramid)
    anchors = torch.cat(detector.rpn_head.anchors([(x.shape[2], x.shape[3]) for x in logits]))
    logits = torch.cat([flatten_map(x, 1) for x in logits], dim=1)[..., 0]
    deltas = torch.cat([flatten_map(x, 4) for x in deltas], dim=1)
    classified, moved, drawn = [], [], 0
    for scores, moves, truth in zip(logits, deltas, truths, strict=True):
        kind, nearest = assign(anchors, truth.boxes_xyxy, ANCHORS)
        objects, background = draw(kind, ANCHORS)
        chosen = torch.cat((objects, background))
        target = kind[chosen].to(scores.dtype)
        classified.append(F.binary_cross_entropy_with_logits(scores[chosen], target, reduction="sum"))
        wanted = encode(anchors[objects], truth.boxes_xyxy[nearest[objects]], STDS)
        moved.append(F.l1_loss(moves[objects], wanted, reduction="sum"))
        drawn += len(chosen)
    return {
        "proposal_class": torch.stack(classified).sum() / drawn,
        "proposal_box": torch.stack(moved).sum() / drawn,
    }


def _box_losses(
    detector: Detector, pyramid: Sequence[Tensor], regions: Regions, truths: Sequence[Truth]
) -> dict[str, Tensor]:
    head, roi_head = detector.roi_head.box_heads[0], detector.roi_head
    logits, deltas = head(roi_head.features(pyramid, regions.boxes_xyxy, roi_head.pooling.box_size))
    labels = regions.labels.flatten()
    shown = _shown(regions, _classes(detector))
    true_boxes = torch.stack([t.boxes_xyxy[rows] for t, rows in zip(truths, regions.objects, strict=True)])
    wanted = encode(regions.boxes_xyxy[shown], true_boxes[shown], roi_head.stds[0])
    deltas = deltas.unflatten(1, (-1, 4))[shown.flatten()]
    column = torch.zeros_like(labels) if head.class_agnostic else labels
    moves = deltas[torch.arange(len(deltas)), column[shown.flatten()]]
    return {
        "box_class": F.cross_entropy(logits, labels, ignore_index=IGNORED),
        "box": F.l1_loss(moves, wanted, reduction="sum") / (labels != IGNORED).sum(),
    }


def _mask_losses(
    detector: Detector, pyramid: Sequence[Tensor], regions: Regions, truths: Sequence[Truth]
) -> dict[str, Tensor]:
    """Binary cross-entropy between the label's mask and the true one, cut out and resized alike."""
    roi_head = detector.roi_head
    (head,) = roi_head.mask_heads
    shown = _shown(regions, _classes(detector))
    most = int(shown.sum(1).max())  # objects come first: the rest needs no masks
    shown, boxes = shown[:, :most], regions.boxes_xyxy[:, :most]
    logits = head(roi_head.features(pyramid, boxes, roi_head.pooling.mask_size))[shown.flatten()]
    logits = logits[torch.arange(len(logits)), regions.labels[:, :most][shown]]
    wanted = [
        mask_targets(truth.masks[objects[row]], rois[row], logits.shape[-1])
        for truth, objects, rois, row in zip(truths, regions.objects[:, :most], boxes, shown, strict=True)
    ]
    return {"mask": F.binary_cross_entropy_with_logits(logits, torch.cat(wanted))}


def mask_targets(masks: Tensor, boxes_xyxy: Tensor, size: int) -> Tensor:
    """Each mask (n, H, W) inside its box (n, 4) as (n, size, size) of 0 and 1."""
    rows = torch.arange(len(masks), dtype=boxes_xyxy.dtype)[:, None]
    cut: Tensor = roi_align(masks[:, None], torch.cat((rows, boxes_xyxy), dim=1), size, aligned=True)
    return (cut[:, 0] >= 0.5).to(masks.dtype)


def _classes(detector: Detector) -> int:
    """Without the background, whose label is this number."""
    return cast(BoxHead, detector.roi_head.box_heads[0]).num_classes


def _shown(regions: Regions, classes: int) -> Tensor:
    """(B, R) bool: the regions that show an object."""
    return (regions.labels >= 0) & (regions.labels < classes)
