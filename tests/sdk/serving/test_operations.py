"""What whoever runs the server relies on: readiness, reloads, limits, tokens, TLS, metrics, logs, traces."""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.grpc
from prometheus_client.parser import text_string_to_metric_families
from starlette.applications import Starlette
from starlette.routing import Mount
from tests import tiny
from tests.sdk.serving.conftest import SETTINGS, Running, serving
from tritonclient.utils import InferenceServerException

from saccade.batching import Limits
from saccade.bundle import Bundle
from saccade.errors import BundleError, UsageError
from saccade.serving.http import create_app
from saccade.serving.repository import Repository, named
from saccade.serving.server import Server
from saccade.serving.settings import ServerSettings

HTTP_ONLY = SETTINGS.replace(grpc_port=None)
INFER = "/v2/models/own/infer"


def body(value: float = 1.0, rows: int = 1) -> dict[str, Any]:
    data = np.full((rows, 3, 32, 32), value, np.float32)
    tensor = {"name": "image", "datatype": "FP32", "shape": list(data.shape), "data": data.ravel().tolist()}
    return {"inputs": [tensor]}


def logits(client: httpx.Client, value: float = 1.0) -> list[float]:
    answer = client.post(INFER, json=body(value))
    assert answer.status_code == 200, answer.text
    found: list[float] = answer.json()["outputs"][0]["data"]
    return found


@pytest.fixture
def own(own_bundle: Path) -> Iterator[tuple[Running, httpx.Client, Path]]:
    with (
        serving(HTTP_ONLY, own=own_bundle) as running,
        httpx.Client(base_url=f"http://{running.http}") as client,
    ):
        yield running, client, own_bundle


@pytest.mark.parametrize("given", [["a", "a"], ["../x y"], ["=a"], ["n" * 200 + "=a"], [".hidden=a"]])
def test_names_that_cannot_be_served(given: list[str]) -> None:
    with pytest.raises(UsageError):
        named(given)


def test_alive_before_it_is_ready(own_bundle: Path) -> None:
    async def main() -> list[int]:
        server = Server(HTTP_ONLY, {"own": own_bundle})
        await server.listen()
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{server.http_port}") as client:
            paths = ("/v2/health/live", "/v2/health/ready", "/v2/models/own/ready", "/v2/models/own")
            before = [(await client.get(path)).status_code for path in paths]
            await server.repository.load_all()
            after = [(await client.get(path)).status_code for path in paths]
        await server.drain()
        return before + after

    assert asyncio.run(main()) == [200, 503, 503, 404, 200, 200, 200, 200]


