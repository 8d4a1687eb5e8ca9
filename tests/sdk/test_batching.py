"""The micro-batcher: everyone gets their own rows, refusals are clear, nothing is lost."""

from __future__ import annotations

import math
import threading
import time
import weakref
from collections.abc import Callable, Mapping
from concurrent.futures import CancelledError, ThreadPoolExecutor, wait
from typing import Any

import numpy as np
import pytest

from saccade.batching import Batcher, Limits
from saccade.errors import ClosedError, DeadlineError, EngineError, InputError, OverloadedError, UsageError

Feeds = Mapping[str, np.ndarray[Any, Any]]


def tagged(tag: int, rows: int = 1, width: int = 3) -> dict[str, np.ndarray[Any, Any]]:
    """Rows that tell whose they are, and which: x = tag, y = the row."""
    return {"x": np.full((rows, width), tag), "y": np.arange(rows)[:, None] * np.ones((1, width), np.int64)}


def add(feeds: Feeds) -> dict[str, np.ndarray[Any, Any]]:
    return {"sum": feeds["x"] * 1000 + feeds["y"], "tag": feeds["x"][:, 0]}


class Gate:
    """An engine that waits until it is let go, and remembers what it ran."""

    def __init__(self) -> None:
        self.entered, self.open = threading.Semaphore(0), threading.Event()
        self.runs: list[int] = []

    def __call__(self, feeds: Feeds) -> dict[str, np.ndarray[Any, Any]]:
        self.runs.append(len(feeds["x"]))
        self.entered.release()
        assert self.open.wait(30)
        return add(feeds)


def busy(gate: Gate, batcher: Batcher) -> Any:
    """Let one request occupy the engine."""
    first = batcher.submit(tagged(0))
    assert gate.entered.acquire(timeout=30)
    return first


def test_thousands_of_tagged_requests_from_many_threads_get_their_own_rows() -> None:
    rng = np.random.default_rng(0)
    plans = [(tag, int(rng.integers(1, 5)), int(rng.integers(1, 4))) for tag in range(4000)]
    with Batcher(add, Limits(max_rows=8, max_queue_rows=100_000)) as batcher:

        def ask(plan: tuple[int, int, int]) -> bool:
            tag, rows, width = plan
            out = batcher.run(tagged(tag, rows, width))
            expected = add(tagged(tag, rows, width))
            return all(np.array_equal(out[name], expected[name]) for name in expected)

        with ThreadPoolExecutor(32) as pool:
            assert all(pool.map(ask, plans))
        sums = batcher.statistics()
    assert (sums.requests, sums.rows) == (4000, sum(rows for _, rows, _ in plans))
    assert sums.runs == sum(sums.rows_by_run.values()) < 4000
    assert sum(rows * runs for rows, runs in sums.rows_by_run.items()) == sums.rows
    assert max(sums.rows_by_run) <= 8


def test_an_idle_batcher_holds_no_tensors() -> None:
    feeds = tagged(1)
    held = weakref.ref(feeds["x"])
    with Batcher(add) as batcher:
        batcher.run(feeds)
        del feeds
        end = time.monotonic() + 30
        while held() is not None:
            assert time.monotonic() < end
            time.sleep(0.01)


def test_what_arrives_while_the_engine_is_busy_shares_a_run() -> None:
    gate = Gate()
    with Batcher(gate, Limits(max_rows=4)) as batcher:
        first = busy(gate, batcher)
        later = [batcher.submit(tagged(tag)) for tag in range(1, 7)]
        gate.open.set()
        wait([first, *later], 30)
        assert [each.result()["tag"].tolist() for each in later] == [[tag] for tag in range(1, 7)]
    assert gate.runs == [1, 4, 2]


def test_shapes_do_not_mix_and_the_longest_waiting_goes_first() -> None:
    gate = Gate()
    with Batcher(gate, Limits(max_rows=8)) as batcher:
        busy(gate, batcher)
        wide = [batcher.submit(tagged(tag, width=5)) for tag in (1, 2)]
        narrow = [batcher.submit(tagged(tag, width=2)) for tag in (3, 4, 5)]
        wide.append(batcher.submit(tagged(6, width=5)))
        gate.open.set()
        wait([*wide, *narrow], 30)
        assert [each.result()["sum"].shape for each in (*wide, *narrow)] == [(1, 5)] * 3 + [(1, 2)] * 3
    assert gate.runs == [1, 3, 3]


def test_a_request_larger_than_a_run_runs_alone() -> None:
    with Batcher(add, Limits(max_rows=2, max_queue_rows=4)) as batcher:
        assert batcher.run(tagged(7, rows=9))["tag"].tolist() == [7] * 9


def test_a_delay_waits_for_company_and_a_full_run_does_not() -> None:
    with Batcher(add, Limits(max_rows=2, max_delay_ms=60_000)) as batcher:
        begun = time.monotonic()
        pair = [batcher.submit(tagged(1)), batcher.submit(tagged(2))]
        wait(pair, 30)
        assert time.monotonic() - begun < 30
        alone = batcher.submit(tagged(3))
    assert alone.result()["tag"].tolist() == [3]  # closing answers at once


