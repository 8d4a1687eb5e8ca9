"""A real server on free ports, in a thread of the test's process, and small bundles for it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
import pytest
import uvloop
from tests import tiny

from saccade.bundle import Bundle
from saccade.serving.server import Server
from saccade.serving.settings import ServerSettings

SETTINGS = ServerSettings(http_port=0, grpc_port=0, threads=1, shared_memory=True, drain_s=10)


class Running:
    """A server that answers, with what a test needs to reach it and to look inside."""

    def __init__(self, server: Server, loop: asyncio.AbstractEventLoop) -> None:
        self.server, self._loop = server, loop
        self.http, self.grpc = f"127.0.0.1:{server.http_port}", f"127.0.0.1:{server.grpc_port}"

    def do(self, coroutine: Any) -> Any:
        """The result of a coroutine on the server's loop."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(60)


@contextlib.contextmanager
def serving(settings: ServerSettings = SETTINGS, **bundles: str | Path) -> Iterator[Running]:
    """A server of `bundles`, ready; drained in the end."""
    started: Any = threading.Event()
    found: dict[str, Any] = {}

    async def main() -> None:
        stop = asyncio.Event()
        server = Server(settings, bundles)
        await server.listen()
        try:
            await server.repository.load_all()
            found.update(server=server, loop=asyncio.get_running_loop(), stop=stop)
            started.set()
            await stop.wait()
        finally:
            await server.drain()

    def thread() -> None:
        try:
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                runner.run(main())
        except BaseException as error:  # raised again where the test waits
            found["error"] = error
        finally:
            started.set()

    worker = threading.Thread(target=thread)
    worker.start()
    started.wait(60)
    try:
        if "error" in found:
            raise found["error"]
        yield Running(found["server"], found["loop"])
    finally:
        if "loop" in found and worker.is_alive():
            found["loop"].call_soon_threadsafe(found["stop"].set)
        worker.join(60)
    if "error" in found:
        raise found["error"]


class Served:
    """The process, and where it answers."""

    def __init__(self, process: subprocess.Popen[str], port: int, grpc_port: int) -> None:
        self.process, self.port, self.grpc_port = process, port, grpc_port
        self.url = f"http://127.0.0.1:{port}"

    def resident(self) -> int:
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")


@contextlib.contextmanager
def served(bundle: Path, *options: str, log: IO[str] | None = None) -> Iterator[Served]:
    command = [
        sys.executable,
        "-c",
        "from saccade.cli import main; main()",
        "serve",
        f"tiny={bundle}",
        "--json",
    ]
    ports = ["--threads", "1", "--http-port", "0", "--grpc-port", "0", "--log-level", "error"]
    process = subprocess.Popen([*command, *ports, *options], stdout=subprocess.PIPE, stderr=log, text=True)
    try:
        assert process.stdout is not None
        told = json.loads(process.stdout.readline())
        yield Served(process, told["http_port"], told["grpc_port"])
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            assert process.wait(40) == 0
    finally:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


@pytest.fixture(scope="module")
def running(tiny_bundle: Bundle) -> Iterator[Running]:
    """The small classifier under the name "tiny"."""
    with serving(tiny=tiny_bundle.path) as server:
        yield server


@pytest.fixture
def own_bundle(tmp_path: Path) -> Path:
    """A bundle that a test may spoil."""
    return tiny.write_bundle(tmp_path / "own").path


@pytest.fixture
def image() -> np.ndarray[Any, Any]:
    """What the small classifier's graph takes: (2, 3, 32, 32) float32."""
    return np.random.default_rng(5).standard_normal((2, 3, 32, 32)).astype(np.float32)


@pytest.fixture
def tls(tmp_path: Path) -> ServerSettings:
    """Settings with a certificate for this machine."""
    if shutil.which("openssl") is None:
        pytest.skip("no openssl here to make a certificate")
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    subprocess.run(
        [
            "openssl",
            "req",
            "-x509",
            "-newkey",
            "rsa:2048",
            "-nodes",
            "-days",
            "1",
            "-subj",
            "/CN=localhost",
            "-addext",
            "subjectAltName=DNS:localhost,IP:127.0.0.1",
            "-keyout",
            key,
            "-out",
            certificate,
        ],
        check=True,
        capture_output=True,
    )
    return SETTINGS.replace(tls_certificate=certificate, tls_key=key)
