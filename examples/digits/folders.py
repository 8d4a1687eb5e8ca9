"""Scenes as folders of files: COCO annotations for detection and segmentation, label maps for semantics."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from digits.captions import PLACES, Captioned
from digits.objects import Scene
from digits.scenes import LABELS, Pixels

ANNOTATIONS = "annotations.json"
IMAGES, LABEL_MAPS = "images", "labels"


def write_coco(scenes: Sequence[Scene], folder: Path) -> Path:
    """Write `folder`/images/000000.png ... and return `folder`/annotations.json in COCO's format."""
    for index, scene in enumerate(scenes):
        _write_picture(scene.image, folder / IMAGES / _file_name(index))
    path = folder / ANNOTATIONS
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(coco(scenes)))
    os.replace(partial, path)
    return path


def write_semantic(scenes: Sequence[Scene], folder: Path) -> Path:
    """Write `folder`/images/000000.png ... and, named alike, 8-bit label maps in `folder`/labels."""
    for index, scene in enumerate(scenes):
        _write_picture(scene.image, folder / IMAGES / _file_name(index))
        _write_picture(scene.semantic, folder / LABEL_MAPS / _file_name(index))
    return folder


def write_captioned(pictures: Captioned, folder: Path) -> Path:
    """Write `folder`/0000_seven_flower.png ..., named by what they show."""
    for index, (digit, place) in enumerate(zip(pictures.digits, pictures.places, strict=True)):
        name = f"{index:04d}_{LABELS[digit]}_{PLACES[place]}.png"
        _write_picture(pictures.images[index], folder / name)
    return folder


def coco(scenes: Sequence[Scene]) -> dict[str, Any]:
    """The scenes' truth as a COCO annotation file has it. An image's id is its place in `scenes`.

    Category ids are 1..10 in the order of the labels; masks are uncompressed run lengths, which pycocotools
    reads without having written them.
    """
    annotations = [
        {"image_id": index, **annotation}
        for index, scene in enumerate(scenes)
        for annotation in _annotations(scene)
    ]
    return {
        "images": [
            {"id": index, "file_name": _file_name(index), "height": height, "width": width}
            for index, (height, width) in enumerate(scene.image.shape[:2] for scene in scenes)
        ],
        "annotations": [{"id": number, **each} for number, each in enumerate(annotations, start=1)],
        "categories": [{"id": number, "name": name} for number, name in enumerate(LABELS, start=1)],
    }


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


def _file_name(index: int) -> str:
    return f"{index:06}.png"


def _write_picture(pixels: Pixels, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
