"""The load that the serving benchmark makes, against servers whose answers are known."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable

import pytest

from saccade.benchmarks.serving_load import Load, plain_request, press

REQUEST = plain_request(b"x", "/")


def pressed(answer: Callable[[int], tuple[float, int]], clients: int, seconds: float) -> Load:
    """What `press` says of a server that answers its n-th request after (seconds), with (status)."""

    async def main() -> Load:
        asked, served = 0, set[asyncio.Task[None] | None]()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal asked
            served.add(asyncio.current_task())
            while await reader.read(len(REQUEST)):
                asked += 1
                delay, status = answer(asked)
                await asyncio.sleep(delay)
                writer.write(f"HTTP/1.1 {status} said\r\nContent-Length: 2\r\n\r\nok".encode())
            writer.close()
            await writer.wait_closed()

        async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            try:
                return await press(port, REQUEST, clients, seconds, os.getpid())
            finally:
                await asyncio.wait([each for each in served if each])

    return asyncio.run(main())


def test_answers_are_counted_while_all_clients_are_at_work() -> None:
    load = pressed(lambda count: (0.05, 200), 4, 1.0)
    assert load.failures == 0
    assert 8 < load.requests <= 84  # 80 where nothing else runs
    assert load.per_second <= 84
    assert load.median_ms >= 50


def test_failures_are_those_of_what_was_counted() -> None:
    load = pressed(lambda count: (0.01, 503), 2, 0.3)
    assert load.failures == load.requests > 0


def test_a_server_that_stops_answering_is_no_division_by_zero() -> None:
    with pytest.raises(RuntimeError, match=r"no answer within 0\.1 s"):
        pressed(lambda count: (0.0 if count <= 2 else 0.5, 200), 2, 0.1)