def test_a_reload_takes_what_is_on_the_disk_and_keeps_what_worked(
    own: tuple[Running, httpx.Client, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, client, path = own
    first = logits(client)
    model = tiny.model
    monkeypatch.setattr(tiny, "GRAPH", tiny.GRAPH.replace("{3.0}", "{6.0}"))
    assert tiny.model is model
    other = tmp_path / "other"
    monkeypatch.setattr(tiny, "logits", lambda image: np.zeros((2, 10), np.float32))
    tiny.write_bundle(other)
    path.rename(tmp_path / "old")
    other.rename(path)
    assert logits(client) == first
    assert client.post("/v2/repository/models/own/load", json={}).status_code == 200
    assert logits(client) == [2 * each for each in first]
    graph = path / "graphs" / "source.onnx"
    graph.write_bytes(graph.read_bytes()[:-1] + b"!")
    refused = client.post("/v2/repository/models/own/load")
    assert (refused.status_code, "has changed" in refused.json()["error"]) == (422, True)
    assert logits(client) == [2 * each for each in first]
    assert client.get("/v2/health/ready").status_code == 200


def test_unload_and_load(own: tuple[Running, httpx.Client, Path]) -> None:
    _, client, _ = own
    assert client.post("/v2/repository/models/own/unload", json={}).status_code == 200
    assert client.post(INFER, json=body()).status_code == 404
    assert client.get("/v2/models/own/ready").status_code == 503
    assert client.post("/v2/repository/index").json()[0]["state"] == "UNAVAILABLE"
    assert client.post("/v2/repository/index", json={"ready": True}).json() == []
    assert client.post("/v2/repository/models/own/load").status_code == 200
    logits(client)


def test_no_request_can_say_what_is_loaded(own: tuple[Running, httpx.Client, Path]) -> None:
    _, client, _ = own
    for name in ("other", "%2e%2e", "%2e%2e%2fetc", "own%2f..%2fx", "C:", "own%00"):
        assert client.post(f"/v2/repository/models/{name}/load").status_code == 404
        assert client.get(f"/v2/models/{name}").status_code == 404
    override = {"parameters": {"config": "{}", "file:1/model.onnx": "aGVsbG8="}}
    assert client.post("/v2/repository/models/own/load", json=override).status_code == 422


def test_control_can_be_off(tiny_bundle: Bundle) -> None:
    with serving(HTTP_ONLY.replace(control=False), own=tiny_bundle.path) as running:
        for verb in ("load", "unload"):
            answer = httpx.post(f"http://{running.http}/v2/repository/models/own/{verb}")
            assert answer.status_code == 403
        assert "model_repository" not in httpx.get(f"http://{running.http}/v2").json()["extensions"]


def test_a_full_queue_refuses_with_a_time_to_come_back(own_bundle: Path) -> None:
    settings = SETTINGS.replace(batching=Limits(max_rows=1, max_queue_rows=1))
    opened, entered = threading.Event(), threading.Semaphore(0)
    with serving(settings, own=own_bundle) as running:
        engine = running.server.repository.model("own")[1].engines["model"]

        def wait_then_run(feeds: Any) -> Any:
            entered.release()
            assert opened.wait(30)
            return engine.engine.run(feeds)

        engine.batcher._run = wait_then_run
        codes: list[int] = []
        url = f"http://{running.http}{INFER}"
        threads = [
            threading.Thread(target=lambda: codes.append(httpx.post(url, json=body()).status_code))
            for _ in range(2)
        ]
        threads[0].start()
        assert entered.acquire(timeout=30)
        threads[1].start()
        while not engine.batcher.queued_rows:
            threading.Event().wait(0.01)
        refused = httpx.post(url, json=body())
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
        with tritonclient.grpc.InferenceServerClient(running.grpc) as client:
            given = tritonclient.grpc.InferInput("image", (1, 3, 32, 32), "FP32")
            given.set_data_from_numpy(np.zeros((1, 3, 32, 32), np.float32))
            with pytest.raises(InferenceServerException) as caught:
                client.infer("own", [given])
        assert caught.value.status() == "StatusCode.RESOURCE_EXHAUSTED"
        opened.set()
        for each in threads:
            each.join(30)
        assert codes == [200, 200]


def test_a_token_is_asked_for_everywhere_but_at_the_door(tiny_bundle: Bundle) -> None:
    with (
        serving(SETTINGS.replace(token="open sesame"), own=tiny_bundle.path) as running,
        httpx.Client(base_url=f"http://{running.http}") as client,
    ):
        for path in ("/v2/health/live", "/v2/health/ready", "/", "/page.js"):
            assert client.get(path).status_code == 200
        for path in ("/v2", "/metrics", "/v1/models", "/openapi.json", "/v2/models/own", "/nowhere"):
            refused = client.get(path)
            assert (refused.status_code, refused.headers["www-authenticate"]) == (401, "Bearer")
        for wrong in ("Bearer wrong", "open sesame", "Basic open sesame", "Bearer", "bearer opén"):
            sent = {"Authorization": wrong.encode()}
            assert client.get("/v2", headers=sent).status_code == 401
        assert client.get("/v2", headers={"Authorization": "Bearer open sesame"}).status_code == 200
        with tritonclient.grpc.InferenceServerClient(running.grpc) as rpc:
            assert rpc.is_server_live()
            with pytest.raises(InferenceServerException) as caught:
                rpc.get_server_metadata()
            assert caught.value.status() == "StatusCode.UNAUTHENTICATED"
            assert rpc.get_server_metadata(headers={"authorization": "Bearer open sesame"}).name == "saccade"


@pytest.mark.parametrize("prefix", ["", "/x", "/x/y"])
def test_mounted_somewhere_the_door_is_there(prefix: str, tiny_bundle: Bundle) -> None:
    settings = ServerSettings(token="sesame")
    app = create_app(Repository({"own": tiny_bundle.path}, settings), settings)

    async def main() -> None:
        transport = httpx.ASGITransport(Starlette(routes=[Mount(prefix, app)]))
        async with httpx.AsyncClient(transport=transport, base_url="http://here") as client:
            for path in ("/v2/health/live", "/", "/page.css"):
                assert (await client.get(prefix + path)).status_code == 200
            for path in ("/v2", "/metrics", "/v2/health/live/", "/x/", "/x/v2/health/live"):
                assert (await client.get(prefix + path)).status_code == 401, path

    asyncio.run(main())


def test_both_ports_speak_tls(tiny_bundle: Bundle, tls: ServerSettings) -> None:
    certificate = tls.tls_certificate
    assert certificate is not None
    with serving(tls, own=tiny_bundle.path) as running:
        trusted = ssl.create_default_context(cafile=str(certificate))
        assert httpx.get(f"https://{running.http}/v2", verify=trusted).status_code == 200
        with pytest.raises(httpx.TransportError):
            httpx.get(f"http://{running.http}/v2")
        rpc = tritonclient.grpc.InferenceServerClient(
            running.grpc, ssl=True, root_certificates=str(certificate)
        )
        with rpc:
            assert rpc.is_server_ready()


@pytest.mark.parametrize("which", ["http", "grpc"])
def test_a_port_that_is_taken_is_said_before_anything_is_loaded(which: str, own_bundle: Path) -> None:
    weights = next(path for path in (own_bundle / "graphs").iterdir() if path.suffix == ".bin")
    weights.write_bytes(bytes(weights.stat().st_size))  # loading it would fail: BundleError
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        ports = {"http_port": port} if which == "http" else {"grpc_port": port}
        with pytest.raises(UsageError, match=f"{which.upper() if which == 'http' else 'gRPC'} cannot listen"):
            _started(SETTINGS.replace(**ports), own_bundle)
    with pytest.raises(BundleError, match="has changed"):
        _started(SETTINGS, own_bundle)


def test_the_command_says_which_port_is_taken() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        program = ["-c", "from saccade.cli import main; main()", "serve", "digits-stvit", "--json"]
        child = subprocess.run(
            [sys.executable, *program, "--http-port", port, "--no-grpc"], capture_output=True, text=True
        )
    assert child.returncode == 2, child.stderr
    error = json.loads(child.stdout)["error"]
    assert error["type"] == "UsageError"
    assert f"127.0.0.1:{port}" in error["message"]


def _started(settings: ServerSettings, bundle: Path) -> None:
    with serving(settings, own=bundle):
        pass


def test_metrics_are_what_prometheus_reads_and_triton_calls_them(
    own: tuple[Running, httpx.Client, Path],
) -> None:
    _, client, _ = own
    logits(client)
    client.post(INFER, json=body(rows=3))
    assert client.post(INFER, json={"inputs": []}).status_code == 422
    wrong = body()
    wrong["inputs"][0]["name"] = "picture"
    assert client.post(INFER, json=wrong).status_code == 422
    text = client.get("/metrics").text
    # This parser puts _total behind counters that lack it; Prometheus takes names as they are.
    found = {
        (
            sample.name.removesuffix("_total"),
            sample.labels.get("reason") or sample.labels.get("le"),
        ): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    assert found["nv_inference_request_success", None] == 2
    assert found["nv_inference_request_failure", "OTHER"] == 1
    assert found["nv_inference_count", None] == 4
    assert found["nv_inference_exec_count", None] == 2
    assert found["saccade_batch_rows_bucket", "1"] == 1
    assert found["saccade_batch_rows_bucket", "4"] == 2
    assert found["nv_inference_pending_request_count", None] == 0
    assert found["nv_inference_compute_infer_duration_us", None] > 0
    assert 20e6 < found["process_resident_memory_bytes", None] < 4e9
    assert 'engine="onnxruntime"' in text


def test_spans_hang_under_the_callers_trace(tiny_bundle: Bundle) -> None:
    program = """
import sys, httpx
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from tests.sdk.serving.conftest import SETTINGS, serving
exporter, provider = InMemorySpanExporter(), TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(exporter))
trace.set_tracer_provider(provider)
with serving(SETTINGS.replace(tracing=True, grpc_port=None), own=sys.argv[1]) as running:
    parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    httpx.get(f"http://{running.http}/v2", headers={"traceparent": parent})
(span,) = exporter.get_finished_spans()
print(span.name, format(span.context.trace_id, "032x"), format(span.parent.span_id, "016x"))
"""
    root = Path(__file__).resolve().parents[3]
    child = subprocess.run(
        [sys.executable, "-c", program, str(tiny_bundle.path)], capture_output=True, text=True, cwd=root
    )
    assert child.stdout.split() == ["GET", "/v2", "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"], (
        child.stderr
    )
