"""The processes of the serving benchmark: our server, its peers, and one that does nothing."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from saccade.benchmarks.serving_load import Connection, plain_request
from saccade.benchmarks.serving_peers import PROGRAMS
from saccade.benchmarks.serving_ways import FLOOR

__all__ = ["floor", "once", "ours", "peer", "pinned"]

_ALLOWED = sorted(os.sched_getaffinity(0))


def pinned(*processors: int) -> Callable[[], None]:
    """What binds the process that calls it to some of the processors, the first of which is 0."""
    return lambda: os.sched_setaffinity(0, {_ALLOWED[each % len(_ALLOWED)] for each in processors})


@contextlib.contextmanager
def ours(
    bundle: str | Path, *options: str, processors: tuple[int, ...] = (0,)
) -> Iterator[tuple[subprocess.Popen[str], int, int]]:
    """`saccade serve`, ready: the process, its HTTP and its gRPC port."""
    command = [sys.executable, "-c", "from saccade.cli import main; main()", "serve", f"model={bundle}"]
    ports = ["--http-port", "0", "--grpc-port", "0", "--json", "--threads", "1", "--log-level", "error"]
    process = subprocess.Popen(
        [*command, *ports, *options],
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=pinned(*processors),
    )
    try:
        assert process.stdout is not None
        told = json.loads(process.stdout.readline())
        yield process, told["http_port"], told["grpc_port"]
    finally:
        process.terminate()
        process.wait()


@contextlib.contextmanager
def floor() -> Iterator[tuple[int, int]]:
    """The HTTP and the gRPC port of a server that does nothing."""
    with subprocess.Popen(
        [sys.executable, "-c", FLOOR], stdout=subprocess.PIPE, text=True, preexec_fn=pinned(0)
    ) as process:
        assert process.stdout is not None
        http_port, grpc_port = map(int, process.stdout.readline().split())
        try:
            yield http_port, grpc_port
        finally:
            process.kill()


@contextlib.contextmanager
def peer(name: str, python: Path, model: Path) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """Another server, answering; its process and port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder, "peer.py")
        program.write_text(PROGRAMS[name], encoding="utf-8")
        quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        process = subprocess.Popen(
            [python, program, str(port), model], start_new_session=True, preexec_fn=pinned(0), **quiet
        )
        try:
            _wait_for(port, process)
            yield process, port
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, 15)
            process.wait(60)


def _wait_for(port: int, process: subprocess.Popen[Any], seconds: float = 120) -> None:
    request = plain_request(b"", "/")
    end = time.monotonic() + seconds
    while time.monotonic() < end and process.poll() is None:
        with contextlib.suppress(OSError, ValueError, asyncio.IncompleteReadError):
            asyncio.run(once(port, request))
            return
        time.sleep(0.5)
    raise RuntimeError(f"{process.args!r} does not answer on port {port}")


async def once(port: int, request: bytes) -> tuple[int, bytes]:
    """The answer on a connection of its own."""
    connection = await Connection.to(port)
    try:
        return await connection.ask(request)
    finally:
        connection.close()
