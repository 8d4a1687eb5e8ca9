"""Pictures to the class of every pixel."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from saccade.engines.engine import Arrays, Engine, TensorSpec
from saccade.errors import BundleError
from saccade.media import Source
from saccade.models.card import Card
from saccade.pictures import Picture, decode
from saccade.predictors.predictor import Predictor
from saccade.preprocess import Batch
from saccade.results.maps import SemanticMap
from saccade.tiling import Tile, tiles
from saccade.upsampling import Axis, axis, bilinear, cells_per_pixel, labels, require_whole_pictures

__all__ = ["SemanticSegmenter"]

_TILES_AT_ONCE = 8


class SemanticSegmenter(Predictor[SemanticMap]):
    """A predictor whose result is a `SemanticMap`. labels: the classes in the order of the logits.

    With ``tile=(size, overlap)``, in pixels of the picture, a large picture is cut into tiles that overlap,
    each is scaled as the card says, and where several tiles saw a place, their logits are averaged. That is
    mmsegmentation's "slide" mode with a stride of size - overlap.
    """

    def __init__(
        self, engines: Mapping[str, Engine], card: Card, *, engine_name: str = "", untrained: bool = False
    ) -> None:
        super().__init__(engines, card, engine_name=engine_name, untrained=untrained)
        self._output, classes = _check_output(self.engine.outputs, card)
        self.labels = card.labels or tuple(map(str, range(classes)))

    @overload
    def __call__(
        self, images: list[Any] | tuple[Any, ...], *, tile: tuple[int, int] | None = None
    ) -> list[SemanticMap]: ...
    @overload
    def __call__(self, images: Picture, *, tile: tuple[int, int] | None = None) -> SemanticMap: ...
    def __call__(self, images: Any, *, tile: tuple[int, int] | None = None) -> Any:
        """The map of one picture, or of each of a list; see `Predictor`. tile: (size, overlap)."""
        if tile is None:
            return super().__call__(images)
        if isinstance(images, list | tuple):
            return [self._tiled(image, tile) for image in images]
        return self._tiled(images, tile)

    @overload
    async def acall(
        self, images: list[Any] | tuple[Any, ...], *, tile: tuple[int, int] | None = None
    ) -> list[SemanticMap]: ...
    @overload
    async def acall(self, images: Picture, *, tile: tuple[int, int] | None = None) -> SemanticMap: ...
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
    ) -> Iterator[tuple[Picture, SemanticMap]]:
        """Maps of everything in `source`, lazily, in its order; see `Predictor`. tile: (size, overlap)."""
        return self._stream(source, batch_size, progress, partial(self.__call__, tile=tile))

    def postprocess(self, outputs: Arrays, batch: Batch) -> list[SemanticMap]:
        """One result per picture, in its own pixels. EngineError if a value is not finite."""
        logits = self._logits(outputs)
        return [
            self._map(each, batch.originals_hw[row], cells_per_pixel(batch, row, each))
            for row, each in enumerate(logits)
        ]

    def _logits(self, outputs: Arrays) -> NDArray[np.float32]:
        logits = outputs[self._output]
        self._require_finite(logits, "logits")
        return logits.astype(np.float32, copy=False)

    def _map(
        self, logits: NDArray[np.float32], size_hw: tuple[int, int], per_pixel: tuple[float, float]
    ) -> SemanticMap:
        rows, columns = map(axis, size_hw, logits.shape[1:], per_pixel)
        return SemanticMap(labels(logits, rows, columns), self.labels, self.untrained)

    def _tiled(self, image: Picture, tile: tuple[int, int]) -> SemanticMap:
        picture = np.asarray(decode(image))
        size_hw = (picture.shape[0], picture.shape[1])
        places = tiles(size_hw, *tile)
        sheet: _Sheet | None = None
        for start in range(0, len(places), _TILES_AT_ONCE):
            chunk = places[start : start + _TILES_AT_ONCE]
            # All tiles of a picture have one size, so that they make one batch.
            for batch in self.preprocess([picture[each.window] for each in chunk]):
                logits = self._logits(self.run(batch))
                for row, (place, each) in enumerate(zip(batch.places, logits, strict=True)):
                    if sheet is None:
                        sheet = _Sheet(size_hw, len(each), cells_per_pixel(batch, row, each))
                    sheet.add(chunk[place], each)
        assert sheet is not None  # a picture has a pixel, so it has a tile
        return self._map(sheet.mean(), size_hw, sheet.per_pixel)

    def _about(self) -> str:
        return f"{len(self.labels)} classes, "


def _check_output(outputs: Mapping[str, TensorSpec], card: Card) -> tuple[str, int]:
    """The name of the one output (N, classes, h, w) and the number of classes."""
    shapes = [spec.shape for spec in outputs.values()]
    if len(shapes) != 1 or len(shapes[0]) != 4 or not isinstance(shapes[0][1], int):
        raise BundleError(
            f"{card.name}: a segmenter's graph has one output (N, classes, h, w), this one {shapes}"
        )
    classes = shapes[0][1]
    if card.labels and len(card.labels) != classes:
        raise BundleError(f"{card.name}: the card has {len(card.labels)} labels, the graph {classes} classes")
    require_whole_pictures(card)
    return next(iter(outputs)), classes


class _Sheet:
    """Logits of a whole picture as the mean of what its tiles have, on one grid as fine as theirs."""

    def __init__(self, size_hw: tuple[int, int], classes: int, per_pixel: tuple[float, float]) -> None:
        self.size_hw, self.per_pixel = size_hw, per_pixel
        # With the cell beyond the last pixel, towards which that is interpolated.
        height, width = (math.ceil(n * per + 0.5) for n, per in zip(size_hw, per_pixel, strict=True))
        self.total = np.zeros((classes, height, width), np.float32)
        self.count = np.zeros((height, width), np.float32)

    def add(self, tile: Tile, logits: NDArray[np.float32]) -> None:
        """`logits` (K, h, w) of `tile`, resampled where its edge does not fall on the grid."""
        down, rows = self._cells(0, tile.top, tile.bottom, logits.shape[1])
        across, columns = self._cells(1, tile.left, tile.right, logits.shape[2])
        self.total[:, down, across] += bilinear(logits, rows, columns)
        self.count[down, across] += 1

    def mean(self) -> NDArray[np.float32]:
        return self.total / self.count

    def _cells(self, side: int, first: int, last: int, cells: int) -> tuple[slice, Axis]:
        """The cells whose centres lie in pixels `first` to `last`, and where these are on the tile's own."""
        per = self.per_pixel[side]
        start = max(0, math.ceil(first * per - 0.5))
        stop = self.count.shape[side] if last == self.size_hw[side] else math.ceil(last * per - 0.5)
        return slice(start, stop), axis(max(0, stop - start), cells, 1.0, start - first * per)
