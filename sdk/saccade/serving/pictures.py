"""A picture in, a predictor's answer out: as JSON, or drawn on the picture.

Pictures are decoded, preprocessed and drawn in a few threads; their tensors meet those of other requests in
the micro-batcher.
"""

from __future__ import annotations

import asyncio
import io
import math
import re
from collections.abc import AsyncGenerator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from saccade.errors import DeadlineError, InputError, OverloadedError
from saccade.predictors.predictor import PICTURE_GRAPHS
from saccade.serving.batched import Patience
from saccade.serving.exchange import json_response, read_body, until_gone
from saccade.serving.inference import answer, counted, patience_ms
from saccade.serving.openapi import openapi
from saccade.serving.options import Options, count_tiles, options_for, parse_options, predict, shown
from saccade.serving.pixels import PixelBudget
from saccade.serving.refusals import NotAcceptable, UnknownModel
from saccade.serving.repository import Repository
from saccade.serving.settings import ServerSettings

__all__ = ["picture_routes"]

_MAX_FIELDS = 2048
_TIMEOUT = "timeout_ms"
_PICTURES_AT_ONCE = 2  # of the largest size, decoded; of smaller ones as many as have no more pixels
_DRAWING = 2  # times the pixels: what is drawn on a picture takes its size again, and more


def picture_routes(repository: Repository, settings: ServerSettings) -> list[BaseRoute]:
    """The endpoints around pictures."""
    endpoints = _Pictures(repository, settings)
    return [
        Route("/v1/models/{name}/predict", endpoints.predict, methods=["POST"]),
        Route("/v1/models", endpoints.models, methods=["GET"]),
        Route("/openapi.json", endpoints.openapi, methods=["GET"]),
    ]


class _Pictures:
    def __init__(self, repository: Repository, settings: ServerSettings) -> None:
        self._repository, self._settings = repository, settings
        # Threads mostly wait: for the engine's answer. As many as fill two runs.
        self._threads = ThreadPoolExecutor(2 * settings.batching.max_rows, "saccade-picture")
        self._pixels = PixelBudget(_PICTURES_AT_ONCE * settings.max_picture_pixels)
        self._waiting = 0

    async def predict(self, request: Request) -> Response:
        name = request.path_params["name"]
        model, loaded = self._repository.model(name)
        if model.graph not in PICTURE_GRAPHS:
            raise UnknownModel(f"{name} takes no pictures; {model.bundle} does")
        drawn = _wants_drawing(request)
        body = await read_body(request.scope, request.receive, self._settings)
        picture, given = await _parts(request.headers, bytes(body))
        pairs = [*request.query_params.multi_items(), *given]
        timeout = [text for key, text in pairs if key == _TIMEOUT]
        task = loaded.predictor.card.task
        options = parse_options(task, [pair for pair in pairs if pair[0] != _TIMEOUT])
        timeout_ms = patience_ms(_milliseconds(timeout), self._repository)
        model, loaded = self._repository.model(name)  # a reload may have come while the body did
        with counted(model.counters), loaded.used():
            work = self._answer(loaded.predictor, picture, options, drawn, timeout_ms)
            return await until_gone(work, request.receive)

    async def _answer(
        self, predictor: Any, picture: bytes, options: Options, drawn: bool, timeout_ms: float
    ) -> Response:
        if self._waiting >= self._settings.max_waiting_pictures:
            raise OverloadedError(f"{self._waiting} pictures are waiting: try again later")
        self._waiting += 1
        patience = Patience(timeout_ms)
        future = self._threads.submit(self._work, predictor, picture, options, drawn, patience)
        # Counted until it has left the thread: one whose client is gone still takes its place.
        loop = asyncio.get_running_loop()
        future.add_done_callback(lambda _: loop.call_soon_threadsafe(self._leave))
        try:
            return await answer(future, timeout_ms)
        except DeadlineError:  # the thread, which may be first, knows only what was left of the time
            raise DeadlineError(f"no answer within {timeout_ms:g} ms") from None
        finally:
            patience.end()

    def _leave(self) -> None:
        self._waiting -= 1

    def _work(
        self, predictor: Any, picture: bytes, options: Options, drawn: bool, patience: Patience
    ) -> Response:
        """In a thread. DeadlineError soon after `patience` is over: between two steps, or two runs."""
        size_hw = _size_hw(picture, self._settings.max_picture_pixels)
        seen = math.prod(predictor.card.preprocessing.input_size_hw)
        # Tiles may have more pixels for the model than the picture has, and some answers keep them all.
        pixels = max(math.prod(size_hw) * (_DRAWING if drawn else 1), seen * count_tiles(options, size_hw))
        with self._pixels.held(pixels, patience), patience.felt():
            patience.left_ms()
            result = predict(predictor, picture, options)
            patience.left_ms()
            if not drawn:
                return json_response(result.to_json(shown(predictor.card.task, options.top)))
            from saccade.drawing import draw

            stream = io.BytesIO()
            draw(picture, result, options.top).save(stream, "PNG", compress_level=1)
            return Response(stream.getvalue(), media_type="image/png")

    async def models(self, request: Request) -> Response:
        return json_response({"models": described(self._repository)})

    async def openapi(self, request: Request) -> Response:
        return json_response(openapi(described(self._repository), self._settings))


