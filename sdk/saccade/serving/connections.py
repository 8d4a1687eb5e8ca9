"""HTTP connections whose request heads are bounded, in bytes and in time; uvicorn bounds neither."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

__all__ = ["BoundedConnection"]

_MAX_HEAD = 2**20  # bytes; more than one read of the socket, which may bring the body's beginning too
_HEAD_S = 30.0


class BoundedConnection(HttpToolsProtocol):
    """Ends where the head of a request is longer than 1 MiB, or takes longer than 30 s to arrive."""

    _head = 0  # bytes so far; -1 once the head is complete
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._expect_head()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._expect_head()

    def on_headers_complete(self) -> None:
        self._head = -1
        self._forget_timer()
        super().on_headers_complete()

    def data_received(self, data: bytes) -> None:
        if self._head >= 0:
            self._head += len(data)
            if self._head > _MAX_HEAD:
                return self.transport.close()
        super().data_received(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget_timer()
        super().connection_lost(exc)

    def _expect_head(self) -> None:
        self._forget_timer()
        self._head = 0
        self._timer = self.loop.call_later(_HEAD_S, self.transport.close)

    def _forget_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
