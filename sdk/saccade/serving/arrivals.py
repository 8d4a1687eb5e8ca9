"""Results of other threads, brought to the event loop."""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, TypeVar

__all__ = ["Arrivals"]

T = TypeVar("T")
_ENOUGH = 4096  # bytes; one is sent per result


class Arrivals:
    """Lets the loop it is first used on await futures that threads settle; close it on that loop.

    What asyncio.wrap_future does, but for how the loop is woken: uvloop wakes it while the thread holds the
    interpreter's lock, so that a loop on the same processor starts, waits for the lock, and starts again.
    Sending to a socket lets go of the lock first.
    """

    def __init__(self) -> None:
        self._settled: deque[tuple[asyncio.Future[Any], Future[Any]]] = deque()
        self._ends: tuple[socket.socket, socket.socket] | None = None

    async def result(self, future: Future[T]) -> T:
        """The future's result. Cancelling this cancels the future."""
        loop = asyncio.get_running_loop()
        if self._ends is None:
            self._ends = socket.socketpair()
            for end in self._ends:
                end.setblocking(False)
            loop.add_reader(self._ends[1], self._land)
        sender, waiter = self._ends[0], loop.create_future()

        def settle(future: Future[T]) -> None:
            self._settled.append((waiter, future))
            with suppress(OSError):  # full: the loop is awake; closed: nobody waits
                sender.send(b"\0")

        future.add_done_callback(settle)
        try:
            result: T = await waiter
        except asyncio.CancelledError:
            future.cancel()
            raise
        return result

    def close(self) -> None:
        """Wake the loop no more. Twice is fine."""
        if self._ends is not None:
            asyncio.get_running_loop().remove_reader(self._ends[1])
            for end in self._ends:
                end.close()
            self._ends = None

    def _land(self) -> None:
        assert self._ends is not None
        self._ends[1].recv(_ENOUGH)
        while self._settled:
            waiter, future = self._settled.popleft()
            if waiter.done():
                continue
            if future.cancelled():
                waiter.cancel()
            elif error := future.exception():
                waiter.set_exception(error)
            else:
                waiter.set_result(future.result())