def described(repository: Repository) -> list[dict[str, Any]]:
    """Every model that takes pictures: name, task, engine, whether it is ready, and the options it takes."""
    found = []
    for model in repository.models.values():
        known = repository.card(model.name)
        if model.graph not in PICTURE_GRAPHS or known is None:
            continue
        card, engine = known
        found.append(
            {
                "name": model.name,
                "task": card.task,
                "engine": engine,
                "drawable": card.task != "embedding",
                # Drawn answers of classes are bars below the picture; the page has its own.
                "overlay": card.task not in ("embedding", "classification", "zero_shot"),
                "labels": len(card.labels),
                "options": list(options_for(card.task)),
            }
        )
    return found


def _wants_drawing(request: Request) -> bool:
    """Whether Accept prefers a PNG; JSON where it likes both, unless it names image/png first.

    RFC 9110, section 12.5.1: the weight of a kind is that of the most specific range; 0 refuses it.
    """
    accepted: dict[str, float] = {}
    for each in (request.headers.get("accept") or "*/*").lower().split(","):
        weight = re.search(r";\s*q=([01](?:\.\d{0,3})?)\s*(?:;|$)", each)
        accepted[each.partition(";")[0].strip()] = 1.0 if weight is None else float(weight[1])
    as_json, as_png = (_weight(accepted, kind) for kind in ("application/json", "image/png"))
    if not as_json and not as_png:
        raise NotAcceptable(
            "the answer is application/json, or image/png with the answer drawn on the picture"
        )
    return as_png > as_json or (as_png == as_json and next(iter(accepted)) == "image/png")


def _weight(accepted: dict[str, float], kind: str) -> float:
    ranges = (kind, f"{kind.partition('/')[0]}/*", "*/*")
    return next((accepted[each] for each in ranges if each in accepted), 0.0)


async def _parts(headers: Headers, body: bytes) -> tuple[bytes, list[tuple[str, str]]]:
    """The picture of a request, the whole body or the one file of a form, and the form's other fields."""
    if not headers.get("content-type", "").lower().startswith("multipart/form-data"):
        return _not_empty(body), []
    parser = _InMemory(headers, _once(body), max_files=1, max_fields=_MAX_FIELDS, max_part_size=len(body) + 1)
    try:
        form = await parser.parse()
    except (MultiPartException, KeyError, ValueError) as error:
        raise InputError(f"the form cannot be read: {error}") from error
    try:
        files = [value for _, value in form.multi_items() if isinstance(value, UploadFile)]
        if len(files) != 1:
            raise InputError("a form holds one file: the picture")
        picture = await files[0].read()
    finally:
        await form.close()
    return _not_empty(picture), [(k, v) for k, v in form.multi_items() if isinstance(v, str)]


class _InMemory(MultiPartParser):
    """Its files stay in memory, where the body is already: no request makes files."""

    spool_max_size = 2**62


async def _once(body: bytes) -> AsyncGenerator[bytes, None]:
    yield body


def _not_empty(picture: bytes) -> bytes:
    if not picture:
        raise InputError("there is no picture: send its file as the body, or as the file of a form")
    return picture


def _size_hw(picture: bytes, limit: int) -> tuple[int, int]:
    """Before decoding. What cannot be opened is (0, 0), and refused by the predictor, in better words."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(picture)) as opened:
            width, height = opened.size
    except Exception:  # damaged pictures raise all sorts
        return 0, 0
    if width * height > limit:
        raise InputError(f"the picture has {width}x{height} pixels; at most {limit} are read")
    return height, width


def _milliseconds(texts: list[str]) -> float | None:
    if not texts:
        return None
    if not (len(texts) == 1 and texts[0].isascii() and texts[0].isdigit() and 0 < len(texts[0]) < 10):
        raise InputError(f"{_TIMEOUT} is {', '.join(texts)[:32]!r}; it is one whole number of milliseconds")
    return float(texts[0])
