"""The built-in page: pick a model, drop a picture, see the answer. Three files, held in memory.

Its Content-Security-Policy allows what the page itself brings and nothing else.
"""

from __future__ import annotations

from importlib.resources import files

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

__all__ = ["page_routes"]

_FILES = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
}
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self' blob: data:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


def page_routes() -> list[BaseRoute]:
    """The page at /, with its style and its script."""
    return [_route(path, *file) for path, file in _FILES.items()]


def _route(path: str, name: str, kind: str) -> BaseRoute:
    content = files("saccade.serving").joinpath("webpage", name).read_bytes()

    async def file(request: Request) -> Response:
        return Response(content, headers=_HEADERS, media_type=kind)

    return Route(path, file, methods=["GET"])
