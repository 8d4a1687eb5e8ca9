"""What goes wrong on either side: the client's mistakes are refused, the engine's are answered, nothing ends
the server."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.sdk.serving.conftest import SETTINGS, Running, serving
from tests.sdk.serving.fuzz import FUZZ
from tests.sdk.serving.test_operations import body

from saccade.bundle import Bundle
from saccade.errors import DeadlineError
from saccade.serving.protocol import generate, inference_pb2, inference_pb2_grpc

INFER = "/v2/models/tiny/infer"
HTTP_ONLY = SETTINGS.replace(grpc_port=None)


@pytest.fixture(scope="module")
def client(running: Running) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=f"http://{running.http}", timeout=30) as client:
        yield client


def changed(path: str, value: Any) -> dict[str, Any]:
    """A good request with one value replaced; path: keys joined by dots."""
    found = body()
    *parents, last = path.split(".")
    inside: Any = found
    for key in parents:
        inside = inside[int(key) if key.isdigit() else key]
    inside[last] = value
    return found


BAD_BODIES: dict[str, bytes] = {
    "nothing": b"",
    "half": b'{"inputs": [',
    "no JSON": b"\xff\xfe{}",
    "deep": b"[" * 100_000,
    "a list": b"[]",
    "no inputs": b'{"id": "x"}',
} | {
    f"{path} = {str(value)[:30]}": json.dumps(changed(path, value)).encode()
    for path, value in [
        ("inputs", []),
        ("inputs", [1]),
        ("inputs", {"name": "image"}),
        ("inputs.0.name", None),
        ("inputs.0.name", "x" * 1000),
        ("inputs.0.datatype", "FP128"),
        ("inputs.0.datatype", "BYTES"),
        ("inputs.0.datatype", ["FP32"]),
        ("inputs.0.shape", "1"),
        ("inputs.0.shape", [-1, 3, 32, 32]),
        ("inputs.0.shape", [1.0, 3, 32, 32]),
        ("inputs.0.shape", [True, 3, 32, 32]),
        ("inputs.0.shape", [2**62, 2**62]),
        ("inputs.0.shape", [1] * 70),
        ("inputs.0.data", None),
        ("inputs.0.data", "0" * 3072),
        ("inputs.0.data", ["1.0"] * 3072),
        ("inputs.0.data", [None] * 3072),
        ("inputs.0.data", [[1.0], [1.0, 2.0]]),
        ("inputs.0.data", [10**400] * 3072),
        ("inputs.0.data", [1.0] * 3071),
        ("inputs.0.parameters", {"binary_data_size": -1}),
        ("inputs.0.parameters", {"binary_data_size": 10**30}),
        ("inputs.0.parameters", {"binary_data_size": 4}),
        ("inputs.0.parameters", {"shared_memory_region": "x", "shared_memory_byte_size": "y"}),
        ("inputs.0.parameters", 3),
        ("outputs", []),
        ("outputs", [{"name": "nope"}]),
        ("outputs", [{"name": "logits"}, {"name": "logits"}]),
        ("outputs", [{"name": "logits", "parameters": {"binary_data": "yes"}}]),
        ("outputs", [{"name": "logits", "parameters": {"classification": 3}}]),
        ("id", 7),
        ("id", "x" * 300),
        ("parameters", {"timeout": -1}),
        ("parameters", {"timeout": "soon"}),
        ("parameters", {"binary_data_output": 1}),
    ]
}


@pytest.mark.parametrize("name", BAD_BODIES)
def test_a_malformed_body_is_refused(name: str, client: httpx.Client) -> None:
    answer = client.post(INFER, content=BAD_BODIES[name])
    assert answer.status_code in (400, 404, 422), answer.text
    assert answer.json()["error"]


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Inference-Header-Content-Length": "10"}, 422),
        ({"Inference-Header-Content-Length": "-1"}, 422),
        ({"Inference-Header-Content-Length": "9" * 30}, 422),
        ({"Inference-Header-Content-Length": "99999999"}, 422),
        ({"Content-Encoding": "br"}, 422),
        ({"Content-Encoding": "gzip"}, 422),
    ],
)
def test_headers_that_lie(headers: dict[str, str], status: int, client: httpx.Client) -> None:
    answer = client.post(INFER, content=json.dumps(body()).encode(), headers=headers)
    assert answer.status_code == status, answer.text


def test_bodies_have_a_limit_packed_or_not(tiny_bundle: Bundle) -> None:
    import gzip

    with serving(HTTP_ONLY.replace(max_body_bytes=100_000), tiny=tiny_bundle.path) as running:
        url = f"http://{running.http}{INFER}"
        assert httpx.post(url, content=bytes(100_001)).status_code == 413
        assert httpx.post(url, content=(bytes(1000) for _ in range(200))).status_code == 413
        bomb = gzip.compress(bytes(50_000_000))
        assert len(bomb) < 100_000
        assert httpx.post(url, content=bomb, headers={"Content-Encoding": "gzip"}).status_code == 413
        assert httpx.post(url, json=body()).status_code == 200


def binary_request() -> tuple[bytes, int]:
    array = np.zeros((1, 3, 32, 32), np.float32)
    tensor = {"name": "image", "datatype": "FP32", "shape": list(array.shape)}
    head = json.dumps({"inputs": [tensor | {"parameters": {"binary_data_size": array.nbytes}}]}).encode()
    return head + array.tobytes(), len(head)


def rpc_request() -> bytes:
    message = inference_pb2.ModelInferRequest(model_name="tiny", id="7")
    message.inputs.add(name="image", datatype="FP32", shape=[1, 3, 32, 32])
    message.parameters["timeout"].int64_param = 5_000_000
    message.outputs.add(name="logits")
    message.raw_input_contents.append(bytes(3 * 32 * 32 * 4))
    return bytes(message.SerializeToString())


def mutated(data: bytes, changes: list[tuple[int, int]], cut: int) -> bytes:
    """`data` with bytes replaced, mostly near its beginning, and the end cut off."""
    mutable = bytearray(data)
    for place, value in changes:
        mutable[place % min(len(mutable), 200)] = value
    return bytes(mutable[: len(mutable) - cut])


CHANGES = st.lists(st.tuples(st.integers(0, 199), st.integers(0, 255)), min_size=1, max_size=6)
CUT = st.sampled_from([0, 0, 1, 4, 1000])


def test_mutated_binary_bodies_are_no_server_error(client: httpx.Client) -> None:
    whole, length = binary_request()
    headers = {"Inference-Header-Content-Length": str(length)}
    assert client.post(INFER, content=whole, headers=headers).status_code == 200

    @FUZZ
    @given(CHANGES, CUT)
    def fuzz(changes: list[tuple[int, int]], cut: int) -> None:
        answer = client.post(INFER, content=mutated(whole, changes, cut), headers=headers)
        assert answer.status_code < 500, answer.text

    fuzz()


SERVERS_OWN = {grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.UNAVAILABLE}


@pytest.mark.parametrize("method", ["ModelInfer", "ModelMetadata", "RepositoryModelLoad", "ModelStatistics"])
def test_mutated_messages_are_no_server_error(method: str, running: Running) -> None:
    whole = rpc_request()
    with grpc.insecure_channel(running.grpc) as channel:
        call = channel.unary_unary(f"/inference.GRPCInferenceService/{method}")

        @FUZZ
        @given(CHANGES, CUT)
        def fuzz(changes: list[tuple[int, int]], cut: int) -> None:
            outcome = call.future(mutated(whole, changes, cut), timeout=30)
            assert outcome.code() not in SERVERS_OWN, outcome.details()

        fuzz()


def test_the_stubs_are_importable_beside_those_of_tritonclient(running: Running) -> None:
    import tritonclient.grpc.service_pb2 as theirs

    with grpc.insecure_channel(running.grpc) as channel:
        stub = inference_pb2_grpc.GRPCInferenceServiceStub(channel)
        assert stub.ServerReady(inference_pb2.ServerReadyRequest()).ready
        request = inference_pb2.ModelInferRequest.FromString(rpc_request())
        assert stub.ModelInfer(request).outputs[0].name == "logits"
    # Ours and theirs read one another: the same names and numbers.
    assert theirs.ModelInferRequest.FromString(rpc_request()).parameters["timeout"].int64_param == 5_000_000
    ours = inference_pb2.DESCRIPTOR.message_types_by_name
    for name, message in theirs.DESCRIPTOR.message_types_by_name.items():
        if name in ours:
            fields = {field.name: (field.number, field.type) for field in message.fields}
            own = {field.name: (field.number, field.type) for field in ours[name].fields}
            assert own.items() <= fields.items(), name


def test_the_stubs_are_in_step_with_the_protocol(tmp_path: Path) -> None:
    for made in generate.generate(tmp_path):
        committed = generate.FOLDER / made.name
        # What the protocol decides; the rest differs between releases of grpcio-tools.
        decided = ("/inference.", "DESCRIPTOR =", ": ClassVar", "_FIELD_NUMBER")
        ours, theirs = (
            [line for line in path.read_text().splitlines() if any(each in line for each in decided)]
            for path in (committed, made)
        )
        assert len(ours) > 1
        assert ours == theirs, f"{made.name} is old: python -m saccade.serving.protocol.generate"


def upload(running: Running, sent: int, declared: int = 100_000) -> socket.socket:
    """A connection on which `sent` of `declared` bytes of a request have gone out."""
    host, port = running.http.split(":")
    connection = socket.create_connection((host, int(port)), timeout=30)
    head = f"POST {INFER} HTTP/1.1\r\nHost: x\r\nContent-Length: {declared}\r\n\r\n"
    connection.sendall(head.encode() + bytes(sent))
    return connection


def test_a_client_that_goes_away_mid_upload(running: Running, client: httpx.Client) -> None:
    for _ in range(50):
        upload(running, 5000).close()
    assert client.post(INFER, json=body()).status_code == 200


def test_a_client_that_is_too_slow(tiny_bundle: Bundle) -> None:
    with serving(HTTP_ONLY.replace(upload_timeout_ms=300), tiny=tiny_bundle.path) as running:
        with upload(running, 10) as connection:
            answer = b""
            while part := connection.recv(4096):
                answer += part
        assert answer.startswith(b"HTTP/1.1 408")
        assert b"did not arrive within 300 ms" in answer


def test_a_head_without_an_end(running: Running, client: httpx.Client) -> None:
    host, port = running.http.split(":")
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        connection.sendall(b"GET /v2 HTTP/1.1\r\nX-Long: ")
        with pytest.raises(OSError, match=r"reset|[Bb]roken"):
            _send_forever(connection)
    assert client.get("/v2").status_code == 200


def _send_forever(connection: socket.socket) -> None:
    for _ in range(1000):
        connection.sendall(b"x" * 100_000)


class Failing:
    """An engine that does what a test says: raise, hang until let go, or answer."""

    def __init__(self, running: Running, name: str = "tiny") -> None:
        self.engine = running.server.repository.model(name)[1].engines["model"]
        self.how, self.entered, self.open = "answer", threading.Semaphore(0), threading.Event()
        self.engine.batcher._run = self._run

    def _run(self, feeds: Any) -> Any:
        self.entered.release()
        if self.how == "raise":
            raise RuntimeError("a bug in an engine")
        if self.how == "hang":
            assert self.open.wait(60)
        return self.engine.engine.run(feeds)


@pytest.fixture
def failing(own_bundle: Path) -> Iterator[tuple[Failing, httpx.Client, Running]]:
    shorter = SETTINGS.replace(request_timeout_ms=400)
    with serving(shorter, tiny=own_bundle, other=own_bundle) as running:
        failing = Failing(running)
        with httpx.Client(base_url=f"http://{running.http}", timeout=30) as client:
            yield failing, client, running
        failing.open.set()


def test_an_engine_that_raises_is_an_answer(failing: tuple[Failing, httpx.Client, Running]) -> None:
    engine, client, running = failing
    engine.how = "raise"
    refused = client.post(INFER, json=body())
    assert (refused.status_code, "a bug" in refused.text) == (500, False)  # what it was is in the log
    with grpc.insecure_channel(running.grpc) as channel:
        call = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        with pytest.raises(grpc.RpcError) as caught:
            call(rpc_request(), timeout=30)
    assert caught.value.code() == grpc.StatusCode.INTERNAL
    assert running.server.repository.models["tiny"].counters.failures == {"BACKEND": 2}
    engine.how = "answer"
    assert client.post(INFER, json=body()).status_code == 200


def test_an_engine_that_hangs_holds_nobody_past_the_deadline(
    failing: tuple[Failing, httpx.Client, Running], noise: Any
) -> None:
    import io

    from PIL import Image

    engine, client, _ = failing
    engine.how = "hang"
    stream = io.BytesIO()
    Image.fromarray(noise).save(stream, "PNG")
    begun = time.monotonic()
    assert client.post(INFER, json=body()).status_code == 504
    assert client.post("/v1/models/tiny/predict", content=stream.getvalue()).status_code == 504
    assert time.monotonic() - begun < 10
    assert client.get("/v2/health/live").status_code == 200
    assert client.post("/v2/models/other/infer", json=body()).status_code == 200
    engine.how = "answer"
    engine.open.set()
    assert client.post(INFER, json=body()).status_code == 200


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_client_that_does_not_wait_leaves_the_queue(
    failing: tuple[Failing, httpx.Client, Running],
) -> None:
    engine, client, running = failing
    running.server.repository.settings = SETTINGS  # patience is not what ends these
    engine.how = "hang"
    content = json.dumps(body()).encode()
    head = f"POST {INFER} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(content)}\r\n\r\n".encode()
    host, port = running.http.split(":")
    counters = running.server.repository.models["tiny"].counters
    connections = [socket.create_connection((host, int(port))) for _ in range(3)]
    connections[0].sendall(head + content)
    assert engine.entered.acquire(timeout=30)  # the first occupies the engine, the others wait
    for connection in connections[1:]:
        connection.sendall(head + content)
    wait_until(lambda: engine.engine.batcher.queued_rows == 2)
    for connection in connections:
        connection.close()
    wait_until(lambda: counters.failures.get("CANCELED") == 3)
    assert counters.pending == 0
    engine.open.set()
    assert client.post(INFER, json=body()).status_code == 200
    assert engine.engine.batcher.statistics().cancelled == 2


def test_draining_ends_even_where_an_engine_hangs(own_bundle: Path) -> None:
    opened = threading.Event()
    begun = time.monotonic()

    def hang_and_leave() -> None:
        with serving(HTTP_ONLY.replace(drain_s=1), tiny=own_bundle) as running:
            engine = Failing(running)
            engine.how, engine.open = "hang", opened
            threading.Thread(target=_ignored, args=(running,), daemon=True).start()
            assert engine.entered.acquire(timeout=30)

    with pytest.raises(DeadlineError, match="after 1 s"):
        hang_and_leave()
    opened.set()
    assert time.monotonic() - begun < 20


def _ignored(running: Running) -> None:
    with contextlib.suppress(httpx.HTTPError):
        httpx.post(f"http://{running.http}{INFER}", json=body(), timeout=20)
