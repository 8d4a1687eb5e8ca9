"""HTTP connections: request heads are bounded, in bytes and in time, and bodies are read to where they stay.

uvicorn bounds neither, and copies a body four times on its way through the parser. Here a body whose length
is declared passes by the parser: the kernel writes it into memory of its size, once, and the application
takes that from the request's scope (`WHOLE_BODY`; ASGI's extensions).
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

import httptools
import numpy as np
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from saccade.serving.exchange import WHOLE_BODY

__all__ = ["Body", "BoundedConnection"]

_MAX_HEAD = 2**20  # bytes
_HEAD_S = 30.0
_SCRATCH = 2**13  # bytes; for heads, and what comes with them
_MAX_DECLARED = 2**26  # bytes that are set aside on a client's word; longer bodies grow as they come
_ALIGNMENT = 64
_FRAMING = (b"content-length", b"transfer-encoding")


class Body:
    """Memory for a body, filled from its beginning; where nobody wants it any more, what comes is dropped.

    tensors_at: the place in it that shall lie aligned, so that engines read tensors where they are.
    """

    def __init__(self, size: int, tensors_at: int) -> None:
        memory = np.empty(size + _ALIGNMENT, np.uint8)  # pages that nobody writes cost nothing
        begin = -(memory.__array_interface__["data"][0] + tensors_at) % _ALIGNMENT
        self.missing = size
        self._whole: memoryview | None = memory.data[begin : begin + size]

    def space(self) -> memoryview:
        """Where the next bytes go."""
        if self._whole is None:
            return memoryview(bytearray(min(self.missing, _SCRATCH)))
        return self._whole[len(self._whole) - self.missing :]

    def take(self) -> memoryview:
        """The body. Only once: nothing here keeps it longer than the one who took it."""
        assert self._whole is not None
        whole, self._whole = self._whole, None
        return whole

    def drop(self) -> None:
        """Free the memory."""
        self._whole = None


class BoundedConnection(HttpToolsProtocol):
    """Ends where the head of a request is longer than 1 MiB, or takes longer than 30 s to arrive."""

    body: Body | None = None  # of the request that arrives now, while it is incomplete
    _offered: Body | None = None  # what the last request's scope holds
    _head = 0  # bytes so far; -1 once the head is complete
    _priming = False  # a parser is being told of a head that is known
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self.parser = _Parser(self)
        transport.set_protocol(_Reader(self))
        self._expect_head()

    def on_message_begin(self) -> None:
        if not self._priming:
            super().on_message_begin()
            self._head = 0

    def on_url(self, url: bytes) -> None:
        if not self._priming:
            super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._priming:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        if self._priming:
            return
        self._head = -1
        self._forget_timer()
        super().on_headers_complete()
        size, tensors_at = _lengths(self.headers)
        if 0 < size <= _MAX_DECLARED and not self.pipeline:
            self.body = self._offered = Body(size, tensors_at)
            self.scope["extensions"] = {WHOLE_BODY: self.body}  # type: ignore[dict-item]

    def on_body(self, body: bytes) -> None:
        if self.body is None:
            return super().on_body(body)
        self.body.space()[: len(body)] = body
        self.body.missing -= len(body)

    def on_message_complete(self) -> None:
        if self.parser.should_upgrade() and self._framing():
            return  # the body is still to come
        self.body = None
        super().on_message_complete()

    def refuse_upgrade(self, rest: bytes) -> None:
        """Go on with this protocol: parsers stop where another is asked for, and leave out the body."""
        self.parser = _Parser(self)
        if framing := self._framing():
            self._priming = True
            self.parser.feed_data(b"POST / HTTP/1.1\r\n%s: %s\r\n\r\n" % framing)
            self._priming = False
        self.parser.feed_data(rest)

    def _framing(self) -> tuple[bytes, bytes] | None:
        """The header that says where the body ends."""
        return next((header for header in self.headers if header[0] in _FRAMING), None)

    def on_response_complete(self) -> None:
        self._drop_body()
        super().on_response_complete()

    def data_received(self, data: bytes) -> None:
        if self._head >= 0:
            self._head += len(data)
            if self._head > _MAX_HEAD:
                return self.transport.close()
        super().data_received(data)
        if self._head >= 0:
            if self._timer is None:
                self._expect_head()
        elif self.cycle is not None and self.cycle.response_complete:
            self._stay_idle()

    def body_received(self, count: int) -> None:
        """So many bytes are in `body`."""
        assert self.body is not None
        self.body.missing -= count
        if not self.body.missing:
            # The old one still waits for the body.
            self.parser = _Parser(self)
            self.on_message_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget_timer()
        self._drop_body()
        super().connection_lost(exc)

    def _drop_body(self) -> None:
        """Free what the application did not take."""
        if self._offered is not None:
            self._offered.drop()
            self._offered = None

    def _stay_idle(self) -> None:
        """Line ends between requests, or the rest of a refused one, have ended the wait: begin it anew."""
        self._unset_keepalive_if_required()
        self.timeout_keep_alive_task = self.loop.call_later(
            self.timeout_keep_alive, self.timeout_keep_alive_handler
        )

    def _expect_head(self) -> None:
        self._timer = self.loop.call_later(_HEAD_S, self.transport.close)

    def _forget_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class _Parser(httptools.HttpRequestParser):
    """A parser for the next requests of `connection`, which speaks nothing but HTTP/1.1.

    Java's client asks for HTTP/2 with its first request, whatever that is.
    """

    def __init__(self, connection: BoundedConnection) -> None:
        super().__init__(connection)
        self.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn's
        self._connection = connection

    def feed_data(self, data: Any) -> None:
        try:
            super().feed_data(data)
        except httptools.HttpParserUpgrade as stopped:
            self._connection.refuse_upgrade(data[stopped.args[0] :])


class _Reader(asyncio.BufferedProtocol):
    """What the transport knows of a connection: says where the kernel shall write what arrives."""

    def __init__(self, connection: BoundedConnection) -> None:
        self._connection = connection
        self._scratch = memoryview(bytearray(_SCRATCH))

    def get_buffer(self, sizehint: int) -> memoryview:
        body = self._connection.body
        return self._scratch if body is None else body.space()

    def buffer_updated(self, nbytes: int) -> None:
        if self._connection.body is None:
            self._connection.data_received(bytes(self._scratch[:nbytes]))
        else:
            self._connection.body_received(nbytes)

    def eof_received(self) -> None:
        self._connection.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        self._connection.connection_lost(exc)

    def pause_writing(self) -> None:
        self._connection.pause_writing()

    def resume_writing(self) -> None:
        self._connection.resume_writing()


def _lengths(headers: Iterable[tuple[bytes, bytes]]) -> tuple[int, int]:
    """The body's length, 0 where it is not declared, and where its tensors begin. The parser has refused what
    is no length, or two of them."""
    size = tensors_at = 0
    for name, value in headers:
        if name == b"content-length":
            size = int(value)
        elif name == b"transfer-encoding":
            return 0, 0
        elif name == b"inference-header-content-length" and value.isdigit() and len(value) < 16:
            tensors_at = int(value)
    return size, tensors_at
