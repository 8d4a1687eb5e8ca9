"""Pictures and texts to vectors."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from saccade.engines.engine import Arrays, Engine
from saccade.errors import BundleError, EngineError, UsageError
from saccade.models.card import Card
from saccade.pictures import Picture
from saccade.predictors.predictor import Predictor
from saccade.preprocess import Batch
from saccade.results.embeddings import Embeddings, normalised
from saccade.tokenizer import Tokenizer

__all__ = ["Embedder"]

_AT_ONCE = 32


class Embedder(Predictor[Embeddings]):
    """A predictor whose result is the `Embeddings` of a picture: one vector of length one.

    `images` and `texts` embed many at a time. width: numbers per vector.
    """

    def __init__(
        self, engines: Mapping[str, Engine], card: Card, *, engine_name: str = "", untrained: bool = False
    ) -> None:
        super().__init__(engines, card, engine_name=engine_name, untrained=untrained)
        self._output, self.width = _output(self.engine, card)
        self._text = engines.get("text")
        if self._text is not None and (card.texts is None or _output(self._text, card)[1] != self.width):
            raise BundleError(
                f"{card.name}: a text graph gives embeddings as wide as those of pictures, {self.width}, and "
                "its card says how it reads texts"
            )

    def images(self, images: Sequence[Picture], *, batch_size: int = _AT_ONCE) -> Embeddings:
        """Vectors (n, width) of pictures, in their order. batch_size: pictures per run."""
        if batch_size < 1:
            raise UsageError(f"batch_size is {batch_size}; it must be at least 1")
        rows = [np.empty((0, self.width), np.float32)]
        for start in range(0, len(images), batch_size):
            rows += [each.vectors for each in self(list(images[start : start + batch_size]))]
        return Embeddings(np.concatenate(rows), self.untrained)

    def texts(self, texts: Sequence[str]) -> Embeddings:
        """Vectors (n, width) of texts, in their order. UsageError where the bundle has no text tower."""
        if isinstance(texts, str):
            raise UsageError(f"texts is the text {texts[:80]!r}; give a list of them")
        tokens = self.tokenizer(texts)
        starts = range(0, len(tokens), _AT_ONCE)
        rows = [self._text_vectors(tokens[start : start + _AT_ONCE]) for start in starts]
        empty = np.empty((0, self.width), np.float32)
        return Embeddings(np.concatenate([empty, *rows]), self.untrained)

    @functools.cached_property
    def tokenizer(self) -> Tokenizer:
        """What turns texts into the text tower's tokens."""
        if self.card.texts is None:
            raise UsageError(
                f"{self.card.name} has no text tower: export a checkpoint that has both towers, without "
                "--classes"
            )
        return Tokenizer(self.card.texts.vocabulary, self.card.texts.context)

    def postprocess(self, outputs: Arrays, batch: Batch) -> list[Embeddings]:
        """One vector per picture. EngineError if a value is not finite."""
        return [Embeddings(row[None], self.untrained) for row in self.vectors(outputs)]

    def vectors(self, outputs: Arrays) -> NDArray[np.float32]:
        """The image graph's outputs as rows of length one."""
        self._require_finite(outputs[self._output], "embeddings")
        return normalised(outputs[self._output])

    def _text_vectors(self, tokens: NDArray[np.int64]) -> NDArray[np.float32]:
        if self._text is None:
            raise EngineError(f"{self.card.name}: the text graph is missing; load the bundle, not one graph")
        (values,) = self._text.run({"tokens": tokens}).values()
        self._require_finite(values, "text embeddings")
        return normalised(values)

    def _about(self) -> str:
        return f"{self.width} numbers, "


def _output(engine: Engine, card: Card) -> tuple[str, int]:
    """The name of the one output (N, width), and the width."""
    shapes = [spec.shape for spec in engine.outputs.values()]
    if len(shapes) != 1 or len(shapes[0]) != 2 or not isinstance(shapes[0][1], int):
        raise BundleError(f"{card.name}: an embedder's graph has one output (N, width), this one {shapes}")
    return next(iter(engine.outputs)), shapes[0][1]
