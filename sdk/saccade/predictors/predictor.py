"""What every predictor is: engines, a card, and three steps between a picture and its result."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Generic, TypeVar, cast, overload

import numpy as np
from numpy.typing import NDArray

from saccade.engines.engine import Arrays, Engine, TensorSpec
from saccade.engines.lifetime import Closing
from saccade.engines.nvtx import span
from saccade.errors import BundleError, EngineError, UsageError
from saccade.media import Media, Source, batched, open_source
from saccade.models.card import Card
from saccade.pictures import Picture
from saccade.preprocess import Batch, batches

__all__ = ["Predictor"]

Result = TypeVar("Result")

PICTURE_GRAPHS = ("model", "image")  # what the graph that takes pictures is called


class Predictor(Closing, Generic[Result]):
    """A callable: pictures in, one result each out. Owns its engines; use it in a `with`, or close it.

    Thread-safe. After `close`, and in a process forked from the one that loaded it, ClosedError.

    card: what the model is, and how its input is made. engines: what runs each graph, by the graph's name;
    engine: the one that takes pictures. engine_name: which engine that is. untrained: the weights are random,
    the answers mean nothing.

    A task is a subclass that says how outputs become results: `postprocess`, and `_check_outputs` for what
    the graph must give.
    """

    def __init__(
        self, engines: Mapping[str, Engine], card: Card, *, engine_name: str = "", untrained: bool = False
    ) -> None:
        self.engines = engines
        self.engine = next(engines[name] for name in PICTURE_GRAPHS if name in engines)
        self.engine_name = engine_name
        self.card = card
        self.untrained = untrained
        _check_inputs(self.engine.inputs, card)

    @overload
    def __call__(self, images: list[Any] | tuple[Any, ...]) -> list[Result]: ...
    @overload
    def __call__(self, images: Picture) -> Result: ...
    def __call__(self, images: Any) -> Any:
        """The result for one picture, or for a list of them in as few runs as their sizes allow.

        A picture is a path, the bytes of a file, a PIL image, or an RGB array (H, W, 3) uint8; a list gives a
        list. One that cannot be used raises InputError naming it.
        """
        if isinstance(images, list | tuple):
            return self._predict(images)
        return self._predict([cast("Picture", images)])[0]

    @overload
    async def acall(self, images: list[Any] | tuple[Any, ...]) -> list[Result]: ...
    @overload
    async def acall(self, images: Picture) -> Result: ...
    async def acall(self, images: Any) -> Any:
        """The same from a coroutine: the work is done in a thread, the event loop stays free."""
        import asyncio

        return await asyncio.to_thread(self.__call__, images)

    def preprocess(self, images: Sequence[Picture]) -> list[Batch]:
        """What the graph is fed: one batch, or one for each padded size where pictures keep their shape."""
        with span("preprocess"):
            return batches(images, self.card.preprocessing)

    def run(self, batch: Batch) -> dict[str, NDArray[Any]]:
        """The graph's outputs for a preprocessed batch, by name."""
        feeds: dict[str, NDArray[Any]] = {"image": batch.image}
        if "size_hw" in self.engine.inputs:
            feeds["size_hw"] = np.array(batch.resized_hw, np.float32)
        with span("run"):
            return self.engine.run(feeds)

    def postprocess(self, outputs: Arrays, batch: Batch) -> list[Result]:
        """One result for each picture of the batch. EngineError if a value is not finite."""
        raise NotImplementedError(f"{type(self).__name__} must say what its outputs mean")

    def stream(
        self, source: Source, *, batch_size: int = 8, progress: bool = True
    ) -> Iterator[tuple[Picture, Result]]:
        """Predict for everything in `source`, lazily and in its order: pairs of picture and result.

        source: a folder (the pictures are paths), a video file (RGB frames), or an iterable of pictures.
        batch_size: pictures per run. progress: a bar on standard error, on a terminal only.
        """
        return self._stream(source, batch_size, progress, self._predict)

    def _stream(
        self,
        source: Source,
        batch_size: int,
        progress: bool,
        predict: Callable[[Sequence[Picture]], list[Result]],
    ) -> Iterator[tuple[Picture, Result]]:
        if batch_size < 1:
            raise UsageError(f"batch_size is {batch_size}; it must be at least 1")
        return _streamed(open_source(source), batch_size, progress and sys.stderr.isatty(), predict)

    def close(self) -> None:
        """Free the engines. Twice is fine."""
        for engine in self.engines.values():
            engine.close()

    def __repr__(self) -> str:
        untrained = ", UNTRAINED" if self.untrained else ""
        return f"{type(self).__name__}({self.card.name}, {self._about()}{self.engine_name}{untrained})"

    def _about(self) -> str:
        """What `repr` says between the name and the engine."""
        return ""

    def _predict(self, images: Sequence[Picture]) -> list[Result]:
        """Results in the order of `images`, whichever batch each was in."""
        found: dict[int, Result] = {}
        for batch in self.preprocess(images):
            outputs = self.run(batch)
            with span("postprocess"):
                found.update(zip(batch.places, self.postprocess(outputs, batch), strict=True))
        return [found[place] for place in range(len(images))]

    def _require_finite(self, values: NDArray[Any], what: str) -> None:
        if not np.isfinite(values).all():
            raise EngineError(
                f"{self.engine_name or 'the engine'} gave {what} of {self.card.name} that are not finite "
                "numbers; a lower precision may have overflowed"
            )


def _streamed(
    media: Media, batch_size: int, progress: bool, predict: Callable[[Sequence[Picture]], list[Result]]
) -> Iterator[tuple[Picture, Result]]:
    done = 0
    with _bar(progress) as advance:
        for batch in batched(media.pictures, batch_size):
            results = predict(batch)
            done += len(batch)
            advance(done, media.total)
            yield from zip(batch, results, strict=True)


def _check_inputs(inputs: Mapping[str, TensorSpec], card: Card) -> None:
    """That the card makes what the graph takes: pictures, and their sizes where it asks for them."""
    if "image" not in inputs or set(inputs) - {"image", "size_hw"}:
        raise BundleError(
            f"{card.name}: the graph must take 'image', and may take 'size_hw'; it takes {sorted(inputs)}"
        )
    spec = inputs["image"]
    given = card.preprocessing
    # Pictures that keep their shape have free sizes, unless they are padded to one and the same.
    free = given.resize == "fit" and given.pad_multiple < max(given.resize_hw)
    made = (3, "height", "width") if free else (3, *given.input_size_hw)
    fits = len(spec.shape) == 4 and all(
        isinstance(wanted, str) or wanted == size for wanted, size in zip(spec.shape[1:], made, strict=True)
    )
    if not fits or spec.dtype != "float32":
        raise BundleError(
            f"{card.name}: the card makes (N, {', '.join(map(str, made))}) float32, the graph takes "
            f"({', '.join(map(str, spec.shape))}) {spec.dtype}"
        )


def _bar(shown: bool) -> AbstractContextManager[Callable[[int, int | None], None]]:
    if not shown:
        return nullcontext(lambda done, total: None)
    from saccade.terminal import counting

    return counting("predicting")
