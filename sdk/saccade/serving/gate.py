"""What every HTTP request passes: the token, a request id, the log, and the last resort for errors.

gRPC asks the same functions about tokens, ids and traces.
"""

from __future__ import annotations

import hmac
import logging
import random
import re
import time
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from saccade.errors import SaccadeError
from saccade.serving.exchange import error_response, header
from saccade.serving.refusals import Unauthorised
from saccade.serving.repository import Repository
from saccade.serving.settings import ServerSettings
from saccade.serving.tracing import span

__all__ = ["Gate", "is_authorised", "request_id", "traceparent"]

logger = logging.getLogger("saccade.serving")

# Open without the token: what an orchestrator asks, and the page, which holds nothing but itself.
_OPEN = frozenset({"/v2/health/live", "/v2/health/ready", "/", "/page.css", "/page.js"})
_ID = re.compile(r"[\x21-\x7e]{1,128}")
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")
_GONE = 499  # what logs call a client that did not wait


def is_authorised(given: str, token: str | None) -> bool:
    """Whether an Authorization header holds the token, found out in the same time wherever they differ."""
    if token is None:
        return True
    scheme, _, value = given.partition(" ")
    sent = value.strip().encode("utf-8", "surrogateescape")
    return hmac.compare_digest(sent, token.encode()) and scheme.lower() == "bearer"


def request_id(given: str) -> str:
    """The caller's own id where it is one, else a new one."""
    return given if _ID.fullmatch(given) else f"{random.getrandbits(64):016x}"


def traceparent(given: str) -> str:
    """The caller's trace where it names one (W3C Trace Context), else ""."""
    return given if _TRACEPARENT.fullmatch(given) else ""


class Gate:
    """ASGI middleware."""

    def __init__(self, app: ASGIApp, repository: Repository, settings: ServerSettings) -> None:
        self._app, self._repository, self._settings = app, repository, settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        begun = time.monotonic_ns()
        scope["app"] = self  # lets the router raise what it cannot route, which is answered here
        reply = _Reply(scope, send, self._repository)
        try:
            if _path(scope) not in _OPEN and not is_authorised(
                header(scope, b"authorization"), self._settings.token
            ):
                raise Unauthorised("this server wants its token: Authorization: Bearer TOKEN")
            with span(self._settings.tracing, scope):
                await self._app(scope, receive, reply.send)
        except ClientDisconnect:
            reply.status = reply.status or _GONE
        except Exception as error:
            if reply.status or not isinstance(error, SaccadeError | HTTPException):
                logger.exception("internal error", extra={"request_id": reply.request_id})
            if not reply.status:
                await error_response(error)(scope, receive, reply.send)
        finally:
            if logger.isEnabledFor(logging.INFO):
                logger.info("request", extra=_line(scope, reply, begun))


def _path(scope: Scope) -> str:
    """The path inside the mount, as Starlette's router finds its routes."""
    inside = scope["path"].removeprefix(scope.get("root_path", ""))
    return inside if inside.startswith("/") else str(scope["path"])


class _Reply:
    """Adds headers to the answer on its way, and remembers its status."""

    def __init__(self, scope: Scope, send: Send, repository: Repository) -> None:
        self.request_id = request_id(header(scope, b"x-request-id"))
        self.traceparent = traceparent(header(scope, b"traceparent"))
        self.status = 0
        self._send, self._repository = send, repository

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            added = [(b"x-request-id", self.request_id.encode())]
            if self.traceparent:
                added.append((b"traceparent", self.traceparent.encode()))
            if self._repository.draining:
                added.append((b"connection", b"close"))  # the next request goes to another server
            message["headers"] = [*message.get("headers", ()), *added]
        await self._send(message)


def _line(scope: Scope, reply: _Reply, begun: int) -> dict[str, Any]:
    """The fields of a request's log line."""
    more = {"traceparent": reply.traceparent} if reply.traceparent else {}
    return {
        "request_id": reply.request_id,
        "method": scope["method"],
        "path": scope["path"][:256],
        "model": scope.get("path_params", {}).get("name", "")[:128],
        "status": reply.status,
        "milliseconds": round((time.monotonic_ns() - begun) / 1e6, 3),
        **more,
    }
