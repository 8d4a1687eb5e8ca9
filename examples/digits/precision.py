"""How well digits are found and outlined: COCO's average precision, through pycocotools."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import warnings
from collections.abc import Sequence

import numpy as np
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from digits import folders
from digits.nets import inputs
from digits.objects import Scene
from digits.scenes import LABELS
from saccade.models.detection import Detector
from saccade.results.detections import Detections
from saccade.results.masks import Masks


@dataclasses.dataclass(frozen=True)
class Precision:
    """Average precision in 0..1, of boxes and of masks: at IoU 0.5, and the mean over 0.5, 0.55 .. 0.95."""

    box: float
    box_50: float
    mask: float
    mask_50: float

    def __str__(self) -> str:
        return (
            f"box AP {self.box:.3f}, AP50 {self.box_50:.3f}; mask AP {self.mask:.3f}, AP50 {self.mask_50:.3f}"
        )


@torch.inference_mode()
def detect(detector: Detector, scenes: Sequence[Scene], batch: int = 10) -> list[Detections]:
    """What `detector` itself, without any predictor, finds in scenes of one size."""
    found = []
    for start in range(0, len(scenes), batch):
        images = inputs(np.stack([scene.image for scene in scenes[start : start + batch]]))
        size_hw = torch.tensor(images.shape[2:], dtype=torch.float32).expand(len(images), 2)
        boxes, scores, labels, counts, masks = (each.numpy() for each in detector(images, size_hw))
        for row, count in enumerate(counts.tolist()):
            first, shape = slice(count), (images.shape[2], images.shape[3])
            names = tuple(LABELS[label] for label in labels[row, first])
            outlines = Masks.from_maps(masks[row, first], boxes[row, first], shape)
            columns = (boxes[row, first], scores[row, first], names, labels[row, first])
            found.append(Detections(*columns, shape, outlines))
    return found


def truth(scene: Scene) -> Detections:
    """What is right, as a detector would say it."""
    names = tuple(LABELS[label] for label in scene.labels)
    scores, masks = np.ones(len(scene), np.float32), Masks.from_array(scene.masks)
    return Detections(scene.boxes_xyxy, scores, names, scene.labels, masks.size_hw, masks)


def average_precision(found: Sequence[Detections], scenes: Sequence[Scene]) -> Precision:
    """COCO's figures over all classes; `found` are the detections in each of `scenes`."""
    rows = [row for index, each in enumerate(found) for row in each.to_coco(index)]
    if not rows:
        return Precision(0.0, 0.0, 0.0, 0.0)
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # pycocotools 2.0.11 under NumPy 2
        annotated = COCO()
        annotated.dataset = folders.coco(scenes)
        annotated.createIndex()
        results = annotated.loadRes(rows)
        figures = []
        for kind in ("bbox", "segm"):
            evaluation = COCOeval(annotated, results, kind)
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
            figures += [float(evaluation.stats[0]), float(evaluation.stats[1])]
    return Precision(*figures)
