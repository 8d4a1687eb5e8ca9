"""Futures of threads on an event loop: every result reaches who waits for it, whichever loop it is."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest
import uvloop

from saccade.serving.arrivals import Arrivals

LOOPS: list[Callable[[], asyncio.AbstractEventLoop]] = [asyncio.new_event_loop, uvloop.new_event_loop]


@pytest.fixture(params=LOOPS, ids=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Callable[[Any], Any]:
    def run(coroutine: Any) -> Any:
        with asyncio.Runner(loop_factory=request.param) as runner:
            return runner.run(coroutine)

    return run


def test_thousands_of_results_from_many_threads(run: Callable[[Any], Any]) -> None:
    async def main() -> list[int]:
        arrivals = Arrivals()
        with ThreadPoolExecutor(8) as pool:
            futures = [pool.submit(pow, number, 2) for number in range(5000)]
            found = await asyncio.gather(*map(arrivals.result, futures))
        arrivals.close()
        arrivals.close()
        return found

    assert run(main()) == [number**2 for number in range(5000)]


def test_errors_and_cancelled_futures_are_results_too(run: Callable[[Any], Any]) -> None:
    async def main() -> None:
        arrivals = Arrivals()
        with ThreadPoolExecutor(1) as pool:
            with pytest.raises(ZeroDivisionError):
                await arrivals.result(pool.submit(divmod, 1, 0))
            stop = threading.Event()
            pool.submit(stop.wait)
            behind = pool.submit(pow, 2, 2)
            assert behind.cancel()
            with pytest.raises(asyncio.CancelledError):
                await arrivals.result(behind)
            stop.set()
        arrivals.close()

    run(main())


def test_who_stops_waiting_cancels_what_is_not_begun(run: Callable[[Any], Any]) -> None:
    async def main() -> None:
        arrivals, future = Arrivals(), Future[int]()
        waiting = asyncio.ensure_future(arrivals.result(future))
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert future.cancelled()
        arrivals.close()

    run(main())


def test_a_thread_that_is_late_disturbs_nobody(run: Callable[[Any], Any]) -> None:
    late = Future[int]()

    async def main() -> None:
        arrivals = Arrivals()
        waiting = asyncio.ensure_future(arrivals.result(late))
        await asyncio.sleep(0)
        late.set_running_or_notify_cancel()
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        arrivals.close()

    run(main())
    late.set_result(1)
