"""An engine that finds rectangles of pure colour, in NumPy: a detector whose right answers are known."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from saccade.engines.engine import Arrays, TensorSpec, check_feeds
from saccade.models.card import Card, Preprocessing
from saccade.predictors.detection import Detector, InstanceSegmenter

LABELS = ("red", "green", "blue")
KEPT = 8
# Pixels stay as they are, in 0..1, where the picture has one of these sides.
PREPROCESSING = Preprocessing(
    input_size_hw=(64, 96),
    resize="fit",
    resize_hw=(64, 96),
    resampler="opencv-bilinear",
    mean_rgb=(0.0, 0.0, 0.0),
    std_rgb=(1.0, 1.0, 1.0),
    pad_multiple=32,
)
CARD = Card(
    name="blobs", family="test", task="instance_segmentation", preprocessing=PREPROCESSING, labels=LABELS
)

Blob = tuple[int, int, int, int, int]  # left, top, right, bottom, class


class BlobEngine:
    """Boxes around connected pixels of one colour, larger ones with higher scores; masks of their shape."""

    def __init__(self, *, masks: bool = True) -> None:
        self.inputs = {
            "image": TensorSpec("image", "float32", ("batch", 3, "height", "width")),
            "size_hw": TensorSpec("size_hw", "float32", ("batch", 2)),
        }
        shapes: dict[str, tuple[int, ...]] = {
            "boxes": (KEPT, 4),
            "scores": (KEPT,),
            "labels": (KEPT,),
            "count": (),
        }
        if masks:
            shapes["masks"] = (KEPT, 28, 28)
        self.outputs = {
            name: TensorSpec(name, "float32", ("batch", *shape)) for name, shape in shapes.items()
        }
        self.batches: list[int] = []

    def run(self, feeds: Arrays) -> dict[str, NDArray[Any]]:
        check_feeds(feeds, self.inputs)
        self.batches.append(len(feeds["image"]))
        found = [_find(image) for image in feeds["image"]]
        return {name: np.stack([each[name] for each in found]) for name in self.outputs}

    def close(self) -> None:
        """Nothing is held."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def detector(engine: BlobEngine | None = None, card: Card = CARD) -> Detector:
    return InstanceSegmenter({"model": engine or BlobEngine()}, card, engine_name="blobs")


def picture(size_hw: tuple[int, int], blobs: Sequence[Blob]) -> NDArray[np.uint8]:
    """A black picture with rectangles."""
    made = np.zeros((*size_hw, 3), np.uint8)
    for left, top, right, bottom, index in blobs:
        made[top:bottom, left:right] = 0
        made[top:bottom, left:right, index] = 255
    return made


def _find(image: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
    rows = []
    for index in range(3):
        areas, _ = ndimage.label(image[index] > 0.5)
        for place, (down, across) in enumerate(ndimage.find_objects(areas), start=1):
            inside = areas[down, across] == place
            rows.append((inside.sum(), index, (across.start, down.start, across.stop, down.stop), inside))
    rows = sorted(rows, key=lambda row: -row[0])[:KEPT]
    found: dict[str, NDArray[Any]] = {
        "boxes": np.zeros((KEPT, 4), np.float32),
        "scores": np.zeros(KEPT, np.float32),
        "labels": np.zeros(KEPT, np.int64),
        "count": np.array(len(rows), np.int64),
        "masks": np.zeros((KEPT, 28, 28), np.float32),
    }
    for row, (area, index, box, inside) in enumerate(rows):
        found["boxes"][row] = box
        found["scores"][row] = area / (area + 10)
        found["labels"][row] = index
        down, across = (np.arange(28) * side // 28 for side in inside.shape)
        found["masks"][row] = inside[np.ix_(down, across)]
    return found
