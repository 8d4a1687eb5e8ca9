"""`saccade serve` as a process of its own, under load: nothing accepted is lost, nothing grows."""

from __future__ import annotations

import asyncio
import json
import signal
import time
from collections import Counter
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import httpx
import numpy as np
import pytest
from tests.sdk.serving.conftest import Served, served
from tests.sdk.serving.test_faults import rpc_request
from tests.sdk.serving.test_operations import body

import saccade
from saccade.bundle import Bundle

INFER = "/v2/models/tiny/infer"
BODY = json.dumps(body()).encode()
HEAD = f"POST {INFER} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(BODY)}\r\n\r\n".encode()


async def answer(reader: asyncio.StreamReader) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of the next answer on a connection."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:] if line)}
    return int(head[0].split()[1]), headers, await reader.readexactly(int(headers["content-length"]))


async def ask_until(port: int, over: asyncio.Event, counts: Counter[str], expected: bytes | None) -> None:
    """Ask on one connection after the other. "lost": a connection that took a request and gave no answer."""
    while not over.is_set():
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            counts["refused"] += 1
            return
        closing = False
        while not (closing or over.is_set()):
            try:
                writer.write(HEAD + BODY)
                await writer.drain()
                status, headers, content = await answer(reader)
            except (OSError, asyncio.IncompleteReadError):
                counts["lost"] += 1
                break
            counts[str(status)] += 1
            if status == 200 and expected is not None and content != expected:
                counts["wrong"] += 1
            closing = headers.get("connection") == "close"
        writer.close()


async def load(port: int, clients: int, seconds: float, expected: bytes | None = None) -> Counter[str]:
    counts: Counter[str] = Counter()
    over = asyncio.Event()
    tasks = [asyncio.create_task(ask_until(port, over, counts, expected)) for _ in range(clients)]
    await asyncio.sleep(seconds)
    over.set()
    await asyncio.wait_for(asyncio.gather(*tasks), 60)
    return counts


@pytest.mark.slow
def test_sigterm_under_load_loses_no_accepted_request(tiny_bundle: Bundle) -> None:
    async def main(server: Served) -> Counter[str]:
        asking = asyncio.create_task(load(server.port, 16, 6))
        await asyncio.sleep(2)
        server.process.send_signal(signal.SIGTERM)
        return await asking

    with served(tiny_bundle.path) as server:
        counts = asyncio.run(main(server))
        assert server.process.wait(30) == 0
    assert counts["200"] > 100
    assert counts["refused"] == 16
    assert set(counts) == {"200", "refused"}, counts


@pytest.mark.slow
def test_sigterm_answers_every_call_that_was_begun(tiny_bundle: Bundle, tmp_path: Path) -> None:
    """gRPC refuses what arrives in the moment of closing, unbegun; the server's log says what it began."""
    refusals = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED}
    answered: list[bytes] = []

    async def ask_forever(call: Any) -> None:
        while True:
            answered.append(await call(rpc_request(), timeout=30))

    async def client(port: int) -> None:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await ask_forever(channel.unary_unary("/inference.GRPCInferenceService/ModelInfer"))
        assert caught.value.code() in refusals

    async def main(server: Served) -> None:
        clients = [asyncio.create_task(client(server.grpc_port)) for _ in range(8)]
        await asyncio.sleep(2)
        server.process.send_signal(signal.SIGTERM)
        await asyncio.wait_for(asyncio.gather(*clients), 60)

    path = tmp_path / "log"
    with path.open("w") as log, served(tiny_bundle.path, "--log-level", "info", log=log) as server:
        asyncio.run(main(server))
        assert server.process.wait(30) == 0
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    begun = Counter(line["status"] for line in lines if line.get("method") == "ModelInfer")
    assert begun == {"OK": len(answered)}
    assert len(answered) > 20


@pytest.mark.slow
def test_streams_that_are_open_do_not_hold_up_sigterm(tiny_bundle: Bundle, tmp_path: Path) -> None:
    """One has never asked, one has an answer, and the client of one has gone."""

    async def main(server: Served) -> None:
        method = "/inference.GRPCInferenceService/ModelStreamInfer"
        async with (
            grpc.aio.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel,
            grpc.aio.insecure_channel(f"127.0.0.1:{server.grpc_port}") as going,
        ):
            silent, asking, gone = (
                each.stream_stream(method)(wait_for_ready=True) for each in (channel, channel, going)
            )
            for stream in (asking, gone):
                await stream.write(rpc_request())
                assert await stream.read()
            gone.cancel()
            server.process.send_signal(signal.SIGTERM)
            for stream in (silent, asking):
                assert await asyncio.wait_for(stream.code(), 10) == grpc.StatusCode.UNAVAILABLE

    path = tmp_path / "log"
    with path.open("w") as log, served(tiny_bundle.path, "--log-level", "info", log=log) as server:
        asyncio.run(main(server))
        assert server.process.wait(10) == 0
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["status"] for line in lines if line.get("method") == "ModelStreamInfer"] == ["OK", "OK"]
    assert {line["level"] for line in lines} == {"info"}


