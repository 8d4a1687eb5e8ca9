"""A client that costs little, and what the kernel knows of a server's processes."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "Connection",
    "Load",
    "cpu_seconds",
    "form_request",
    "infer_request",
    "plain_request",
    "press",
    "resident_bytes",
]

_TICKS = os.sysconf("SC_CLK_TCK")


def infer_request(array: NDArray[np.float32], path: str, more: str = "") -> bytes:
    """A whole HTTP request of the Open Inference Protocol, with the tensor in binary both ways.

    more: further lines of its head.
    """
    tensor = {
        "name": "image",
        "datatype": "FP32",
        "shape": list(array.shape),
        "parameters": {"binary_data_size": array.nbytes},
    }
    head = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
    more += f"Inference-Header-Content-Length: {len(head)}\r\n"
    return plain_request(head + array.tobytes(), path, more)


def form_request(body: bytes, path: str) -> bytes:
    """A POST with a body as the file of a form."""
    head = b'--x\r\nContent-Disposition: form-data; name="file"; filename="tensor"\r\n\r\n'
    return plain_request(head + body + b"\r\n--x--\r\n", path, kind="multipart/form-data; boundary=x")


def plain_request(body: bytes, path: str, more: str = "", kind: str = "application/octet-stream") -> bytes:
    """A POST with any body."""
    lines = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {kind}\r\n{more}"
    return f"{lines}Content-Length: {len(body)}\r\n\r\n".encode() + body


class Connection:
    """One kept connection. `ask` gives the status and the body."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    @classmethod
    async def to(cls, port: int) -> Connection:
        return cls(*await asyncio.open_connection("127.0.0.1", port, limit=2**20))

    async def ask(self, request: bytes) -> tuple[int, bytes]:
        self._writer.write(request)
        head = (await self._reader.readuntil(b"\r\n\r\n")).lower()
        begin = head.index(b"\r\ncontent-length:") + 17
        length = int(head[begin : head.index(b"\r", begin)])
        return int(head[9:12]), await self._reader.readexactly(length)

    def close(self) -> None:
        self._writer.close()


@dataclass(frozen=True, slots=True)
class Load:
    """What a server did for `concurrency` clients that each wait for their answer."""

    concurrency: int
    requests: int
    failures: int
    per_second: float
    cpu_ms_per_request: float
    median_ms: float
    p99_ms: float


async def press(port: int, request: bytes, concurrency: int, seconds: float, pid: int) -> Load:
    """Keep `concurrency` requests under way, and count for so long once as many are answered: neither the
    rush of the beginning nor the end, when there are fewer, is in it. pid: the server, counted with its
    descendants."""
    latencies: list[float] = []
    failed: list[bool] = []
    stopping = False
    connections = [await Connection.to(port) for _ in range(concurrency)]

    async def client(connection: Connection) -> None:
        while not stopping:
            asked = time.perf_counter()
            status, _ = await connection.ask(request)
            latencies.append(time.perf_counter() - asked)
            failed.append(status != 200)

    clients = [asyncio.ensure_future(client(connection)) for connection in connections]
    while len(latencies) < concurrency and not any(each.done() for each in clients):
        await asyncio.sleep(0.005)
    first, cpu, begun = len(latencies), cpu_seconds(pid), time.perf_counter()
    await asyncio.wait(clients, timeout=seconds, return_when=asyncio.FIRST_EXCEPTION)
    counted, failures = latencies[first:], sum(failed[first:])
    wall, used = time.perf_counter() - begun, cpu_seconds(pid) - cpu
    stopping = True
    await asyncio.gather(*clients)
    for connection in connections:
        connection.close()
    if not counted:
        raise RuntimeError(f"no answer within {seconds:g} s")
    milliseconds = np.array(counted) * 1e3
    return Load(
        concurrency=concurrency,
        requests=len(counted),
        failures=failures,
        per_second=round(len(counted) / wall, 2),
        cpu_ms_per_request=round(used / len(counted) * 1e3, 3),
        median_ms=round(float(np.median(milliseconds)), 3),
        p99_ms=round(float(np.percentile(milliseconds, 99)), 3),
    )


def cpu_seconds(pid: int) -> float:
    """Processor time of a process and its living descendants."""
    return sum(_fields(each, lambda stat: (int(stat[11]) + int(stat[12])) / _TICKS) for each in _tree(pid))


def resident_bytes(pid: int) -> int:
    """Resident memory of a process and its descendants; what they share is counted for each."""
    page = os.sysconf("SC_PAGE_SIZE")
    return int(sum(_fields(each, lambda stat: int(stat[21]) * page) for each in _tree(pid)))


def _tree(pid: int) -> list[int]:
    children: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*"):
        parent = int(_fields(int(path.name), lambda stat: int(stat[1])))
        children.setdefault(parent, []).append(int(path.name))
    found, queue = [], [pid]
    while queue:
        found.append(queue.pop())
        queue += children.get(found[-1], [])
    return found


def _fields(pid: int, value: Callable[[list[str]], Any]) -> float:
    """A value of /proc/PID/stat after the name, from the state on; 0 for a process that has ended."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    except OSError:
        return 0.0
    return float(value(text[text.rindex(")") + 2 :].split()))
