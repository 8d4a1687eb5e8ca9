"""Pictures to classes."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from saccade.engines.engine import Arrays, Engine, TensorSpec
from saccade.errors import BundleError
from saccade.models.card import Card
from saccade.predictors.predictor import Predictor
from saccade.preprocess import Batch
from saccade.results.classification import Classification

__all__ = ["Classifier", "softmax"]


class Classifier(Predictor[Classification]):
    """A predictor whose result is a `Classification`. labels: the classes in the order of the logits."""

    def __init__(
        self, engines: Mapping[str, Engine], card: Card, *, engine_name: str = "", untrained: bool = False
    ) -> None:
        super().__init__(engines, card, engine_name=engine_name, untrained=untrained)
        self._output, classes = _check_output(self.engine.outputs, card)
        self.labels = card.labels or tuple(map(str, range(classes)))
        self._indices = np.arange(classes)
        self._indices.flags.writeable = False  # every result shares it

    def postprocess(self, outputs: Arrays, batch: Batch) -> list[Classification]:
        """One result per row of the logits (N, classes). EngineError if a value is not finite."""
        logits = outputs[self._output]
        self._require_finite(logits, "logits")
        return [Classification(self.labels, row, self._indices, self.untrained) for row in softmax(logits)]

    def _about(self) -> str:
        return f"{len(self.labels)} classes, "


def _check_output(outputs: Mapping[str, TensorSpec], card: Card) -> tuple[str, int]:
    """The name of the one output (N, classes) and the number of classes."""
    shapes = [spec.shape for spec in outputs.values()]
    if len(shapes) != 1 or len(shapes[0]) != 2 or not isinstance(shapes[0][1], int):
        raise BundleError(f"{card.name}: a classifier's graph has one output (N, classes), this one {shapes}")
    classes = shapes[0][1]
    if card.labels and len(card.labels) != classes:
        raise BundleError(f"{card.name}: the card has {len(card.labels)} labels, the graph {classes} classes")
    return next(iter(outputs)), classes


def softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Along the last axis; in float64, where differences of float32 values cannot overflow."""
    wide = logits.astype(np.float64)
    powers = np.exp(wide - wide.max(axis=-1, keepdims=True))
    return (powers / powers.sum(axis=-1, keepdims=True)).astype(np.float32)
