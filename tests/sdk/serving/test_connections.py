"""Bodies that pass by the parser: whole however they arrive, aligned for engines, dropped where refused."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from tests.sdk.serving.conftest import SETTINGS, Running, serving

from saccade.batching import Limits
from saccade.benchmarks.serving_load import infer_request
from saccade.bundle import Bundle
from saccade.serving import server
from saccade.serving.connections import Body

INFER = "/v2/models/tiny/infer"
TO_HTTP_2 = "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n"


@pytest.fixture
def connection(running: Running) -> Iterator[socket.socket]:
    with connected(running) as found:
        yield found


def connected(running: Running) -> socket.socket:
    host, port = running.http.split(":")
    found = socket.create_connection((host, int(port)), timeout=30)
    found.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return found


def request(array: np.ndarray[Any, Any], more: str = "") -> bytes:
    """A whole request in binary both ways."""
    return infer_request(array, INFER, more)


def answer(connection: socket.socket) -> tuple[int, bytes]:
    """The status and the body of the next answer."""
    text = b""
    while not text.endswith(b"\r\n\r\n"):
        part = connection.recv(1)
        assert part, text
        text += part
    length = int(text.lower().partition(b"\r\ncontent-length: ")[2].split(b"\r")[0])
    body = b""
    while len(body) < length:
        body += connection.recv(length - len(body))
    return int(text[9:12]), body


def expected(running: Running, array: np.ndarray[Any, Any]) -> bytes:
    engine = running.server.repository.model("tiny")[1].engines["model"].engine
    return engine.run({"image": array})["logits"].tobytes()


@pytest.mark.parametrize("more", ["", TO_HTTP_2], ids=["plain", "asks-for-http-2"])
@pytest.mark.parametrize("pieces", [[], [1], [200], [300], [330, 5000, 9000], [20_000, 20_001]])
def test_a_body_is_whole_wherever_it_is_cut(
    pieces: list[int], more: str, running: Running, connection: socket.socket, image: np.ndarray[Any, Any]
) -> None:
    whole = request(image, more)
    for _ in range(2):  # the connection is as good as new
        for begin, end in zip([0, *pieces], [*pieces, len(whole)], strict=True):
            connection.sendall(whole[begin:end])
            if pieces:
                running.do(_nothing())  # the server has seen this piece
        status, body = answer(connection)
        assert status == 200
        assert body.endswith(expected(running, image))


async def _nothing() -> None:
    pass


def test_who_asks_for_http_2_is_answered_in_http_1(
    running: Running, connection: socket.socket, image: np.ndarray[Any, Any]
) -> None:
    head, _, body = request(image, TO_HTTP_2).partition(b"\r\n\r\n")
    kept = [line for line in head.split(b"\r\n") if not line.startswith(b"Content-Length")]
    chunks = [body[:700], body[700:]]
    chunked = b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\n\r\n"
    empty = f"GET /v2 HTTP/1.1\r\nHost: x\r\n{TO_HTTP_2}\r\n".encode()
    connection.sendall(b"\r\n".join([*kept, b"Transfer-Encoding: chunked", b"", b""]) + chunked + empty)
    status, given = answer(connection)
    assert (status, given.endswith(expected(running, image))) == (200, True)
    status, given = answer(connection)
    assert (status, json.loads(given)["name"]) == (200, "saccade")


def test_requests_that_do_not_wait_for_answers_get_their_own_in_order(
    running: Running, connection: socket.socket, image: np.ndarray[Any, Any]
) -> None:
    arrays = [image * factor for factor in (1, 2, 3, 4)]
    connection.sendall(b"".join(map(request, arrays)))
    for array in arrays:
        status, body = answer(connection)
        assert (status, body.endswith(expected(running, array))) == (200, True)


def test_who_asks_before_sending_is_told_to_go_on(
    running: Running, connection: socket.socket, image: np.ndarray[Any, Any]
) -> None:
    head, _, body = request(image, "Expect: 100-continue\r\n").partition(b"\r\n\r\n")
    connection.sendall(head + b"\r\n\r\n")
    assert connection.recv(25, socket.MSG_WAITALL) == b"HTTP/1.1 100 Continue\r\n\r\n"
    connection.sendall(body)
    assert answer(connection)[1].endswith(expected(running, image))


def test_a_body_that_is_refused_does_not_disturb_the_next_request(tiny_bundle: Bundle) -> None:
    settings = SETTINGS.replace(grpc_port=None, token="secret", batching=Limits(max_rows=100))
    with serving(settings, tiny=tiny_bundle.path) as running, connected(running) as connection:
        large = np.zeros((100, 3, 32, 32), np.float32)
        small = large[:1]
        for array, more, status in [
            (large, "", 401),
            (small, "Authorization: Bearer secret\r\n", 200),
            (small, "", 401),
            (large, "Authorization: Bearer secret\r\n", 200),
        ]:
            connection.sendall(request(array, more))
            assert answer(connection)[0] == status


@pytest.mark.parametrize("more", ["", "\r\n"])
def test_idle_connections_end_whatever_follows_an_answer(
    more: str, tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "_KEEP_ALIVE_S", 0.3)
    with (
        serving(SETTINGS.replace(grpc_port=None), tiny=tiny_bundle.path) as running,
        connected(running) as connection,
    ):
        connection.sendall(b"GET /v2 HTTP/1.1\r\nHost: x\r\n\r\n")
        assert answer(connection)[0] == 200
        connection.sendall(more.encode())
        connection.settimeout(10)
        assert connection.recv(1) == b""


@pytest.mark.parametrize("tensors_at", [0, 1, 63, 64, 150, 10**14])
def test_tensors_lie_where_engines_can_read_them(tensors_at: int) -> None:
    body = Body(500, tensors_at)
    place = np.frombuffer(body.space(), np.uint8).ctypes.data
    assert (place + tensors_at) % 64 == 0
    assert len(body.space()) == 500


def test_a_body_that_nobody_wants_takes_no_memory_and_still_ends() -> None:
    body = Body(10**6, 0)
    body.drop()
    taken = 0
    while body.missing:
        space = len(body.space())
        assert 0 < space <= 10_000
        body.missing -= space
        taken += space
    assert taken == 10**6
