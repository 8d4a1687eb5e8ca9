"""How a server stops."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from pathlib import Path
from queue import Queue
from typing import Any

import numpy as np
import tritonclient.grpc
import uvloop
from tests.sdk.serving.conftest import SETTINGS, serving

from saccade.serving.server import Server
from saccade.serving.settings import ServerSettings


def test_connections_without_tls_do_not_stop_a_server_from_stopping(
    tls: ServerSettings, own_bundle: Path
) -> None:
    """Those that the kernel has taken and nobody has accepted yet: one is silent, one gone, one lost."""

    async def main() -> None:
        server = Server(tls.replace(grpc_port=None, drain_s=2), {"own": own_bundle})
        await server.listen()
        assert server._http is not None
        for each in server._http.servers:
            each.close()  # as the drain does first: from here on nobody accepts
        silent, gone, lost = (socket.create_connection(("127.0.0.1", server.http_port)) for _ in range(3))
        gone.close()
        with silent, lost:
            lost.sendall(b"GET / HTTP/1.1\r\n\r\n")
            await server.drain()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())


def asked(client: tritonclient.grpc.InferenceServerClient, value: float) -> None:
    image = np.full((1, 3, 32, 32), value, np.float32)
    given = tritonclient.grpc.InferInput("image", image.shape, "FP32")
    given.set_data_from_numpy(image)
    client.async_stream_infer("own", [given], request_id=str(value))


def test_an_idle_stream_is_told_to_go_elsewhere(own_bundle: Path) -> None:
    heard: Queue[Any] = Queue()
    with serving(SETTINGS.replace(drain_s=20), own=own_bundle) as running:
        client = tritonclient.grpc.InferenceServerClient(running.grpc)
        client.start_stream(lambda result, error: heard.put((result, error)))
        asked(client, 1.0)
        assert heard.get(timeout=30)[1] is None
        begun = time.monotonic()
    assert time.monotonic() - begun < 5
    _, error = heard.get(timeout=30)
    assert error.status() == "StatusCode.UNAVAILABLE"
    assert "open another stream" in error.message()
    client.close()


def test_a_streams_requests_are_answered_before_it_ends(own_bundle: Path) -> None:
    """One is in the engine when the server is told to stop, one behind it, and a third comes then."""
    heard: Queue[Any] = Queue()
    opened, entered = threading.Event(), threading.Semaphore(0)
    with serving(SETTINGS.replace(drain_s=20), own=own_bundle) as running:
        server = running.server
        engine = server.repository.model("own")[1].engines["model"]

        def wait_then_run(feeds: Any) -> Any:
            entered.release()
            assert opened.wait(30)
            return engine.engine.run(feeds)

        engine.batcher._run = wait_then_run
        client = tritonclient.grpc.InferenceServerClient(running.grpc)
        client.start_stream(lambda result, error: heard.put((result, error)))
        asked(client, 1.0)
        asked(client, 2.0)
        assert entered.acquire(timeout=30)

        def while_it_drains() -> None:
            while not server.repository.draining:
                time.sleep(0.01)
            asked(client, 3.0)
            time.sleep(1)  # longer than a stream may be silent
            opened.set()

        draining = threading.Thread(target=while_it_drains)
        draining.start()
    draining.join()
    answers = [heard.get(timeout=30) for _ in range(3)]
    assert [error for _, error in answers] == [None] * 3
    assert [result.get_response().id for result, _ in answers] == ["1.0", "2.0", "3.0"]
    assert heard.get(timeout=30)[1].status() == "StatusCode.UNAVAILABLE"
    client.close()


def test_a_stream_that_never_rests_is_ended(own_bundle: Path) -> None:
    errors: Queue[Any] = Queue()
    answered = threading.Semaphore(0)
    with serving(SETTINGS.replace(drain_s=2), own=own_bundle) as running:
        client = tritonclient.grpc.InferenceServerClient(running.grpc)

        def ask_again(result: Any, error: Any) -> None:
            if error is not None:
                return errors.put(error)
            answered.release()
            asked(client, 1.0)

        client.start_stream(ask_again)
        asked(client, 1.0)
        assert answered.acquire(timeout=30)
        begun = time.monotonic()
    assert time.monotonic() - begun < 2
    assert errors.get(timeout=30).status() == "StatusCode.UNAVAILABLE"
    client.close()
