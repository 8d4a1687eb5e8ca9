"""Published accuracy, reproduced by a plan on labelled data."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import saccade
from saccade.builds import BuildOptions
from saccade.bundle import Bundle
from saccade.errors import EngineError, UsageError
from saccade.evaluation import evaluate
from saccade.evaluation.classification import Accuracy
from saccade.evaluation.coco import CocoAccuracy

NEAR_TOP1 = 0.1  # points of a percent
NEAR_AP = 0.2
# Box and mask AP on COCO val2017, in percent, as published with the weights.
PUBLISHED_AP: Mapping[str, tuple[float, float]] = {
    "cascade_mask_rcnn_stvit_r_swin_small": (51.8, 44.7),
    "cascade_mask_rcnn_stvit_r_swin_base": (52.2, 45.2),
    "cascade_mask_rcnn_swin_small": (51.8, 44.7),
    "cascade_mask_rcnn_swin_base": (51.9, 45.0),
}


def published(bundle: Bundle) -> dict[str, float]:
    """What was published of the bundle's weights; empty where nothing was."""
    if bundle.untrained:
        return {}
    if bundle.card.top1 is not None:
        return {"top1": bundle.card.top1}
    if bundle.card.name in PUBLISHED_AP:
        box, mask = PUBLISHED_AP[bundle.card.name]
        return {"box_ap": box, "mask_ap": mask}
    return {}


def measure(bundle: Bundle, options: BuildOptions, data: Path) -> dict[str, float]:
    """In percent, by the newest plan in the bundle, built with `options`: runs have its middle batch.

    data: ImageNet's val folder, or COCO's with val2017 and annotations/instances_val2017.json in it.
    """
    annotated = data / "annotations" / "instances_val2017.json"
    with saccade.load(
        bundle.path, engine="tensorrt", precision=options.precision, device="cuda"
    ) as predictor:
        if bundle.task == "classification":
            report = evaluate(predictor, data, batch=options.batch.opt)
        else:
            report = evaluate(predictor, data / "val2017", batch=options.batch.opt, annotations=annotated)
    found: dict[str, float | None]
    if isinstance(report, Accuracy):
        found = {"top1": report.top1}
    elif isinstance(report, CocoAccuracy):
        found = {"box_ap": report.boxes.ap, "mask_ap": report.masks.ap if report.masks else None}
    else:
        raise UsageError(f"{bundle.name} is made for {bundle.task}, of which no accuracy is reproduced")
    return {name: value for name, value in found.items() if value is not None}


def check(measured: Mapping[str, float], expected: Mapping[str, float]) -> str:
    """The comparison in words; EngineError where a figure is lower than published by more than allowed."""
    words = []
    for name, wanted in expected.items():
        near = NEAR_TOP1 if name == "top1" else NEAR_AP
        found = measured.get(name)
        if found is None or not abs(found - wanted) <= near:
            raise EngineError(f"{name} is {found}, published {wanted}; at most {near} apart are accepted")
        words.append(f"{name} {found:.2f}, published {wanted}")
    return "; ".join(words)
