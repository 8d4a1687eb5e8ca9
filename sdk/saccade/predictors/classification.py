"""Pictures to classes."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from types import TracebackType
from typing import Any, Self, cast, overload

import numpy as np
from numpy.typing import NDArray

from saccade.engines.engine import Engine, TensorSpec
from saccade.errors import BundleError, EngineError, UsageError
from saccade.media import Source, batched, open_source
from saccade.models.card import Card
from saccade.pictures import Picture
from saccade.preprocess import preprocess
from saccade.results import Classification

__all__ = ["Classifier"]


class Classifier:
    """A callable: pictures in, `Classification` out. Owns its engine; use it in a `with`, or close it.

    Thread-safe. After `close`, and in a process forked from the one that loaded it, ClosedError.

    card: what the model is, and how its input is made. labels: the classes in the order of the logits.
    engine, engine_name: what runs the graph. untrained: the weights are random, the answers mean nothing.
    """

    def __init__(self, engine: Engine, card: Card, *, engine_name: str = "", untrained: bool = False) -> None:
        self.engine = engine
        self.engine_name = engine_name
        self.card = card
        self.untrained = untrained
        self._input = _check_input(engine.inputs, card)
        self._output, classes = _check_output(engine.outputs, card)
        self.labels = card.labels or tuple(map(str, range(classes)))
        self._indices = np.arange(classes)
        self._indices.flags.writeable = False  # every result shares it

    @overload
    def __call__(self, images: list[Any] | tuple[Any, ...]) -> list[Classification]: ...
    @overload
    def __call__(self, images: Picture) -> Classification: ...
    def __call__(self, images: Picture | Sequence[Picture]) -> Classification | list[Classification]:
        """Classify one picture, or a list of them in one batch: a list gives a list.

        A picture is a path, the bytes of a file, a PIL image, or an RGB array (H, W, 3) uint8. One that
        cannot be used raises InputError naming it.
        """
        if isinstance(images, list | tuple):
            return self._classify(images)
        return self._classify([cast("Picture", images)])[0]

    @overload
    async def acall(self, images: list[Any] | tuple[Any, ...]) -> list[Classification]: ...
    @overload
    async def acall(self, images: Picture) -> Classification: ...
    async def acall(self, images: Any) -> Any:
        """The same from a coroutine: the work is done in a thread, the event loop stays free."""
        import asyncio

        return await asyncio.to_thread(self.__call__, images)

    def preprocess(self, images: Sequence[Picture]) -> NDArray[np.float32]:
        """The input of the graph: (N, 3, H, W) float32."""
        return preprocess(images, self.card.preprocessing)

    def run(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logits (N, classes) of a preprocessed batch (N, 3, H, W)."""
        logits: NDArray[np.float32] = self.engine.run({self._input: batch})[self._output]
        return logits

    def postprocess(self, logits: NDArray[np.float32]) -> list[Classification]:
        """One result per row of (N, classes). EngineError if a value is not finite."""
        if not np.isfinite(logits).all():
            raise EngineError(
                f"{self.engine_name or 'the engine'} gave logits of {self.card.name} that are not finite "
                "numbers; a lower precision may have overflowed"
            )
        scores = _softmax(logits)
        return [Classification(self.labels, row, self._indices, self.untrained) for row in scores]

    def stream(
        self, source: Source, *, batch_size: int = 8, progress: bool = True
    ) -> Iterator[tuple[Picture, Classification]]:
        """Classify everything in `source`, lazily and in its order: pairs of picture and result.

        source: a folder (the pictures are paths), a video file (RGB frames), or an iterable of pictures.
        batch_size: pictures per run. progress: a bar on standard error, on a terminal only.
        """
        if batch_size < 1:
            raise UsageError(f"batch_size is {batch_size}; it must be at least 1")
        media = open_source(source)
        return self._stream(media.pictures, media.total, batch_size, progress and sys.stderr.isatty())

    def _stream(
        self, pictures: Any, total: int | None, batch_size: int, progress: bool
    ) -> Iterator[tuple[Picture, Classification]]:
        done = 0
        with _bar(progress) as advance:
            for batch in batched(pictures, batch_size):
                results = self._classify(batch)
                done += len(batch)
                advance(done, total)
                yield from zip(batch, results, strict=True)

    def close(self) -> None:
        """Free the engine. Twice is fine."""
        self.engine.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        untrained = ", UNTRAINED" if self.untrained else ""
        return f"Classifier({self.card.name}, {len(self.labels)} classes, {self.engine_name}{untrained})"

    def _classify(self, images: Sequence[Picture]) -> list[Classification]:
        if not images:
            return []
        return self.postprocess(self.run(self.preprocess(images)))


def _check_input(inputs: Mapping[str, TensorSpec], card: Card) -> str:
    """The name of the one input, after checking that the card makes what it takes."""
    if len(inputs) != 1:
        raise BundleError(f"{card.name}: a classifier's graph has one input, this one has {sorted(inputs)}")
    (spec,) = inputs.values()
    made = (3, *card.preprocessing.input_size_hw)
    fits = len(spec.shape) == 4 and all(
        isinstance(wanted, str) or wanted == size for wanted, size in zip(spec.shape[1:], made, strict=True)
    )
    if not fits or spec.dtype != "float32":
        raise BundleError(
            f"{card.name}: the card makes (N, {', '.join(map(str, made))}) float32, the graph takes "
            f"({', '.join(map(str, spec.shape))}) {spec.dtype}"
        )
    return spec.name


def _check_output(outputs: Mapping[str, TensorSpec], card: Card) -> tuple[str, int]:
    """The name of the one output (N, classes) and the number of classes."""
    shapes = [spec.shape for spec in outputs.values()]
    if len(shapes) != 1 or len(shapes[0]) != 2 or not isinstance(shapes[0][1], int):
        raise BundleError(f"{card.name}: a classifier's graph has one output (N, classes), this one {shapes}")
    classes = shapes[0][1]
    if card.labels and len(card.labels) != classes:
        raise BundleError(f"{card.name}: the card has {len(card.labels)} labels, the graph {classes} classes")
    return next(iter(outputs)), classes


def _softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Along the last axis; in float64, where differences of float32 values cannot overflow."""
    wide = logits.astype(np.float64)
    powers = np.exp(wide - wide.max(axis=1, keepdims=True))
    return (powers / powers.sum(axis=1, keepdims=True)).astype(np.float32)


def _bar(shown: bool) -> AbstractContextManager[Callable[[int, int | None], None]]:
    if not shown:
        return nullcontext(lambda done, total: None)
    from saccade.terminal import counting

    return counting("classifying")
