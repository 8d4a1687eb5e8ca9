"""Pictures to classes that are given as texts."""

from __future__ import annotations

import asyncio
import copy
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any, Self, overload

import numpy as np
from numpy.typing import NDArray

from saccade.engines.engine import Arrays, Engine
from saccade.errors import BundleError, UsageError
from saccade.models.card import Card
from saccade.pictures import Picture
from saccade.predictors.classification import softmax
from saccade.predictors.embedding import Embedder
from saccade.predictors.predictor import Predictor
from saccade.preprocess import Batch
from saccade.prompts import checked_names, checked_templates, class_matrix
from saccade.results.classification import Classification

__all__ = ["ZeroShotClassifier"]

_REMEMBERED = 16  # class sets whose embeddings are kept


class ZeroShotClassifier(Predictor[Classification]):
    """A predictor whose classes are texts: ``predictor(image, ["a dog", "a bicycle"])``.

    Scores are the softmax of scaled cosine similarities. The embeddings of the sets of classes that were
    used last are remembered. `with_classes` fixes one set: what it gives is called with pictures only.

    embed: the same model as an `Embedder`. labels: the fixed classes; () where there are none.
    """

    labels: tuple[str, ...] = ()

    def __init__(
        self, engines: Mapping[str, Engine], card: Card, *, engine_name: str = "", untrained: bool = False
    ) -> None:
        super().__init__(engines, card, engine_name=engine_name, untrained=untrained)
        if card.texts is None or "text" not in engines:
            raise BundleError(f"{card.name}: zero-shot classes need the text graph and the card's texts")
        self.embed = Embedder(engines, card, engine_name=engine_name, untrained=untrained)
        self._scale, self._templates = card.texts.scale, card.texts.templates
        self._matrices = _Recent(_REMEMBERED)
        self._matrix: NDArray[np.float32] | None = None

    @overload
    def __call__(
        self,
        images: list[Any] | tuple[Any, ...],
        prompts: Sequence[str] | None = None,
        templates: Sequence[str] | None = None,
    ) -> list[Classification]: ...
    @overload
    def __call__(
        self, images: Picture, prompts: Sequence[str] | None = None, templates: Sequence[str] | None = None
    ) -> Classification: ...
    def __call__(
        self, images: Any, prompts: Sequence[str] | None = None, templates: Sequence[str] | None = None
    ) -> Any:
        """Which of `prompts` a picture shows, or each of a list of pictures; see `Predictor`.

        templates: sentences with one {} that each prompt is put into, whose embeddings are averaged; None
        takes the card's, () the prompts as they are. Without prompts the classes of `with_classes` count.
        """
        if prompts is None and templates is None:
            return super().__call__(images)
        return self.with_classes(prompts or (), templates)(images)

    async def acall(
        self, images: Any, prompts: Sequence[str] | None = None, templates: Sequence[str] | None = None
    ) -> Any:
        """The same from a coroutine: the work is done in a thread, the event loop stays free."""
        return await asyncio.to_thread(self.__call__, images, prompts, templates)

    def with_classes(self, prompts: Sequence[str], templates: Sequence[str] | None = None) -> Self:
        """This predictor with fixed classes, for `stream` and the like; it shares the engines of this one."""
        names = checked_names(prompts)
        chosen = self._templates if templates is None else checked_templates(templates)
        matrix = self._matrices.get((names, chosen))
        if matrix is None:
            matrix = class_matrix(lambda texts: self.embed.texts(texts).vectors, names, chosen)
            self._matrices.put((names, chosen), matrix)
        fixed = copy.copy(self)
        fixed.labels, fixed._matrix = names, matrix
        return fixed

    def postprocess(self, outputs: Arrays, batch: Batch) -> list[Classification]:
        """One result per picture. UsageError before any classes were given."""
        if self._matrix is None:
            raise UsageError(
                f"{self.card.name} has no classes of its own: give them, as in predictor(image, ['a dog', "
                "'a bicycle']), or once in predictor.with_classes([...])"
            )
        logits = self._scale * (self.embed.vectors(outputs) @ self._matrix)
        indices = np.arange(len(self.labels))
        indices.flags.writeable = False  # every result shares it
        return [Classification(self.labels, row, indices, self.untrained) for row in softmax(logits)]

    def _about(self) -> str:
        return f"{len(self.labels)} classes, " if self.labels else ""


class _Recent:
    """The values that were asked for last, by key, at most `size` of them. Thread-safe."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._values: OrderedDict[Any, NDArray[np.float32]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Any) -> NDArray[np.float32] | None:
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
            return self._values.get(key)

    def put(self, key: Any, value: NDArray[np.float32]) -> None:
        with self._lock:
            self._values[key] = value
            while len(self._values) > self._size:
                self._values.popitem(last=False)
