"""Many small requests, few large runs: the micro-batcher that servers and embedded predictors share.

Requests whose tensors have the same shapes, their first axis aside, wait in one bucket. A worker takes the
bucket whose first request has waited longest, joins what is there along the first axis, runs it, and hands
everyone their own rows. With `max_delay_ms` 0 nobody waits for company: batches form of what arrives while
the engine is busy. Under load the rows of a run are handed out when the next run is about to begin: whoever
they wake takes the interpreter's lock, which the worker needs until then and the engine does not.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from saccade.engines.engine import Arrays
from saccade.engines.lifetime import Closing
from saccade.errors import ClosedError, DeadlineError, EngineError, InputError, OverloadedError
from saccade.ranges import DAY_S, Range

__all__ = ["Batcher", "Limits", "Statistics"]

Outputs: TypeAlias = dict[str, NDArray[Any]]
Answer: TypeAlias = "tuple[Future[Outputs], Outputs | Exception]"
Bucket: TypeAlias = tuple[tuple[str, str, tuple[int, ...]], ...]
_MOST_ROWS = 2**20


@dataclass(frozen=True, slots=True)
class Limits:
    """max_rows: of one run; a request with more runs alone. max_delay_ms: how long a request waits for
    company while the engine is free, a day at most. max_queue_rows: beyond them a request is refused
    (OverloadedError). UsageError for what cannot be."""

    max_rows: int = 8
    max_delay_ms: float = 0.0
    max_queue_rows: int = 256

    def __post_init__(self) -> None:
        Range(1, _MOST_ROWS, whole=True).check("max_rows", self.max_rows)
        Range(0, 1000 * DAY_S).check("max_delay_ms", self.max_delay_ms)
        # The queue holds at least one full run.
        Range(self.max_rows, _MOST_ROWS, whole=True).check("max_queue_rows", self.max_queue_rows)


@dataclass(slots=True)
class Statistics:
    """Sums since the batcher began. rows_by_run: how many runs had so many rows. Times are nanoseconds."""

    requests: int = 0
    rows: int = 0
    runs: int = 0
    failures: int = 0
    refused: int = 0
    expired: int = 0
    cancelled: int = 0
    queue_ns: int = 0
    compute_ns: int = 0
    rows_by_run: dict[int, int] = field(default_factory=dict)


@dataclass(slots=True)
class _Request:
    feeds: Arrays
    rows: int
    future: Future[Outputs]
    queued_ns: int
    deadline_ns: int | None


class Batcher(Closing):
    """Runs `run` on joined requests in a thread of its own. Thread-safe; use it in a `with`, or close it.

    run: takes arrays by name that share their first axis, and returns arrays whose first axis is the same.
    `Engine.run` is one. Requests of a run that fails are run one by one: what it raises then is the answer
    of whom it concerns.
    """

    def __init__(self, run: Callable[[Arrays], Mapping[str, NDArray[Any]]], limits: Limits | None = None):
        self.limits = limits or Limits()
        self._run = run
        self._buckets: dict[Bucket, deque[_Request]] = {}
        self._queued_rows = 0
        self._answers: deque[Answer] = deque()  # of the last run, not handed out yet
        self._closing = False
        self._state = threading.Condition()
        self._statistics = Statistics()
        self._worker = threading.Thread(target=self._work, name="saccade-batcher", daemon=True)
        self._worker.start()

    def submit(self, feeds: Arrays, *, timeout_ms: float | None = None) -> Future[Outputs]:
        """Queue `feeds`, arrays of n rows each; the future's result holds the n rows of every output.

        timeout_ms: from now; who is still in the queue then gets DeadlineError. `future.cancel()` takes a
        request out of the queue, until it is made ready for the next run. Raises OverloadedError when the
        queue is full, ClosedError after `close`, InputError for arrays that share no first axis.
        """
        rows = _rows(feeds)
        now = time.monotonic_ns()
        deadline = None if timeout_ms is None else now + int(timeout_ms * 1e6)
        request = _Request(feeds, rows, Future(), now, deadline)
        with self._state:
            if self._closing:
                raise ClosedError("the batcher is closed")
            if self._is_full(rows):
                self._drop_dead()
            if self._is_full(rows):
                self._statistics.refused += 1
                raise OverloadedError(
                    f"{self._queued_rows} rows are waiting and {self.limits.max_queue_rows} may: "
                    "try again later"
                )
            self._buckets.setdefault(_bucket(feeds), deque()).append(request)
            self._queued_rows += rows
            self._statistics.requests += 1
            self._state.notify()
        return request.future

    def run(self, feeds: Arrays, *, timeout_ms: float | None = None) -> Outputs:
        """`submit`, and wait. DeadlineError also when the run itself takes longer than `timeout_ms`."""
        future = self.submit(feeds, timeout_ms=timeout_ms)
        try:
            return future.result(None if timeout_ms is None else timeout_ms / 1e3)
        except TimeoutError:
            future.cancel()
            raise DeadlineError(f"no answer within {timeout_ms} ms") from None

    def statistics(self) -> Statistics:
        """A copy of the sums so far."""
        with self._state:
            copied = Statistics(*(getattr(self._statistics, name) for name in Statistics.__slots__))
            copied.rows_by_run = dict(self._statistics.rows_by_run)
            return copied

    @property
    def queued_rows(self) -> int:
        """Rows that wait now."""
        return self._queued_rows

    def close(self) -> None:
        """Answer everything that is queued, then stop. Twice is fine."""
        with self._state:
            self._closing = True
            self._state.notify()
        self._worker.join()

    def _work(self) -> None:
        while (batch := self._next()) or self._answers:
            if batch:
                self._answer(batch)
            else:
                self._hand_out()
            del batch  # nobody's tensors are held while nothing is to do

    def _next(self) -> list[_Request]:
        """The requests of the next run, already marked as running. None where there are answers to hand out
        before it could wait, and when closed and empty."""
        with self._state:
            while self._buckets or not (self._closing or self._answers):
                if not self._buckets:
                    self._state.wait()
                    continue
                bucket = min(self._buckets, key=lambda each: self._buckets[each][0].queued_ns)
                waiting = self._patience_ns(self._buckets[bucket])
                if waiting <= 0 or self._closing:
                    if batch := self._take(bucket):
                        return batch
                elif self._answers:
                    break
                else:
                    self._state.wait(waiting / 1e9)
            return []

    def _is_full(self, rows: int) -> bool:
        return bool(self._queued_rows) and self._queued_rows + rows > self.limits.max_queue_rows

    def _drop_dead(self) -> None:
        """Take out whom nobody waits for any more."""
        now = time.monotonic_ns()
        for bucket, queue in list(self._buckets.items()):
            self._buckets[bucket] = alive = deque(each for each in queue if not self._is_dead(each, now))
            if not alive:
                del self._buckets[bucket]

    def _is_dead(self, request: _Request, now: int) -> bool:
        """Whether `request`, which waited until now, was cancelled or is late: it is counted and told."""
        late = request.deadline_ns is not None and now > request.deadline_ns
        if not late and not request.future.cancelled():
            return False
        self._queued_rows -= request.rows
        if not request.future.set_running_or_notify_cancel():
            self._statistics.cancelled += 1
        else:
            self._statistics.expired += 1
            waited = (now - request.queued_ns) / 1e6
            request.future.set_exception(DeadlineError(f"still queued after {waited:.0f} ms: too late"))
        return True

    def _patience_ns(self, queue: Sequence[_Request]) -> int:
        """How long its first request would still wait for company; 0 where a run is full."""
        if sum(request.rows for request in queue) >= self.limits.max_rows:
            return 0
        return queue[0].queued_ns + int(self.limits.max_delay_ms * 1e6) - time.monotonic_ns()

    def _take(self, bucket: Bucket) -> list[_Request]:
        """As many requests of the bucket, in their order, as fit one run; the cancelled and late fall out."""
        queue, batch, rows = self._buckets[bucket], list[_Request](), 0
        now = time.monotonic_ns()
        while queue and (not batch or rows + queue[0].rows <= self.limits.max_rows):
            request = queue.popleft()
            if self._is_dead(request, now):
                continue
            self._queued_rows -= request.rows
            if not request.future.set_running_or_notify_cancel():  # cancelled this very moment
                self._statistics.cancelled += 1
            else:
                self._statistics.queue_ns += now - request.queued_ns
                batch.append(request)
                rows += request.rows
        if not queue:
            del self._buckets[bucket]
        return batch

    def _answer(self, batch: list[_Request]) -> None:
        """Make `batch` ready, hand out what the last run gave, and run it."""
        rows = [request.rows for request in batch]
        begun = time.monotonic_ns()
        answers: Sequence[Outputs | Exception]
        failures = 0
        try:
            feeds = _joined([request.feeds for request in batch])
            self._hand_out()
            begun = time.monotonic_ns()
            answers = _split(self._run(feeds), rows)
        except Exception as error:  # whatever the engine raises is the answer
            self._hand_out()  # what could not be joined holds nobody else's up
            if len(batch) > 1:
                for request in batch:
                    self._answer([request])
                return
            answers = [error]
            failures = 1
        self._count(sum(rows), failures, time.monotonic_ns() - begun)
        self._answers.extend(zip((request.future for request in batch), answers, strict=True))

    def _hand_out(self) -> None:
        while self._answers:
            future, answer = self._answers.popleft()
            if isinstance(answer, Exception):
                future.set_exception(answer)
            else:
                future.set_result(answer)

    def _count(self, rows: int, failures: int, compute_ns: int) -> None:
        with self._state:
            sums = self._statistics
            sums.runs += 1
            sums.rows += rows
            sums.failures += failures
            sums.compute_ns += compute_ns
            sums.rows_by_run[rows] = sums.rows_by_run.get(rows, 0) + 1


def _rows(feeds: Arrays) -> int:
    counts = {array.shape[0] if array.ndim else 0 for array in feeds.values()}
    if len(counts) != 1 or 0 in counts:
        shapes = {name: array.shape for name, array in feeds.items()}
        raise InputError(f"all inputs must share a first axis of at least one row: {shapes}")
    return counts.pop()


def _bucket(feeds: Arrays) -> Bucket:
    return tuple(sorted((name, array.dtype.str, array.shape[1:]) for name, array in feeds.items()))


def _joined(feeds: Sequence[Arrays]) -> Arrays:
    if len(feeds) == 1:
        return feeds[0]
    return {name: np.concatenate([each[name] for each in feeds]) for name in feeds[0]}


def _split(outputs: Mapping[str, NDArray[Any]], rows: Sequence[int]) -> list[Outputs]:
    total = sum(rows)
    for name, array in outputs.items():
        if array.shape[:1] != (total,):
            raise EngineError(f"output {name!r} of {total} rows has the shape {array.shape}")
    if len(rows) == 1:
        return [dict(outputs)]
    ends = np.cumsum(rows)[:-1]
    columns = {name: np.split(array, ends) for name, array in outputs.items()}
    return [{name: column[index] for name, column in columns.items()} for index in range(len(rows))]
