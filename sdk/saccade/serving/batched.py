"""An engine whose runs are shared: what the server's predictors hold instead of the engine itself."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from typing import Any

from numpy.typing import NDArray

from saccade.batching import Batcher, Limits, Outputs
from saccade.engines.engine import Arrays, Engine, TensorSpec, check_feeds
from saccade.engines.lifetime import Closing
from saccade.errors import DeadlineError

__all__ = ["BatchedEngine", "Patience"]


class Patience:
    """How long somebody waits for an answer, from now on; `end` it when they are gone.

    Work in a thread cannot be stopped from outside, so it asks: between its steps by `left_ms`, and whenever
    it runs a `BatchedEngine` under `felt`.
    """

    def __init__(self, timeout_ms: float) -> None:
        self._until = time.monotonic() + timeout_ms / 1e3

    def end(self) -> None:
        self._until = -math.inf

    def left_ms(self) -> float:
        """More than 0. DeadlineError where nobody waits any more."""
        left = (self._until - time.monotonic()) * 1e3
        if left <= 0:
            raise DeadlineError("nobody waits for the answer any more")
        return left

    @contextmanager
    def felt(self) -> Iterator[None]:
        """In here, and in this thread, no engine is waited for longer than this."""
        token = _PATIENCE.set(self)
        try:
            yield
        finally:
            _PATIENCE.reset(token)


_PATIENCE: ContextVar[Patience | None] = ContextVar("patience", default=None)


class BatchedEngine(Closing):
    """An `Engine` over a `Batcher` over an engine. Owns both.

    `run` waits at most `timeout_ms`, so that an engine that hangs holds no caller, and never longer than the
    `Patience` it is called under: then DeadlineError. Feeds are checked before they are queued: what is wrong
    with one request never fails those that share its run.
    """

    def __init__(self, engine: Engine, limits: Limits, timeout_ms: float) -> None:
        self.engine = engine
        self.batcher = Batcher(lambda feeds: engine.run(_aligned(feeds)), _fitting(limits, engine.inputs))
        self._timeout_ms = timeout_ms

    @property
    def inputs(self) -> Mapping[str, TensorSpec]:
        return self.engine.inputs

    @property
    def outputs(self) -> Mapping[str, TensorSpec]:
        return self.engine.outputs

    def run(self, feeds: Arrays) -> dict[str, NDArray[Any]]:
        check_feeds(feeds, self.inputs)
        patience = _PATIENCE.get()
        left_ms = math.inf if patience is None else patience.left_ms()
        return self.batcher.run(feeds, timeout_ms=min(self._timeout_ms, left_ms))

    def submit(self, feeds: Arrays, timeout_ms: float) -> Future[Outputs]:
        """Queue `feeds`; see `Batcher.submit`. InputError for feeds that the graph does not take."""
        check_feeds(feeds, self.inputs)
        return self.batcher.submit(feeds, timeout_ms=timeout_ms)

    def close(self) -> None:
        """Answer what is queued, then free the engine."""
        self.batcher.close()
        self.engine.close()


def _aligned(feeds: Arrays) -> Arrays:
    """Tensors that lie behind JSON of any length are copied to where the engine can read them; joined ones
    have been already."""
    return {name: array if array.flags.aligned else array.copy() for name, array in feeds.items()}


def _fitting(limits: Limits, inputs: Mapping[str, TensorSpec]) -> Limits:
    """A graph of a fixed batch takes that many rows in every run: its requests are not joined."""
    fixed = [spec.shape[0] for spec in inputs.values() if spec.shape and isinstance(spec.shape[0], int)]
    if not fixed:
        return limits
    return replace(limits, max_rows=fixed[0], max_queue_rows=max(limits.max_queue_rows, fixed[0]))