@pytest.mark.parametrize("company", [(), (2,), (2, 3)], ids=["alone", "patient", "full"])
def test_an_answer_waits_for_nobody(company: tuple[int, ...]) -> None:
    """Neither for the run of those who came later, nor until they begin it."""
    entered, opened = threading.Event(), {tag: threading.Event() for tag in (1, 2)}

    def engine(feeds: Feeds) -> dict[str, np.ndarray[Any, Any]]:
        entered.set()
        assert opened[int(feeds["x"][0, 0])].wait(30)
        return add(feeds)

    with Batcher(engine, Limits(max_rows=2, max_delay_ms=60_000)) as batcher:
        first = batcher.submit(tagged(1, rows=2))
        assert entered.wait(30)
        later = [batcher.submit(tagged(tag)) for tag in company]
        opened[1].set()
        assert first.result(30)["tag"].tolist() == [1, 1]
        assert not any(each.done() for each in later)
        opened[2].set()
    assert [each.result()["tag"].tolist() for each in later] == [[tag] for tag in company]


def test_a_full_queue_refuses_and_recovers() -> None:
    gate = Gate()
    with Batcher(gate, Limits(max_rows=2, max_queue_rows=3)) as batcher:
        busy(gate, batcher)
        accepted = [batcher.submit(tagged(tag)) for tag in (1, 2, 3)]
        with pytest.raises(OverloadedError, match="3 rows are waiting and 3 may"):
            batcher.submit(tagged(4))
        assert batcher.queued_rows == 3
        gate.open.set()
        wait(accepted, 30)
        assert batcher.run(tagged(5))["tag"].tolist() == [5]
        assert (batcher.statistics().refused, batcher.queued_rows) == (1, 0)


def test_who_is_late_or_gone_is_not_run() -> None:
    gate = Gate()
    with Batcher(gate, Limits(max_rows=8)) as batcher:
        busy(gate, batcher)
        late, gone, kept = (
            batcher.submit(tagged(t), timeout_ms=limit) for t, limit in ((1, 1), (2, None), (3, None))
        )
        assert gone.cancel()
        time.sleep(0.01)
        gate.open.set()
        with pytest.raises(DeadlineError, match="too late"):
            late.result(30)
        with pytest.raises(CancelledError):
            gone.result(30)
        assert kept.result(30)["tag"].tolist() == [3]
        assert (batcher.statistics().expired, batcher.statistics().cancelled) == (1, 1)
    assert gate.runs == [1, 1]


def test_an_engine_that_hangs_does_not_hold_its_callers() -> None:
    gate = Gate()
    with Batcher(gate) as batcher:
        with pytest.raises(DeadlineError, match="no answer within 20 ms"):
            batcher.run(tagged(1), timeout_ms=20)
        gate.open.set()


@pytest.mark.parametrize(
    ("engine", "error", "said"),
    [
        (lambda feeds: 1 / 0, ZeroDivisionError, "division"),
        (
            lambda feeds: {"sum": feeds["x"][:0]},
            EngineError,
            r"output 'sum' of 1 rows has the shape \(0, 3\)",
        ),
    ],
)
def test_a_failure_reaches_the_caller_and_the_next_request_works(
    engine: Callable[[Feeds], Any], error: type[Exception], said: str
) -> None:
    broken = [True]
    with Batcher(lambda feeds: engine(feeds) if broken[0] else add(feeds)) as batcher:
        with pytest.raises(error, match=said):
            batcher.run(tagged(1))
        broken[0] = False
        assert batcher.run(tagged(2))["tag"].tolist() == [2]
        assert (batcher.statistics().failures, batcher.statistics().runs) == (1, 2)


def test_closing_answers_what_was_accepted_and_refuses_the_rest() -> None:
    gate = Gate()
    batcher = Batcher(gate, Limits(max_rows=2))
    accepted = [busy(gate, batcher), *(batcher.submit(tagged(tag)) for tag in range(1, 6))]
    closing = threading.Thread(target=batcher.close)
    closing.start()
    while True:
        try:
            accepted.append(batcher.submit(tagged(9)))
        except ClosedError:
            break
    gate.open.set()
    closing.join(30)
    assert all(each.done() and each.exception() is None for each in accepted)
    batcher.close()


@pytest.mark.parametrize(
    "feeds",
    [{}, {"x": np.float32(1)}, {"x": np.zeros((0, 2))}, {"x": np.zeros((2, 2)), "y": np.zeros((3, 2))}],
)
def test_arrays_without_common_rows_are_refused(feeds: dict[str, Any]) -> None:
    with Batcher(add) as batcher, pytest.raises(InputError, match="share a first axis"):
        batcher.submit(feeds)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"max_rows": 0}, "max_rows is 0; it must be a whole number from 1 to "),
        ({"max_rows": 1.5}, "max_rows is 1.5"),
        ({"max_rows": "8"}, "max_rows is '8'"),
        ({"max_delay_ms": -1.0}, "max_delay_ms is -1.0; it must be a number from 0 to 86400000"),
        ({"max_delay_ms": math.inf}, "max_delay_ms is inf"),
        ({"max_delay_ms": math.nan}, "max_delay_ms is nan"),
        ({"max_queue_rows": 7}, "max_queue_rows is 7; it must be a whole number from 8 to "),
        ({"max_queue_rows": True}, "max_queue_rows is True"),
    ],
)
def test_limits_that_cannot_work_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Limits(**wrong)


def test_the_longest_delay_can_be_waited() -> None:
    with Batcher(add, Limits(max_rows=2, max_delay_ms=86_400_000)) as batcher:
        waiting = batcher.submit(tagged(1), timeout_ms=86_400_000)
        assert not wait([waiting], 0.1).done
        company = batcher.submit(tagged(2))
        assert [each.result(30)["tag"][0] for each in (waiting, company)] == [1, 2]
