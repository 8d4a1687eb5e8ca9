"""Answers for every pixel: its class, or its depth."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from saccade.errors import UsageError
from saccade.palette import class_colours, ramp

__all__ = ["Area", "DepthMap", "SemanticMap"]


@dataclass(frozen=True, slots=True)
class Area:
    """One class of a picture. share: of its pixels, 0..1; index: the class's place in the model's output."""

    label: str
    share: float
    index: int


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class SemanticMap:
    """The class of every pixel of a picture.

    labels: (H, W) uint8 or uint16, the place of the class in `names`, for the picture as it was given.
    untrained: the model has random weights, this means nothing.

    >>> result = SemanticMap(np.uint8([[0, 1], [1, 1]]), ("sky", "sea"))
    >>> result
    SemanticMap(2 x 2, 75.0 % sea, 25.0 % sky)
    >>> (result.labels == result.names.index("sea")).sum()
    np.int64(3)
    """

    labels: NDArray[np.uint8] | NDArray[np.uint16]
    names: tuple[str, ...]
    untrained: bool = False

    def __post_init__(self) -> None:
        if self.labels.ndim != 2 or self.labels.dtype not in (np.uint8, np.uint16):
            raise UsageError(
                f"SemanticMap wants labels (H, W) of uint8 or uint16, not {self.labels.shape} of "
                f"{self.labels.dtype}"
            )
        if self.labels.size and self.labels.max() >= len(self.names):
            raise UsageError(f"label {self.labels.max()} has no name: there are {len(self.names)}")

    def areas(self) -> tuple[Area, ...]:
        """The classes that occur, largest first; equal areas in the order of the index."""
        counts = np.bincount(self.labels.ravel(), minlength=len(self.names))
        order = np.argsort(-counts, kind="stable")[: np.count_nonzero(counts)]
        return tuple(Area(self.names[i], float(counts[i] / self.labels.size), int(i)) for i in order)

    def colour(self) -> NDArray[np.uint8]:
        """(H, W, 3) RGB: one colour per class, the same in every picture."""
        return class_colours(len(self.names))[self.labels]

    def to_json(self, top: int | None = None) -> dict[str, Any]:
        """Plain dict of JSON types: areas, all or the `top` largest, and the whole map as runs along rows.

        ``np.repeat(runs["indices"], runs["lengths"]).reshape(size_hw)`` is `labels` again.
        """
        marked = {"untrained": True} if self.untrained else {}
        areas = [{"label": a.label, "share": a.share, "index": a.index} for a in self.areas()[:top]]
        return {"size_hw": list(self.labels.shape), "areas": areas, "runs": _runs(self.labels), **marked}

    def summary(self, top: int = 5) -> str:
        """The `top` largest classes on one line."""
        areas = self.areas()
        more = [f"{len(areas) - top} more classes"] if len(areas) > top else []
        return "   ".join([f"{area.label} {100 * area.share:.1f} %" for area in areas[:top]] + more)

    def __repr__(self) -> str:
        shown = ", ".join(f"{100 * area.share:.1f} % {area.label}" for area in self.areas()[:3])
        size = " x ".join(map(str, self.labels.shape))
        return f"SemanticMap({size}, {shown}{', UNTRAINED' if self.untrained else ''})"


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class DepthMap:
    """How far every pixel of a picture is.

    depth: (H, W) float32, positive, for the picture as it was given. unit: "metre", or "relative" where only
    the order is known. untrained: the model has random weights, this means nothing.

    >>> DepthMap(np.float32([[1, 2], [4, 8]]), "metre")
    DepthMap(2 x 2, 1 to 8 metre, median 3)
    """

    depth: NDArray[np.float32]
    unit: str
    untrained: bool = False

    def __post_init__(self) -> None:
        if self.depth.ndim != 2 or self.depth.dtype != np.float32 or not self.depth.size:
            raise UsageError(
                f"DepthMap wants depth (H, W) of float32, not {self.depth.shape} of {self.depth.dtype}"
            )

    def colour(self) -> NDArray[np.uint8]:
        """(H, W, 3) RGB: the nearest pixel is light, the farthest dark; equal steps of depth look equal."""
        near, far = float(self.depth.min()), float(self.depth.max())
        return ramp((self.depth - near) / ((far - near) or 1.0))

    def to_json(self, top: int | None = None) -> dict[str, Any]:
        """Plain dict of JSON types: the range, not the pixels; take those from `depth`."""
        marked = {"untrained": True} if self.untrained else {}
        near, median, far = self._range()
        size = list(self.depth.shape)
        return {
            "size_hw": size,
            "unit": self.unit,
            "nearest": near,
            "median": median,
            "farthest": far,
            **marked,
        }

    def summary(self, top: int = 5) -> str:
        """The range on one line."""
        near, median, far = self._range()
        return f"{near:.3g} to {far:.3g} {self.unit}, median {median:.3g}"

    def _range(self) -> tuple[float, float, float]:
        return float(self.depth.min()), float(np.median(self.depth)), float(self.depth.max())

    def __repr__(self) -> str:
        size = " x ".join(map(str, self.depth.shape))
        return f"DepthMap({size}, {self.summary()}{', UNTRAINED' if self.untrained else ''})"


def _runs(labels: NDArray[Any]) -> dict[str, list[int]]:
    """The map along its rows as runs of one class: their classes and their lengths."""
    flat = labels.ravel()
    starts = np.flatnonzero(np.r_[True, flat[1:] != flat[:-1]]) if flat.size else np.zeros(0, np.int64)
    lengths = np.diff(np.append(starts, flat.size))
    return {"indices": flat[starts].tolist(), "lengths": lengths.tolist()}
