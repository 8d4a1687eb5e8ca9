"""Pictures to the distance of every pixel."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from saccade.engines.engine import Arrays, Engine
from saccade.errors import BundleError
from saccade.models.card import Card
from saccade.predictors.predictor import Predictor
from saccade.preprocess import Batch
from saccade.results.maps import DepthMap
from saccade.upsampling import axis, bilinear, cells_per_pixel, require_whole_pictures

__all__ = ["DepthEstimator"]


class DepthEstimator(Predictor[DepthMap]):
    """A predictor whose result is a `DepthMap` in the unit that the card names."""

    def __init__(
        self, engines: Mapping[str, Engine], card: Card, *, engine_name: str = "", untrained: bool = False
    ) -> None:
        super().__init__(engines, card, engine_name=engine_name, untrained=untrained)
        require_whole_pictures(card)
        shapes = [spec.shape for spec in self.engine.outputs.values()]
        if len(shapes) != 1 or len(shapes[0]) != 3:
            raise BundleError(f"{card.name}: a depth graph has one output (N, H, W), this one {shapes}")
        self._output = next(iter(self.engine.outputs))
        self.unit = card.unit or "relative"

    def postprocess(self, outputs: Arrays, batch: Batch) -> list[DepthMap]:
        """One result per picture, in its own pixels. EngineError if a value is not finite."""
        depths = outputs[self._output]
        self._require_finite(depths, "depths")
        found = []
        for row, depth in enumerate(depths.astype(np.float32, copy=False)):
            per_pixel = cells_per_pixel(batch, row, depth)
            rows, columns = map(axis, batch.originals_hw[row], depth.shape, per_pixel)
            found.append(DepthMap(bilinear(depth, rows, columns), self.unit, self.untrained))
        return found

    def _about(self) -> str:
        return f"{self.unit} depth, "
