"""Average precision of boxes and masks as COCO defines it, through pycocotools."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saccade.errors import MissingDependency, UsageError
from saccade.evaluation import Table

if TYPE_CHECKING:
    from saccade.predictors.detection import Detector

__all__ = ["CocoAccuracy", "Precision", "evaluate"]


@dataclass(frozen=True, slots=True)
class Precision:
    """Average precision in percent; None where there is no object to find.

    ap: the mean over the IoU thresholds 0.50, 0.55 ... 0.95; ap50, ap75: at one of them. small, medium,
    large: `ap` of objects below 32 x 32 pixels, up to 96 x 96, and above.
    """

    ap: float | None
    ap50: float | None
    ap75: float | None
    small: float | None
    medium: float | None
    large: float | None


@dataclass(frozen=True, slots=True)
class ClassPrecision:
    """`ap` of one class: of its boxes, and of its masks where there are any. objects: how many there are."""

    label: str
    objects: int
    boxes: float | None
    masks: float | None


@dataclass(frozen=True, slots=True)
class CocoAccuracy:
    """unknown: categories of the annotations that the model has no label for; their precision is 0."""

    pictures: int
    objects: int
    boxes: Precision
    masks: Precision | None
    classes: tuple[ClassPrecision, ...]
    unknown: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def table(self) -> Table:
        """A row per class that has objects."""
        kinds = {"box": self.boxes, "mask": self.masks}
        kinds = {kind: each for kind, each in kinds.items() if each is not None}
        rows = tuple(
            (each.label, str(each.objects), *map(_percent, (each.boxes, each.masks)[: len(kinds)]))
            for each in self.classes
            if each.objects
        )
        shown = [f"{kind} {_line(each)}" for kind, each in kinds.items() if each]
        missing = f"; no label for {', '.join(self.unknown)}" if self.unknown else ""
        return Table(
            ("class", "objects>", *(f"{kind} AP, %>" for kind in kinds)),
            rows,
            f"{self.pictures} pictures, {self.objects} objects: {'; '.join(shown)}{missing}",
        )


def evaluate(
    detect: Detector,
    data: Path,
    *,
    annotations: Path | None = None,
    batch: int = 16,
    progress: Callable[[int, int], None] | None = None,
) -> CocoAccuracy:
    """Detect in every picture that `annotations` lists and compare.

    data: the folder that the file names in `annotations` start from. annotations: a JSON file in COCO's
    format. Its categories are the model's labels by name, capitals and underscores aside; a model whose
    classes have numbers for names takes them in the order of their ids.
    progress: called with (done, total) after every batch. Needs pycocotools.
    """
    if annotations is None:
        raise UsageError(
            f"{detect.card.name} finds objects: give --annotations FILE.json, in COCO's format, beside --data"
        )
    truth = _read(annotations)
    pictures = _pictures(truth, data)
    labels = detect.labels
    category_ids = _category_ids(labels, truth.cats)
    boxes: list[dict[str, Any]] = []
    for start in range(0, len(pictures), batch):
        chunk = pictures[start : start + batch]
        for (image_id, _), found in zip(chunk, detect([path for _, path in chunk]), strict=True):
            known = found[[label in category_ids for label in found.labels]]
            boxes += known.to_coco(image_id, category_ids)
        if progress is not None:
            progress(min(start + batch, len(pictures)), len(pictures))
    outlined = detect.card.task == "instance_segmentation"
    # Without boxes, the sizes by which precision is split are those of the masks.
    masks = [{key: row[key] for key in row if key != "bbox"} for row in boxes] if outlined else None
    return _report(truth, boxes, masks, category_ids)


def _report(
    truth: Any,
    boxes: list[dict[str, Any]],
    masks: list[dict[str, Any]] | None,
    category_ids: Mapping[str, int],
) -> CocoAccuracy:
    box_overall, box_classes = _measure(truth, boxes, "bbox")
    mask_overall, mask_classes = (None, {}) if masks is None else _measure(truth, masks, "segm")
    objects = [each for each in truth.anns.values() if not each.get("iscrowd")]
    counts = {key: sum(each["category_id"] == key for each in objects) for key in truth.cats}
    classes = tuple(
        ClassPrecision(category["name"], counts[key], box_classes[key], mask_classes.get(key))
        for key, category in sorted(truth.cats.items())
    )
    known = set(category_ids.values())
    unknown = tuple(category["name"] for key, category in truth.cats.items() if key not in known)
    return CocoAccuracy(len(truth.imgs), len(objects), box_overall, mask_overall, classes, unknown)


def _measure(truth: Any, rows: list[dict[str, Any]], kind: str) -> tuple[Precision, dict[int, float | None]]:
    """Over all classes, and by category id."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with _silence():
        if rows:
            found = truth.loadRes(rows)
        else:
            found = COCO()
            found.dataset = {**truth.dataset, "annotations": []}
            found.createIndex()
        measured = COCOeval(truth, found, kind)
        measured.evaluate()
        measured.accumulate()
        measured.summarize()
    overall = Precision(*(None if value < 0 else 100 * float(value) for value in measured.stats[:6]))
    # (IoU thresholds, recalls, categories, sizes, most detections); -1 where a category has no object
    precision = measured.eval["precision"][:, :, :, 0, -1]
    classes = {
        key: None if (precision[..., place] < 0).all() else 100 * float(precision[..., place].mean())
        for place, key in enumerate(measured.params.catIds)
    }
    return overall, classes


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """pycocotools prints what it does."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield


def _read(annotations: Path) -> Any:
    """pycocotools' object of a file that has what is needed."""
    try:
        from pycocotools.coco import COCO
    except ModuleNotFoundError as error:
        raise MissingDependency(
            "COCO's metrics need pycocotools, which is not installed: pip install 'saccade[coco]'"
        ) from error
    try:
        content = json.loads(annotations.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{annotations} cannot be read as JSON: {error}") from error
    missing = [
        key
        for key in ("images", "annotations", "categories")
        if not isinstance(content, dict) or not isinstance(content.get(key), list)
    ]
    if missing:
        raise UsageError(
            f"{annotations} is not in COCO's format: it has no list of {' and none of '.join(missing)}"
        )
    truth = COCO()
    truth.dataset = content
    try:
        with _silence():
            truth.createIndex()
    except (KeyError, TypeError) as error:
        raise UsageError(f"{annotations} is not in COCO's format: an entry lacks {error}") from error
    return truth


def _pictures(truth: Any, data: Path) -> list[tuple[int, Path]]:
    """Id and file of every picture, in the order of the ids."""
    if not data.is_dir():
        raise UsageError(f"{data} is not a folder: --data is where the annotations' file names start from")
    try:
        found = [(key, data / image["file_name"]) for key, image in sorted(truth.imgs.items())]
    except KeyError as error:
        raise UsageError("an image of the annotations has no file_name") from error
    missing = [path for _, path in found if not path.is_file()]
    if missing or not found:
        first = f", the first is {missing[0]}" if missing else ""
        raise UsageError(
            f"{len(missing)} of the {len(found)} pictures of the annotations are not below {data}{first}"
        )
    return found


def _category_ids(labels: Sequence[str], categories: Mapping[int, Mapping[str, Any]]) -> dict[str, int]:
    """The id of every label that is a category."""
    if tuple(labels) == tuple(map(str, range(len(categories)))):
        return dict(zip(labels, sorted(categories), strict=True))
    ids = {_plain(category["name"]): key for key, category in categories.items()}
    found = {label: ids[_plain(label)] for label in labels if _plain(label) in ids}
    if not found:
        raise UsageError(
            f"no label of the model is a category of the annotations; labels: {', '.join(labels[:5])} ..., "
            f"categories: {', '.join(category['name'] for category in list(categories.values())[:5])} ..."
        )
    return found


def _plain(name: str) -> str:
    return name.casefold().replace("_", " ").strip()


def _line(precision: Precision) -> str:
    by_size = ", ".join(
        f"{size} {_percent(getattr(precision, size))}" for size in ("small", "medium", "large")
    )
    return (
        f"AP {_percent(precision.ap)} % (AP50 {_percent(precision.ap50)}, AP75 {_percent(precision.ap75)}; "
        f"{by_size})"
    )


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"
