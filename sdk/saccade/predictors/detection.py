"""Pictures to objects: boxes, and outlines where the model gives them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from saccade.engines.engine import Arrays, Engine, TensorSpec
from saccade.errors import BundleError, EngineError
from saccade.media import Source
from saccade.models.card import Card
from saccade.pictures import Picture, decode
from saccade.predictors.predictor import Predictor
from saccade.preprocess import Batch
from saccade.results.detections import Detections
from saccade.results.masks import Masks
from saccade.tiling import merge, tiles

__all__ = ["Detector", "InstanceSegmenter"]

_BOXES = ("boxes", "scores", "labels", "count")
_TILES_AT_ONCE = 8


class Detector(Predictor[Detections]):
    """A predictor whose result is `Detections`. labels: the classes in the order of the model's indices.

    A picture much larger than the model sees loses its small objects when it is resized. With
    ``tile=(size, overlap)``, in pixels of the picture, it is cut into tiles instead, and what several tiles
    see of one object becomes one object again (`saccade.tiling`).
    """

    outputs: tuple[str, ...] = _BOXES

    def __init__(
        self, engines: Mapping[str, Engine], card: Card, *, engine_name: str = "", untrained: bool = False
    ) -> None:
        super().__init__(engines, card, engine_name=engine_name, untrained=untrained)
        _check_outputs(self.engine.outputs, self.outputs, card)
        self.labels = card.labels

    @overload
    def __call__(
        self, images: list[Any] | tuple[Any, ...], *, tile: tuple[int, int] | None = None
    ) -> list[Detections]: ...
    @overload
    def __call__(self, images: Picture, *, tile: tuple[int, int] | None = None) -> Detections: ...
    def __call__(self, images: Any, *, tile: tuple[int, int] | None = None) -> Any:
        """The objects in one picture, or in each of a list; see `Predictor`. tile: (size, overlap)."""
        if tile is None:
            return super().__call__(images)
        if isinstance(images, list | tuple):
            return [self._tiled(image, tile) for image in images]
        return self._tiled(images, tile)

    @overload
    async def acall(
        self, images: list[Any] | tuple[Any, ...], *, tile: tuple[int, int] | None = None
    ) -> list[Detections]: ...
    @overload
    async def acall(self, images: Picture, *, tile: tuple[int, int] | None = None) -> Detections: ...
    async def acall(self, images: Any, *, tile: tuple[int, int] | None = None) -> Any:
        """The same from a coroutine: the work is done in a thread, the event loop stays free."""
        return await asyncio.to_thread(self.__call__, images, tile=tile)

    def stream(
        self,
        source: Source,
        *,
        batch_size: int = 8,
        progress: bool = True,
        tile: tuple[int, int] | None = None,
    ) -> Iterator[tuple[Picture, Detections]]:
        """Objects in everything in `source`, lazily, in its order; see `Predictor`. tile: (size, overlap)."""
        return self._stream(source, batch_size, progress, partial(self.__call__, tile=tile))

    def postprocess(self, outputs: Arrays, batch: Batch) -> list[Detections]:
        """One result per picture, in its own pixels. EngineError if a value is not finite."""
        for name in self.outputs:
            self._require_finite(outputs[name], name)
        return [
            self._detections({name: outputs[name][row] for name in self.outputs}, *sizes)
            for row, sizes in enumerate(zip(batch.originals_hw, batch.resized_hw, strict=True))
        ]

    def _detections(
        self, found: Arrays, original_hw: tuple[int, int], resized_hw: tuple[int, int]
    ) -> Detections:
        count = int(found["count"])
        indices = found["labels"][:count].astype(np.int64)
        height, width = original_hw
        edges = np.array([width, height] * 2, np.float32)
        # As mmdet divides by its scale factor: in float32, and each axis by its own.
        factors = (np.array(resized_hw[::-1] * 2) / edges).astype(np.float32)
        boxes = np.clip(found["boxes"][:count] / factors, 0, edges).astype(np.float32)
        return Detections(
            boxes,
            found["scores"][:count].astype(np.float32),
            self._names(indices),
            indices,
            original_hw,
            Masks.from_maps(found["masks"][:count].copy(), boxes, original_hw) if "masks" in found else None,
            self.untrained,
        )

    def _names(self, indices: NDArray[np.int64]) -> tuple[str, ...]:
        if not self.labels:
            return tuple(map(str, indices.tolist()))
        if len(indices) and not 0 <= indices.min() <= indices.max() < len(self.labels):
            raise EngineError(
                f"{self.card.name} found class {indices.max()}, but its card has {len(self.labels)} labels: "
                "give the card of this graph"
            )
        return tuple(self.labels[index] for index in indices.tolist())

    def _tiled(self, image: Picture, tile: tuple[int, int]) -> Detections:
        picture = np.asarray(decode(image))
        size_hw = (picture.shape[0], picture.shape[1])
        places = tiles(size_hw, *tile)
        parts = [picture[place.window] for place in places]
        found: list[Detections] = []
        for start in range(0, len(parts), _TILES_AT_ONCE):
            found += self._predict(parts[start : start + _TILES_AT_ONCE])
        return merge(list(zip(places, found, strict=True)), size_hw)

    def _about(self) -> str:
        return f"{len(self.labels)} classes, "


class InstanceSegmenter(Detector):
    """A detector whose results have masks."""

    outputs = (*_BOXES, "masks")


def _check_outputs(outputs: Mapping[str, TensorSpec], wanted: Sequence[str], card: Card) -> None:
    missing = [name for name in wanted if name not in outputs]
    if missing == ["masks"]:
        raise BundleError(
            f"{card.name} is made for instance segmentation, but its graph gives no masks: export it again "
            "from a checkpoint with a mask head, or set the card's task to detection"
        )
    if missing:
        raise BundleError(
            f"{card.name}: a detector's graph gives {', '.join(wanted)}; this one lacks {', '.join(missing)}"
        )
    ranks = {"boxes": 3, "scores": 2, "labels": 2, "count": 1, "masks": 4}
    for name in wanted:
        if len(outputs[name].shape) != ranks[name]:
            raise BundleError(f"{card.name}: output {name!r} has the shape {outputs[name].shape}")
