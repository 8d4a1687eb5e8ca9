"""The Open Inference Protocol over HTTP, as an ASGI application that any server can mount.

    app = create_app(repository, settings)

The application neither loads nor closes models: whoever made the repository does.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route, Router
from starlette.types import Receive, Scope, Send

from saccade.errors import InputError
from saccade.serving import description
from saccade.serving.exchange import header, json_response, read_body, until_gone
from saccade.serving.gate import Gate
from saccade.serving.http_codec import compress, decode, decompress, encode, parse_json
from saccade.serving.inference import infer
from saccade.serving.refusals import Forbidden
from saccade.serving.repository import Repository
from saccade.serving.settings import ServerSettings
from saccade.serving.shared_memory import SharedMemory

__all__ = ["create_app"]

_MAX_CONTROL = 2**16  # bytes of a request that is no inference
Endpoint = Callable[[Request], Awaitable[Response]]


def create_app(
    repository: Repository, settings: ServerSettings, memory: SharedMemory | None = None
) -> Router:
    """Everything the server offers over HTTP. memory: the shared-memory regions, where gRPC has them too."""
    from saccade.serving.metrics import metrics_routes
    from saccade.serving.page import page_routes
    from saccade.serving.pictures import picture_routes

    protocol = _Protocol(repository, settings, memory or SharedMemory(settings.shared_memory))
    routes = [
        *protocol.routes(),
        *picture_routes(repository, settings),
        *metrics_routes(repository),
        *page_routes(),
    ]
    gate = Middleware(Gate, repository=repository, settings=settings)
    return Router(routes, redirect_slashes=False, middleware=[gate])  # a path is right or it is not


class _Protocol:
    """The protocol's endpoints, one method each."""

    def __init__(self, repository: Repository, settings: ServerSettings, memory: SharedMemory) -> None:
        self._repository, self._settings, self._memory = repository, settings, memory
        self._small = replace(settings, max_body_bytes=min(settings.max_body_bytes, _MAX_CONTROL))

    def routes(self) -> list[BaseRoute]:
        """The busiest first: routes are tried in their order."""
        model, shared = "/v2/models/{name}", "/v2/systemsharedmemory"
        version = f"{model}/versions/{{version}}"
        gets: list[tuple[str, Endpoint]] = [
            ("/v2/health/live", self.live),
            ("/v2/health/ready", self.ready),
            ("/v2", self.server),
            ("/v2/models/stats", self.statistics),
            (f"{model}/ready", self.model_ready),
            (f"{model}/stats", self.statistics),
            (f"{model}/config", self.config),
            (model, self.model),
            (f"{version}/ready", self.model_ready),
            (f"{version}/stats", self.statistics),
            (f"{version}/config", self.config),
            (version, self.model),
            (f"{shared}/status", self.regions),
            (f"{shared}/region/{{region}}/status", self.regions),
        ]
        posts: list[tuple[str, Endpoint]] = [
            ("/v2/repository/index", self.index),
            ("/v2/repository/models/{name}/load", self.load),
            ("/v2/repository/models/{name}/unload", self.unload),
            (f"{shared}/region/{{region}}/register", self.register),
            (f"{shared}/region/{{region}}/unregister", self.unregister),
            (f"{shared}/unregister", self.unregister),
        ]
        infer_paths = [f"{model}/infer", f"{version}/infer"]
        return [
            *(Route(path, _Infer(self), methods=["POST"]) for path in infer_paths),
            *(Route(path, endpoint, methods=["GET"]) for path, endpoint in gets),
            *(Route(path, endpoint, methods=["POST"]) for path, endpoint in posts),
        ]

    async def infer(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = await read_body(scope, receive, self._settings)
        encoding = header(scope, b"content-encoding")
        if encoding:
            body = await asyncio.to_thread(decompress, body, encoding, self._settings.max_body_bytes)
        path = scope["path_params"]
        name, version = path["name"], path.get("version", "")
        self._repository.model(name, version)  # before its tensors are read
        request = decode(body, _json_length(scope), self._memory)
        work = infer(self._repository, name, version, request)
        outputs = await until_gone(work, receive)
        content, json_length = encode(name, request, outputs, self._memory)
        content, packed = compress(content, header(scope, b"accept-encoding"))
        headers = [(b"content-length", b"%d" % len(content))]
        if json_length is None:
            headers.append((b"content-type", b"application/json"))
        else:
            headers.append((b"content-type", b"application/octet-stream"))
            headers.append((b"inference-header-content-length", b"%d" % json_length))
        if packed:
            headers.append((b"content-encoding", packed.encode()))
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": content})

    async def live(self, request: Request) -> Response:
        return Response()

    async def ready(self, request: Request) -> Response:
        return Response(status_code=200 if self._repository.ready else 503)

    async def server(self, request: Request) -> Response:
        return json_response(description.server_metadata(self._settings))

    async def model_ready(self, request: Request) -> Response:
        return Response(status_code=200 if self._repository.is_ready(*_model(request)) else 503)

    async def model(self, request: Request) -> Response:
        return json_response(description.model_metadata(self._repository, *_model(request)))

    async def config(self, request: Request) -> Response:
        return json_response(description.model_config(self._repository, *_model(request)))

    async def statistics(self, request: Request) -> Response:
        return json_response(
            {"model_stats": description.model_statistics(self._repository, *_model(request))}
        )

    async def index(self, request: Request) -> Response:
        given = await self._json(request)
        ready = given.get("ready", False)
        if not isinstance(ready, bool):
            raise InputError("ready must be true or false")
        return json_response(description.index(self._repository, ready))

    async def load(self, request: Request) -> Response:
        await self._control(request)
        await self._repository.load(request.path_params["name"])
        return json_response({})

    async def unload(self, request: Request) -> Response:
        await self._control(request)
        await self._repository.unload(request.path_params["name"])
        return json_response({})

    async def _control(self, request: Request) -> None:
        if not self._settings.control:
            raise Forbidden(
                "models are not loaded or unloaded by requests: the server runs with --no-control"
            )
        parameters = (await self._json(request)).get("parameters") or {}
        if not isinstance(parameters, dict):
            raise InputError("parameters must be a JSON object")
        if set(parameters) - {"unload_dependents"}:
            raise InputError("a bundle is loaded as it is: configurations and files cannot be sent")

    async def regions(self, request: Request) -> Response:
        regions = self._memory.regions(request.path_params.get("region", ""))
        return json_response(
            [
                {"name": each.name, "key": each.key, "offset": each.offset, "byte_size": each.byte_size}
                for each in regions
            ]
        )

    async def register(self, request: Request) -> Response:
        given = await self._json(request)
        key, offset, size = given.get("key"), given.get("offset", 0), given.get("byte_size")
        if not isinstance(key, str) or type(offset) is not int or type(size) is not int:
            raise InputError("a region has a key (text), an offset and a byte_size (whole numbers)")
        self._memory.register(request.path_params["region"], key, offset, size)
        return json_response({})

    async def unregister(self, request: Request) -> Response:
        await self._json(request)
        self._memory.unregister(request.path_params.get("region", ""))
        return json_response({})

    async def _json(self, request: Request) -> dict[str, Any]:
        """The body of a request that is no inference. Forbidden for those that a page of another site sends:
        browsers ask nobody before they send these."""
        origin = request.headers.get("origin")
        if origin and urlsplit(origin).netloc != request.headers.get("host"):
            raise Forbidden(
                f"this comes from a page of {origin[:128]}: only the server's own page may ask for it"
            )
        body = await read_body(request.scope, request.receive, self._small)
        return parse_json(body) if body else {}


class _Infer:
    """The one endpoint that is called often: an ASGI application, without what a Request costs."""

    def __init__(self, protocol: _Protocol) -> None:
        self._protocol = protocol

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._protocol.infer(scope, receive, send)


def _model(request: Request) -> tuple[str, str]:
    return request.path_params.get("name", ""), request.path_params.get("version", "")


def _json_length(scope: Scope) -> int | None:
    text = header(scope, b"inference-header-content-length")
    if not text:
        return None
    if not (text.isascii() and text.isdigit() and len(text) < 16):
        raise InputError(f"Inference-Header-Content-Length is {text[:32]!r}, not a whole number")
    return int(text)
