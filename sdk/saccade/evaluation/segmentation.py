"""How well a segmenter labels pixels: intersection over union of every class, over a folder. No torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from saccade.errors import InputError, UsageError
from saccade.evaluation import Table
from saccade.pictures import list_pictures

if TYPE_CHECKING:
    from saccade.predictors.semantic_segmentation import SemanticSegmenter

IMAGES, LABELS = "images", "labels"  # the two subfolders
IGNORED = 255  # in a label map: pixels that nobody labelled (65535 where there are more classes than that)


@dataclass(frozen=True, slots=True)
class ClassOverlap:
    """One class. iou: pixels that truth and answer share, as a share of those that either has; in percent, as
    are recall (of the truth's pixels) and precision (of the answer's; None where it answered none)."""

    label: str
    pixels: int
    iou: float
    recall: float
    precision: float | None


@dataclass(frozen=True, slots=True)
class Overlap:
    """In percent. mean_iou: over the classes that occur in the truth; accuracy: of all labelled pixels."""

    pictures: int
    mean_iou: float
    accuracy: float
    classes: tuple[ClassOverlap, ...]

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def table(self) -> Table:
        """A row per class."""
        rows = tuple(
            (
                each.label,
                str(each.pixels),
                f"{each.iou:.1f}",
                f"{each.recall:.1f}",
                "" if each.precision is None else f"{each.precision:.1f}",
            )
            for each in self.classes
        )
        return Table(
            ("class", "pixels>", "IoU, %>", "recall, %>", "precision, %>"),
            rows,
            f"{self.pictures} pictures: mean IoU {self.mean_iou:.2f} %, pixels right {self.accuracy:.2f} %",
        )


def evaluate(
    segment: SemanticSegmenter,
    data: Path,
    *,
    batch: int = 16,
    progress: Callable[[int, int], None] | None = None,
    tile: tuple[int, int] | None = None,
    first_label: int = 0,
) -> Overlap:
    """Segment every picture under `data`/images and compare with the label map in `data`/labels.

    A label map has its picture's path with the suffix .png, its size, and the class index of every pixel as
    grey level or palette index; 255 is left out. Intersections and unions are summed over all pictures before
    they are divided. progress: called with (done, total) after every batch. tile: as the segmenter takes it.
    first_label: what the files call class 0; what is below is left out. ADE20K's own files count from 1.
    """
    pairs = labelled_pictures(data)
    classes = len(segment.labels)
    counts = np.zeros((classes, classes), np.int64)
    for start in range(0, len(pairs), batch):
        chunk = pairs[start : start + batch]
        found = segment([picture for picture, _ in chunk], tile=tile)
        for (_, truth), result in zip(chunk, found, strict=True):
            right = read_labels(truth, result.labels.shape, classes, first_label)
            counts += confusion(right, result.labels, classes)
        if progress is not None:
            progress(min(start + batch, len(pairs)), len(pairs))
    return overlap(counts, segment.labels, len(pairs))


def labelled_pictures(data: Path) -> list[tuple[Path, Path]]:
    """Every picture under `data`/images with its label map, sorted; UsageError where one is missing."""
    images, labels = data / IMAGES, data / LABELS
    if not images.is_dir() or not labels.is_dir():
        raise UsageError(f"{data} needs two folders: {IMAGES}/ and {LABELS}/, with a .png per picture")
    pairs = [
        (path, (labels / path.relative_to(images)).with_suffix(".png")) for path in list_pictures(images)
    ]
    if not pairs:
        raise UsageError(f"{images} holds no pictures")
    missing = [str(truth) for _, truth in pairs if not truth.is_file()]
    if missing:
        raise UsageError(
            f"{len(missing)} of {len(pairs)} pictures have no label map; the first: {missing[0]}"
        )
    return pairs


def read_labels(
    path: Path, size_hw: tuple[int, ...], classes: int, first_label: int = 0
) -> NDArray[np.int64]:
    """The label map in `path`, (H, W), -1 where it is left out.

    InputError unless it has `size_hw` and knows no other classes than the model.
    """
    from PIL import Image

    try:
        with Image.open(path) as image:
            read = np.asarray(image)
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as a label map: {error}") from error
    if read.ndim != 2 or not np.issubdtype(read.dtype, np.integer):
        raise InputError(
            f"{path} holds {read.shape} of {read.dtype}: a label map has one whole number per pixel "
            "(a PNG of mode L, P or I;16)"
        )
    if read.shape != tuple(size_hw):
        raise InputError(f"{path} is {read.shape}, its picture {tuple(size_hw)} (height, width)")
    ignored = IGNORED if classes + first_label <= IGNORED else 65535
    labels = read.astype(np.int64) - first_label
    labels[(read == ignored) | (labels < 0)] = -1
    if labels.max() >= classes:
        raise InputError(
            f"{path} has the label {labels.max() + first_label}: this model has {classes} classes, counted "
            f"from {first_label}, and {ignored} marks pixels to leave out. Do its labels begin at another "
            "number (first_label=)?"
        )
    return labels


def confusion(truth: NDArray[np.int64], answer: NDArray[np.integer], classes: int) -> NDArray[np.int64]:
    """(classes, classes): how many pixels of each true class (row) were answered as which (column)."""
    counted = truth >= 0
    pairs = truth[counted] * classes + answer[counted]
    return np.bincount(pairs, minlength=classes**2).reshape(classes, classes)


def overlap(counts: NDArray[np.int64], labels: Sequence[str], pictures: int) -> Overlap:
    """The report of a whole confusion matrix."""
    true, answered, both = counts.sum(1), counts.sum(0), np.diag(counts)
    if not true.sum():
        raise UsageError("the label maps leave every pixel out: there is nothing to compare with")
    rows = tuple(
        ClassOverlap(
            labels[i],
            int(true[i]),
            100.0 * float(both[i] / (true[i] + answered[i] - both[i])),
            100.0 * float(both[i] / true[i]),
            100.0 * float(both[i] / answered[i]) if answered[i] else None,
        )
        for i in np.flatnonzero(true).tolist()
    )
    mean = sum(row.iou for row in rows) / len(rows)
    return Overlap(pictures, mean, 100.0 * float(both.sum() / true.sum()), rows)
