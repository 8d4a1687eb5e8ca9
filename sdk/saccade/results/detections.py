"""Objects with their boxes, and where the model outlines them, their masks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, overload

import numpy as np
from numpy.typing import NDArray

from saccade.errors import MissingDependency, UsageError
from saccade.results.masks import Box, Masks, Rows

if TYPE_CHECKING:
    import supervision

__all__ = ["Detection", "Detections"]

_SHOWN = 5
_DECIMALS = 3  # of a box in JSON; a thousandth of a pixel


@dataclass(frozen=True, slots=True)
class Detection:
    """One object. box_xyxy: its left, top, right and bottom edge in pixels of the picture; score: 0..1;
    index: the class's place in the model's output."""

    label: str
    score: float
    index: int
    box_xyxy: Box
    masks: Masks | None = field(default=None, compare=False, repr=False)

    @property
    def mask(self) -> NDArray[np.bool_] | None:
        """The pixels that belong to it, (H, W) bool of the whole picture; None without outlines."""
        return None if self.masks is None else self.masks[0]


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Detections:
    """Objects of one picture, n of them, as columns; a predictor returns the best first.

    boxes_xyxy: (n, 4) float32, left, top, right, bottom in pixels of the picture as it was given. scores:
    (n,) float32. labels: n names. indices: (n,) int64, the classes' places in the model's output. size_hw:
    of the picture. masks: n masks (H, W) bool that are made when they are looked at; None where the model
    gives boxes only. untrained: the model has random weights, this means nothing.

    >>> boxes = np.float32([[0, 0, 8, 8], [2, 2, 4, 4]])
    >>> found = Detections(boxes, np.float32([0.75, 0.25]), ("cat", "dog"), np.array([15, 16]), (10, 10))
    >>> found[found.scores > 0.5]
    Detections(0.750 cat)
    """

    boxes_xyxy: NDArray[np.float32]
    scores: NDArray[np.float32]
    labels: tuple[str, ...]
    indices: NDArray[np.int64]
    size_hw: tuple[int, int]
    masks: Masks | None = None
    untrained: bool = False

    def __post_init__(self) -> None:
        rows = (len(self.labels),)
        shapes = self.boxes_xyxy.shape, self.scores.shape, self.indices.shape
        if shapes != ((*rows, 4), rows, rows):
            raise UsageError(
                f"Detections wants columns of one length: {len(self.labels)} labels; boxes, scores and "
                f"indices have the shapes {shapes}"
            )
        if self.masks is not None and self.masks.shape != (*rows, *self.size_hw):
            raise UsageError(
                f"{len(self.labels)} detections in a picture of {self.size_hw} cannot have masks of the "
                f"shape {self.masks.shape}"
            )

    def __len__(self) -> int:
        return len(self.labels)

    def __iter__(self) -> Iterator[Detection]:
        return (self[row] for row in range(len(self)))

    @overload
    def __getitem__(self, rows: int | np.integer) -> Detection: ...
    @overload
    def __getitem__(self, rows: Rows) -> Detections: ...
    def __getitem__(self, rows: int | np.integer | Rows) -> Detection | Detections:
        """One Detection for an index; Detections for a slice, a boolean mask or several indices."""
        if isinstance(rows, int | np.integer):
            box: Box = tuple(self.boxes_xyxy[rows].tolist())
            masks = None if self.masks is None else self.masks[[int(rows)]]
            return Detection(self.labels[rows], float(self.scores[rows]), int(self.indices[rows]), box, masks)
        chosen = np.arange(len(self))[rows]
        return Detections(
            self.boxes_xyxy[chosen],
            self.scores[chosen],
            tuple(self.labels[row] for row in chosen.tolist()),
            self.indices[chosen],
            self.size_hw,
            None if self.masks is None else self.masks[chosen],
            self.untrained,
        )

    def top(self, k: int) -> Detections:
        """The `k` best (all, if there are fewer), best first; equal scores in their order."""
        if k < 1:
            raise UsageError(f"top({k}): k must be at least 1")
        return self[np.argsort(-self.scores, kind="stable")[:k]]

    def to_json(self, top: int | None = None) -> dict[str, Any]:
        """Plain dict of JSON types, one object per row, all or the `top` best; masks as COCO's runs."""
        if top is not None:
            return self.top(top).to_json()
        marked = {"untrained": True} if self.untrained else {}
        rows = [
            {
                "label": label,
                "score": score,
                "index": index,
                "box_xyxy": [round(edge, _DECIMALS) for edge in box],
                **({} if self.masks is None else {"mask": self.masks.to_coco(row)}),
            }
            for row, (label, score, index, box) in enumerate(self._columns())
        ]
        return {"size_hw": list(self.size_hw), "detections": rows, **marked}

    def to_coco(self, image_id: int, category_ids: Mapping[str, int] | None = None) -> list[dict[str, Any]]:
        """Rows of a COCO result file: image_id, category_id, bbox (x, y, width, height), score, segmentation.

        category_ids: the annotations' id of each label; by default the classes count from 1 in the model's
        order, as most files number them (COCO's own has gaps).
        """
        return [
            {
                "image_id": image_id,
                "category_id": index + 1 if category_ids is None else category_ids[label],
                "bbox": [left, top, right - left, bottom - top],
                "score": score,
                **({} if self.masks is None else {"segmentation": self.masks.to_coco(row)}),
            }
            for row, (label, score, index, (left, top, right, bottom)) in enumerate(self._columns())
        ]

    def to_supervision(self) -> supervision.Detections:
        """As the supervision library has them, with masks as pixels. Needs supervision."""
        try:
            import supervision
        except ModuleNotFoundError as error:
            raise MissingDependency("supervision is not installed: pip install supervision") from error
        return supervision.Detections(
            xyxy=self.boxes_xyxy,
            mask=None if self.masks is None else np.asarray(self.masks),
            confidence=self.scores,
            class_id=self.indices,
            data={"class_name": np.array(self.labels, dtype=str)},
        )

    def summary(self, top: int = 5) -> str:
        """How many of which on one line, the `top` most frequent, with the best score of each."""
        if len(self) == 0:
            return "nothing found"
        best: dict[str, float] = {}
        for label, score in zip(self.labels, self.scores.tolist(), strict=True):
            best[label] = max(score, best.get(label, 0.0))
        found = Counter(self.labels).most_common()
        more = [f"{len(found) - top} more classes"] if len(found) > top else []
        return "   ".join([f"{count} {label} {best[label]:.3f}" for label, count in found[:top]] + more)

    def _columns(self) -> Iterator[tuple[str, float, int, list[float]]]:
        columns = (self.scores.tolist(), self.indices.tolist(), self.boxes_xyxy.tolist())
        return zip(self.labels, *columns, strict=True)

    def __repr__(self) -> str:
        shown = [f"{row.score:.3f} {row.label}" for row in self[:_SHOWN]]
        more = [f"{len(self) - _SHOWN} more"] if len(self) > _SHOWN else []
        return f"Detections({', '.join(shown + more)}{', UNTRAINED' if self.untrained else ''})"
