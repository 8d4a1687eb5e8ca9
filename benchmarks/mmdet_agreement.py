"""Whole detections of mmdet itself beside ours: the same weights, the same photographs, at 800 x 1333.

    pip install --target SITE --no-deps mmcv-lite==2.1.0 mmdet==3.3.0 mmengine terminaltables shapely addict \
        yapf platformdirs termcolor six
    python -m benchmarks.mmdet_agreement SITE

mmcv-lite has no compiled operators; the two that inference needs, NMS and RoIAlign, are torchvision's here
(both were seen to be bit-equal to mmcv's compiled ones). Everything else is mmdet's code: configuration,
pipeline, model, post-processing. Weights are random, scaled so that scores spread; they are written as a
checkpoint of mmdet 3.x and read from it, so the conversion of its Swin is part of what is compared. What
finds no counterpart is a near tie: many scores of random weights lie closer than float32 noise.
"""

from __future__ import annotations

import argparse
import importlib.machinery
import json
import sys
import tempfile
import types
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from numpy.typing import NDArray

from saccade.models import create
from saccade.models.zoo import entry
from saccade.preprocess import batches
from saccade.terminal import working

RESULT = Path(__file__).parent / "results" / "mmdet_agreement.json"
SWIN = {"tiny": (2, 2, 6, 2), "small": (2, 2, 18, 2)}
# Each of ours, the released configuration closest to it, and the size of its Swin.
MODELS = {
    "mask_rcnn_swin_tiny": ("swin/mask-rcnn_swin-t-p4-w7_fpn_1x_coco.py", "tiny"),
    "cascade_mask_rcnn_swin_small": ("cascade_rcnn/cascade-mask-rcnn_r50_fpn_1x_coco.py", "small"),
}
# Factors on mmdet's initial weights: fresh ones give every class the same score.
SPREAD = {"rpn_head.rpn_cls": 3.0, "fc_cls": 4.0, "conv_logits": 8.0}
SAME_IOU = 0.98

Found = tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.int64]]  # boxes, scores, labels


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("site", type=Path, help="folder where mmdet was installed")
    options = parser.parse_args()
    sys.path.insert(0, str(options.site))
    sys.modules["mmcv._ext"] = _operators()
    warnings.simplefilter("ignore")
    rows = []
    with working("comparing with mmdet") as say:
        for name in MODELS:
            say(name)
            rows += list(compare(name, options.site))
    versions = {"torch": torch.__version__, "mmdet": "3.3.0", "mmcv": "2.1.0 (Python part)"}
    RESULT.write_text(json.dumps({"versions": versions, "pictures": rows}, indent=1) + "\n")
    print(json.dumps(rows, indent=1))


def compare(name: str, site: Path) -> Iterator[dict[str, Any]]:
    """A row per photograph."""
    theirs = mmdet_model(*MODELS[name], site)
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "weights.pth"
        torch.save({"state_dict": theirs.state_dict(), "meta": {}}, file)
        ours = create(name, checkpoint=file)
    for title, picture in photographs():
        expected, found = run_theirs(theirs, picture), run_ours(ours, name, picture)
        matched = list(matches(expected, found))
        yield {
            "model": name,
            "picture": title,
            "mmdet": len(expected[0]),
            "saccade": len(found[0]),
            "matched": len(matched),
            "largest_box_difference_px": max((box for box, _ in matched), default=None),
            "largest_score_difference": max((score for _, score in matched), default=None),
        }


def mmdet_model(config: str, size: str, site: Path) -> Any:
    """mmdet's detector over a Swin of our size, with random weights, always the same."""
    from mmdet.apis import init_detector
    from mmengine.config import Config

    read = Config.fromfile(site / "mmdet" / ".mim" / "configs" / config)
    swin = {
        "type": "SwinTransformer",
        "depths": SWIN[size],
        "num_heads": (3, 6, 12, 24),
        "embed_dims": 96,
        "drop_path_rate": 0.0,
    }
    read.model.backbone = swin
    read.model.neck.in_channels = [96, 192, 384, 768]
    torch.manual_seed(0)
    model = init_detector(read, None, device="cpu")
    with torch.no_grad():
        for key, value in model.named_parameters():
            factor = [each for part, each in SPREAD.items() if part in key and key.endswith("weight")]
            value *= factor[0] if factor else 1.0
    return model


def run_theirs(model: Any, picture: NDArray[np.uint8]) -> Found:
    from mmdet.apis import inference_detector

    instances = inference_detector(model, np.ascontiguousarray(picture[..., ::-1])).pred_instances
    return tuple(getattr(instances, each).numpy() for each in ("bboxes", "scores", "labels"))


def run_ours(model: torch.nn.Module, name: str, picture: NDArray[np.uint8]) -> Found:
    (batch,) = batches([picture], entry(name).card.preprocessing)
    size_hw = torch.tensor(batch.resized_hw, dtype=torch.float32)
    with torch.inference_mode():
        boxes, scores, labels, count, *_ = (
            each[0].numpy() for each in model(torch.from_numpy(batch.image), size_hw)
        )
    (height, width), (resized_height, resized_width) = batch.originals_hw[0], batch.resized_hw[0]
    scale = np.array([width / resized_width, height / resized_height] * 2, np.float32)
    return boxes[:count] * scale, scores[:count], labels[:count]


def matches(expected: Found, found: Found) -> Iterator[tuple[float, float]]:
    """(box, score) differences of the detections that have a counterpart of their class."""
    overlaps = torchvision.ops.box_iou(torch.from_numpy(expected[0]), torch.from_numpy(found[0])).numpy()
    overlaps = np.where(expected[2][:, None] == found[2], overlaps, 0)
    for row, overlap in enumerate(overlaps):
        best = int(overlap.argmax()) if overlap.size else 0
        if overlap.size and overlap[best] > SAME_IOU:
            overlaps[:, best] = 0
            box = float(np.abs(expected[0][row] - found[0][best]).max())
            yield box, float(abs(expected[1][row] - found[1][best]))


def photographs() -> Iterator[tuple[str, NDArray[np.uint8]]]:
    from sklearn.datasets import load_sample_images

    images = load_sample_images()
    for file, picture in zip(images.filenames, images.images, strict=True):
        yield Path(file).name, picture


def _operators() -> types.ModuleType:
    """The compiled operators that mmcv-lite lacks, as far as inference calls them."""
    module = types.ModuleType("mmcv._ext")
    module.__spec__ = importlib.machinery.ModuleSpec("mmcv._ext", None)  # mmengine asks whether it is there

    def nms(boxes: torch.Tensor, scores: torch.Tensor, iou_threshold: float, offset: int) -> torch.Tensor:
        assert offset == 0
        return torchvision.ops.nms(boxes, scores, iou_threshold)

    def roi_align_forward(
        features: torch.Tensor, rois: torch.Tensor, output: torch.Tensor, *_: Any, **form: Any
    ) -> None:
        assert form["pool_mode"] == 1
        size = (form["aligned_height"], form["aligned_width"])
        samples = form["sampling_ratio"] or -1
        output.copy_(
            torchvision.ops.roi_align(
                features, rois, size, form["spatial_scale"], samples, aligned=form["aligned"]
            )
        )

    def absent(name: str) -> Any:
        """mmcv looks the others up when it is imported; nobody calls them."""
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *_, **__: sys.exit(f"mmcv._ext.{name} is not here")

    module.__dict__.update(nms=nms, roi_align_forward=roi_align_forward, __getattr__=absent)
    return module


if __name__ == "__main__":
    main()