@pytest.mark.slow
def test_reloads_under_load_drop_nothing_and_answer_the_same(tiny_bundle: Bundle) -> None:
    async def main(server: Served) -> Counter[str]:
        async with httpx.AsyncClient(base_url=server.url, timeout=60) as client:
            expected = (await client.post(INFER, content=BODY)).content
            asking = asyncio.create_task(load(server.port, 1, 8, expected))
            for _ in range(10):
                assert (await client.post("/v2/repository/models/tiny/load")).status_code == 200
            return await asking

    with served(tiny_bundle.path) as server:
        counts = asyncio.run(main(server))
    assert counts["200"] > 100
    assert set(counts) == {"200"}, counts


@pytest.mark.slow
def test_a_queue_that_overflows_for_half_a_minute(tiny_bundle: Bundle) -> None:
    with served(tiny_bundle.path, "--max-batch", "1", "--max-queue", "2") as server:
        asyncio.run(load(server.port, 64, 5))
        before = server.resident()
        counts = asyncio.run(load(server.port, 64, 30))
        time.sleep(1)
        after = server.resident()
        assert httpx.post(f"{server.url}{INFER}", content=BODY).status_code == 200
    assert set(counts) == {"200", "503"}, counts
    assert min(counts.values()) > 100, counts
    assert after < before * 1.05


@pytest.mark.slow
def test_a_thousand_connections(tiny_bundle: Bundle) -> None:
    async def main(server: Served) -> list[int]:
        streams = [await asyncio.open_connection("127.0.0.1", server.port) for _ in range(1000)]
        for _, writer in streams:
            writer.write(HEAD + BODY)
        statuses = [(await answer(reader))[0] for reader, _ in streams]
        for _, writer in streams:
            writer.close()
        return statuses

    with served(tiny_bundle.path, "--max-queue", "1000") as server:
        sizes = []
        for _ in range(3):
            statuses = asyncio.run(main(server))
            assert Counter(statuses) == {200: 1000}
            time.sleep(0.5)
            sizes.append(server.resident())
        assert sizes[2] < sizes[0] * 1.05, sizes


@pytest.mark.slow
def test_faults_leave_no_memory_behind(tiny_bundle: Bundle) -> None:
    """Clients that break off, send nonsense, or ask for what is not there; then the memory of before."""

    async def storm(server: Served) -> None:
        async with httpx.AsyncClient(base_url=server.url, timeout=60) as client:
            for number in range(100):
                _, writer = await asyncio.open_connection("127.0.0.1", server.port)
                writer.write(HEAD + BODY[: 1000 + number])
                await writer.drain()
                writer.close()
                assert (await client.post(INFER, content=BODY[:-1])).status_code == 422
                assert (await client.post(f"/v2/models/m{number}/infer", content=BODY)).status_code == 404
                picture = await client.post("/v1/models/tiny/predict", content=BODY)
                assert picture.status_code == 422

    with served(tiny_bundle.path) as server:
        asyncio.run(storm(server))
        before = server.resident()
        for _ in range(3):
            asyncio.run(storm(server))
        assert server.resident() < before * 1.05


@pytest.mark.slow
def test_tagged_answers_are_never_mixed_up(tiny_bundle: Bundle) -> None:
    """Every request has rows of its own; each answer is held to what the engine gives for these rows."""
    rows = np.random.default_rng(0).standard_normal((64, 3, 32, 32)).astype(np.float32)
    with saccade.load(tiny_bundle.path, threads=1) as predictor:
        expected = predictor.engine.run({"image": rows})["logits"]

    async def client(port: int, seed: int) -> list[bool]:
        own = np.random.default_rng(seed)
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        right = []
        for _ in range(150):
            chosen = own.integers(0, 64, own.integers(1, 9))
            data = rows[chosen].tobytes()
            tensor = {"name": "image", "datatype": "FP32", "shape": [len(chosen), 3, 32, 32]}
            head = json.dumps({"inputs": [tensor | {"parameters": {"binary_data_size": len(data)}}]}).encode()
            lengths = f"Inference-Header-Content-Length: {len(head)}\r\nContent-Length: {len(head + data)}"
            writer.write(f"POST {INFER} HTTP/1.1\r\nHost: x\r\n{lengths}\r\n\r\n".encode() + head + data)
            found = json.loads((await answer(reader))[2])["outputs"][0]
            logits = np.reshape(found["data"], found["shape"])
            right.append(np.allclose(logits, expected[chosen], rtol=1e-4, atol=1e-4))
        writer.close()
        return right

    async def main(port: int) -> list[list[bool]]:
        return await asyncio.gather(*(client(port, seed) for seed in range(16)))

    with served(tiny_bundle.path) as server:
        found = asyncio.run(main(server.port))
    assert sum(map(len, found)) == 16 * 150
    assert all(map(all, found))
