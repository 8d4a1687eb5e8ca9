"""One request for tensors: queued, awaited within its time, counted. HTTP and gRPC both come through here."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

from numpy.typing import NDArray

from saccade.engines.engine import Arrays, TensorSpec
from saccade.errors import ClosedError, DeadlineError, InputError, OverloadedError, SaccadeError
from saccade.models.card import Texts
from saccade.serving.counters import Counters
from saccade.serving.repository import Repository
from saccade.serving.tensors import InferRequest, Requested

__all__ = ["answer", "counted", "infer", "wanted"]

T = TypeVar("T")
_CLIENTS = range(400, 500)  # statuses of what is the client's mistake


async def infer(
    repository: Repository, name: str, version: str, request: InferRequest
) -> dict[str, NDArray[Any]]:
    """The outputs that the request wants, by name, in its order.

    Cancelling takes the request out of the queue. Raises UnknownModel, InputError, OverloadedError,
    DeadlineError, or what the engine raises.
    """
    model, loaded = repository.model(name, version)
    engine = loaded.engines[model.graph]
    outputs = wanted(request.outputs, engine.outputs)
    _check_rows(request.inputs, engine.batcher.limits.max_rows)
    _check_tokens(request.inputs, loaded.predictor.card.texts)
    timeout_ms = patience_ms(request.timeout_ms, repository)
    with counted(model.counters), loaded.used():
        found = await answer(engine.submit(request.inputs, timeout_ms), timeout_ms)
    return {output: found[output] for output in outputs}


def _check_rows(inputs: Arrays, most: int) -> None:
    """InputError for more rows than a run has, as Triton does: they would take the memory of as many runs."""
    rows = max((len(array) for array in inputs.values() if array.ndim), default=0)
    if rows > most:
        raise InputError(f"the request has {rows} rows, and {most} is the most that one may have: split it")


def _check_tokens(inputs: Arrays, texts: Texts | None) -> None:
    """InputError for numbers that stand for no token: runtimes differ in what they make of them."""
    tokens = inputs.get("tokens")
    if texts is None or tokens is None or not tokens.size:
        return
    low, high = int(tokens.min()), int(tokens.max())
    if low < 0 or high >= texts.vocabulary:
        raise InputError(f"tokens are 0 to {texts.vocabulary - 1}; there are {low} to {high}")


def patience_ms(asked: float | None, repository: Repository) -> float:
    """How long this request may take: what the client asked for, and never longer than the server allows."""
    limit = repository.settings.request_timeout_ms
    return limit if asked is None else min(asked, limit)


async def answer(future: Future[T], timeout_ms: float) -> T:
    """The future's result; DeadlineError when the time is over, however long the engine goes on."""
    loop = asyncio.get_running_loop()
    over: asyncio.Future[None] = loop.create_future()

    def wake() -> None:
        if not over.done():
            over.set_result(None)

    def arrive(_: Future[T]) -> None:
        with suppress(RuntimeError):  # the loop was closed meanwhile
            loop.call_soon_threadsafe(wake)

    timer = loop.call_later(timeout_ms / 1e3, wake)
    future.add_done_callback(arrive)
    try:
        await over
        if future.done():
            return future.result()
    finally:
        timer.cancel()
        future.cancel()
    raise DeadlineError(f"no answer within {timeout_ms:g} ms")


def wanted(requested: Sequence[Requested], outputs: Mapping[str, TensorSpec]) -> list[str]:
    """The names of the outputs to give; all, where none is named."""
    names = [each.name for each in requested] or list(outputs)
    unknown = [name for name in names if name not in outputs]
    if unknown or len(set(names)) < len(names):
        raise InputError(
            f"the model gives {', '.join(outputs)}, each once; asked for {', '.join(names)[:256]}"
        )
    return names


@contextmanager
def counted(counters: Counters) -> Any:
    """Count what happens inside: one request of a model."""
    begun = time.monotonic_ns()
    counters.pending += 1
    try:
        yield
    except BaseException as error:
        counters.fail(_reason(error), begun)
        raise
    else:
        counters.succeed(begun)
    finally:
        counters.pending -= 1


def _reason(error: BaseException) -> str:
    """Triton's word for why a request failed."""
    if isinstance(error, asyncio.CancelledError):
        return "CANCELED"
    if isinstance(error, OverloadedError | DeadlineError | ClosedError):
        return "REJECTED"
    status = error.http_status if isinstance(error, SaccadeError) else 500
    return "OTHER" if status in _CLIENTS else "BACKEND"
