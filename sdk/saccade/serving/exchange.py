"""Reading requests and writing answers over ASGI: bodies within their limits, errors as JSON."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

import orjson
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Receive, Scope

from saccade.errors import OverloadedError, SaccadeError
from saccade.serving.refusals import BodyTooLarge, SlowRequest, Unauthorised
from saccade.serving.settings import ServerSettings

__all__ = ["WHOLE_BODY", "error_response", "header", "json_response", "read_body", "to_json", "until_gone"]

T = TypeVar("T")
# In scope["extensions"] where the server has it: an object whose `take` gives the whole body, in one piece,
# once `receive` has given the last (empty) part of it.
WHOLE_BODY = "saccade.body"
_QUICK_S = 0.05  # answers that take longer are worth watching the client for
_RETRY_AFTER_S = 1


def header(scope: Scope, name: bytes) -> str:
    """A request header, "" where it is not there."""
    for key, value in scope["headers"]:
        if key == name:
            return bytes(value).decode("latin-1")
    return ""


async def read_body(scope: Scope, receive: Receive, settings: ServerSettings) -> bytes | memoryview:
    """The whole body: from where the server has put it, or joined from its parts.

    Raises BodyTooLarge, SlowRequest, or ClientDisconnect where the client has gone.
    """
    declared = header(scope, b"content-length")
    if declared.isdigit() and int(declared) > settings.max_body_bytes:
        raise BodyTooLarge(f"the body has {declared} bytes; at most {settings.max_body_bytes} are read")
    try:
        async with asyncio.timeout(settings.upload_timeout_ms / 1e3):
            joined = await _collect(receive, settings.max_body_bytes)
    except TimeoutError:
        raise SlowRequest(f"the body did not arrive within {settings.upload_timeout_ms:g} ms") from None
    whole = scope.get("extensions", {}).get(WHOLE_BODY)
    return joined if whole is None else whole.take()


async def _collect(receive: Receive, limit: int) -> bytes:
    parts: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        part = message.get("body", b"")
        size += len(part)
        if size > limit:
            raise BodyTooLarge(f"the body has more than {limit} bytes")
        if not message.get("more_body", False):
            return b"".join([*parts, part]) if parts else part
        parts.append(part)


async def until_gone(work: Coroutine[Any, Any, T], receive: Receive) -> T:
    """The result of `work`, which is cancelled when the client goes away: then ClientDisconnect."""
    watch = _Watch(receive)
    try:
        return await work
    except asyncio.CancelledError:
        if watch.gone:
            raise ClientDisconnect from None
        raise
    finally:
        watch.end()


class _Watch:
    """Cancels the task that made it when its client goes away. Quick answers are not watched."""

    def __init__(self, receive: Receive) -> None:
        self.gone = False
        self._receive = receive
        task = asyncio.current_task()
        assert task is not None
        self._watched = task
        self._watching: asyncio.Task[None] | None = None
        self._timer = asyncio.get_running_loop().call_later(_QUICK_S, self._begin)

    def end(self) -> None:
        self._timer.cancel()
        if self._watching is not None:
            self._watching.cancel()
        if self.gone:
            self._watched.uncancel()

    def _begin(self) -> None:
        self._watching = asyncio.ensure_future(self._disconnected())

    async def _disconnected(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self.gone = self._watched.cancel()


def to_json(value: Any) -> bytes:
    """`value` as JSON; what is no finite number is null, since JSON has no word for it."""
    return orjson.dumps(value)


def json_response(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """`value` as JSON."""
    return Response(to_json(value), status, headers, media_type="application/json")


def error_response(error: Exception) -> Response:
    """The status that the error's class has, and {"error": its message}."""
    if isinstance(error, HTTPException):  # the router's and the form parser's
        return json_response({"error": error.detail}, error.status_code, dict(error.headers or {}))
    status = error.http_status if isinstance(error, SaccadeError) else 500
    message = str(error) if isinstance(error, SaccadeError) else "internal error: see the server's log"
    headers: dict[str, str] = {}
    if isinstance(error, OverloadedError):
        headers["Retry-After"] = str(_RETRY_AFTER_S)
    if isinstance(error, Unauthorised):
        headers["WWW-Authenticate"] = "Bearer"
    if isinstance(error, BodyTooLarge | SlowRequest):
        headers["Connection"] = "close"  # the rest of the body is not read
    return json_response({"error": message}, status, headers)
