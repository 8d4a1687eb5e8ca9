"""One line of JSON for each request, over HTTP, over gRPC, and in a stream of them."""

from __future__ import annotations

import json
import logging
import threading
from queue import Queue
from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.grpc
from tests.sdk.serving.conftest import SETTINGS, Running, serving
from tritonclient.utils import InferenceServerException

from saccade.bundle import Bundle
from saccade.serving.logs import JsonLines

TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def lines_of(caplog: pytest.LogCaptureFixture, wanted: int) -> list[dict[str, Any]]:
    """The lines of calls. They are written after their answers have gone out."""
    for _ in range(500):
        lines = [json.loads(JsonLines().format(each)) for each in list(caplog.records)]
        found = [line for line in lines if line["message"] == "request"]
        if len(found) >= wanted:
            break
        threading.Event().wait(0.01)
    return found


def test_every_request_is_one_line_of_json(running: Running, caplog: pytest.LogCaptureFixture) -> None:
    with (
        caplog.at_level(logging.INFO, "saccade.serving"),
        httpx.Client(base_url=f"http://{running.http}") as client,
    ):
        sent = {"X-Request-Id": "mine-1", "traceparent": TRACE}
        answer = client.get("/v2/models/tiny", headers=sent)
        made = client.get("/v2", headers={"X-Request-Id": "not\tone", "traceparent": "nonsense"})
        first, second = lines_of(caplog, 2)
    assert (answer.headers["x-request-id"], answer.headers["traceparent"]) == ("mine-1", TRACE)
    assert len(made.headers["x-request-id"]) == 16
    assert "traceparent" not in made.headers
    assert (first["request_id"], first["traceparent"]) == ("mine-1", TRACE)
    assert (first["model"], first["status"], first["method"]) == ("tiny", 200, "GET")
    assert first["milliseconds"] > 0
    assert second["request_id"] == made.headers["x-request-id"]


def test_every_call_is_one_line_too(running: Running, caplog: pytest.LogCaptureFixture) -> None:
    with (
        caplog.at_level(logging.INFO, "saccade.serving"),
        tritonclient.grpc.InferenceServerClient(running.grpc) as client,
    ):
        client.get_model_metadata("tiny", headers={"x-request-id": "mine-2", "traceparent": TRACE})
        with pytest.raises(InferenceServerException):
            client.get_model_metadata("nope", headers={"x-request-id": "mine-3"})
        client.is_server_live(headers={"x-request-id": "not one", "traceparent": "nonsense"})
        found = lines_of(caplog, 3)
    assert [(line["request_id"], line["method"], line["model"], line["status"]) for line in found[:2]] == [
        ("mine-2", "ModelMetadata", "tiny", "OK"),
        ("mine-3", "ModelMetadata", "nope", "NOT_FOUND"),
    ]
    assert (len(found[2]["request_id"]), found[2]["model"]) == (16, "")
    assert [line.get("traceparent") for line in found] == [TRACE, None, None]


def test_every_streamed_request_is_one_line(
    running: Running, image: np.ndarray[Any, Any], caplog: pytest.LogCaptureFixture
) -> None:
    heard: Queue[Any] = Queue()
    given = tritonclient.grpc.InferInput("image", image.shape, "FP32")
    given.set_data_from_numpy(image)
    with (
        caplog.at_level(logging.INFO, "saccade.serving"),
        tritonclient.grpc.InferenceServerClient(running.grpc) as client,
    ):
        client.start_stream(lambda result, error: heard.put(error))
        for model, request_id in (("tiny", "first"), ("nope", "second"), ("tiny", "")):
            client.async_stream_infer(model, [given], request_id=request_id)
        assert [heard.get(timeout=30) is None for _ in range(3)] == [True, False, True]
        client.stop_stream()
        client.start_stream(lambda result, error: heard.put(error), headers={"x-request-id": "mine-4"})
        client.async_stream_infer("tiny", [given], request_id="not shown")
        assert heard.get(timeout=30) is None
        found = lines_of(caplog, 4)
    assert {line["method"] for line in found} == {"ModelStreamInfer"}
    assert [(line["model"], line["status"]) for line in found] == [
        ("tiny", "OK"),
        ("nope", "NOT_FOUND"),
        ("tiny", "OK"),
        ("tiny", "OK"),
    ]
    ids = [line["request_id"] for line in found]
    assert (ids[0], ids[1], len(ids[2]), ids[3]) == ("first", "second", 16, "mine-4")
    assert all(line["milliseconds"] > 0 for line in found)


def test_a_stream_without_the_token_is_one_line(
    tiny_bundle: Bundle, caplog: pytest.LogCaptureFixture
) -> None:
    heard: Queue[Any] = Queue()
    with (
        caplog.at_level(logging.INFO, "saccade.serving"),
        serving(SETTINGS.replace(token="sesame"), own=tiny_bundle.path) as running,
        tritonclient.grpc.InferenceServerClient(running.grpc) as client,
    ):
        client.start_stream(lambda result, error: heard.put(error))
        assert heard.get(timeout=30).status() == "StatusCode.UNAUTHENTICATED"
        (line,) = lines_of(caplog, 1)
    assert (line["method"], line["status"], len(line["request_id"])) == (
        "ModelStreamInfer",
        "UNAUTHENTICATED",
        16,
    )
