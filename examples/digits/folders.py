"""Scenes as folders of files: COCO annotations for detection and segmentation, label maps for semantics."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from digits.objects import Scene
from digits.scenes import LABELS, Pixels

ANNOTATIONS = "annotations.json"
IMAGES, LABEL_MAPS = "images", "labels"


def write_coco(scenes: Iterable[Scene], folder: Path) -> Path:
    """Write `folder`/images/000000.png ... and return `folder`/annotations.json in COCO's format.

    Category ids are 1..10 in the order of the labels; masks are uncompressed run lengths, which pycocotools
    reads without having written them.
    """
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for index, scene in enumerate(scenes):
        name = _write_picture(scene.image, folder / IMAGES, index)
        height, width = scene.image.shape[:2]
        images.append({"id": index, "file_name": name, "height": height, "width": width})
        annotations += [
            {"id": len(annotations) + 1 + place, "image_id": index, **annotation}
            for place, annotation in enumerate(_annotations(scene))
        ]
    categories = [{"id": index, "name": name} for index, name in enumerate(LABELS, start=1)]
    path = folder / ANNOTATIONS
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    os.replace(partial, path)
    return path


def write_semantic(scenes: Iterable[Scene], folder: Path) -> Path:
    """Write `folder`/images/000000.png ... and, named alike, 8-bit label maps in `folder`/labels."""
    for index, scene in enumerate(scenes):
        _write_picture(scene.image, folder / IMAGES, index)
        _write_picture(scene.semantic, folder / LABEL_MAPS, index)
    return folder


def run_lengths(mask: npt.NDArray[np.bool_]) -> dict[str, list[int]]:
    """COCO's uncompressed run lengths of a mask (H, W): column by column, zeros first."""
    flat = mask.ravel(order="F")
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    counts = np.diff(np.concatenate([[0], changes, [flat.size]])).tolist()
    return {"size": list(mask.shape), "counts": [0, *counts] if flat[0] else counts}


def _annotations(scene: Scene) -> list[dict[str, Any]]:
    columns = zip(scene.boxes_xyxy.tolist(), scene.labels.tolist(), scene.masks, strict=True)
    return [
        {
            "category_id": label + 1,
            "bbox": [x1, y1, x2 - x1, y2 - y1],
            "area": int(mask.sum()),
            "iscrowd": 0,
            "segmentation": run_lengths(mask),
        }
        for (x1, y1, x2, y2), label, mask in columns
    ]


def _write_picture(pixels: Pixels, folder: Path, index: int) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    name = f"{index:06}.png"
    Image.fromarray(pixels).save(folder / name)
    return name
