"""What a model was asked and how it went: sums for statistics and metrics."""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass, field

from saccade.batching import Statistics

__all__ = ["Counters", "total"]


@dataclass(slots=True)
class Counters:
    """Requests of one model name, over all its loads. Times are nanoseconds, from body to answer.

    failures: by Triton's reasons: REJECTED (queue full), CANCELED, BACKEND (the engine), OTHER (the client).
    retired: the sums of batchers that are gone. last_inference_ms: since the epoch.
    """

    successes: int = 0
    success_ns: int = 0
    failures: dict[str, int] = field(default_factory=dict)
    failure_ns: int = 0
    last_inference_ms: int = 0
    pending: int = 0
    retired: Statistics = field(default_factory=Statistics)

    def succeed(self, begun_ns: int) -> None:
        self.successes += 1
        self.success_ns += time.monotonic_ns() - begun_ns
        self.last_inference_ms = time.time_ns() // 1_000_000

    def fail(self, reason: str, begun_ns: int) -> None:
        self.failures[reason] = self.failures.get(reason, 0) + 1
        self.failure_ns += time.monotonic_ns() - begun_ns


def total(first: Statistics, second: Statistics) -> Statistics:
    """The sums of both."""
    names = [each.name for each in dataclasses.fields(Statistics) if each.name != "rows_by_run"]
    added = Statistics(*(getattr(first, name) + getattr(second, name) for name in names))
    sizes = first.rows_by_run.keys() | second.rows_by_run.keys()
    added.rows_by_run = {n: first.rows_by_run.get(n, 0) + second.rows_by_run.get(n, 0) for n in sizes}
    return added
