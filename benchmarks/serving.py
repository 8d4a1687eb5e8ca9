"""The server under load, beside other servers of the same model, and beside the bare engine.

    python -m saccade.benchmarks.serving --peers DIR --install --out benchmarks/results

Servers get the first processor and clients the second, so that neither borrows from the other; the engine has
one thread. Figures: processor time per request (whole process tree) and throughput at concurrency 1, 4, 16
and 64 with a demo model on 602 kB of float32; throughput at 64 over the bare engine's at its best batch,
in alternating rounds, once with the server on the first processor alone and once on both; what a trivial
model's answers take beyond its engine, one at a time, by HTTP, gRPC and shared memory, beside those of a
server that does nothing (the floor); idle memory. With `--answers N` only this: a trivial model is asked for
N answers whose values are known.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from saccade import bundle as bundles
from saccade.benchmarks.serving_load import (
    Connection,
    Load,
    form_request,
    infer_request,
    plain_request,
    press,
    resident_bytes,
)
from saccade.benchmarks.serving_peers import PACKAGES
from saccade.benchmarks.serving_processes import floor, once, ours, peer, pinned
from saccade.benchmarks.serving_ways import trivial_bundle, ways

DEMO = "digits-stvit"
CONCURRENCIES = (1, 4, 16, 64)
BATCHES = (1, 2, 4, 8)
INFER = "/v2/models/model/infer"
SHARED = "saccade-benchmark"

# One line in: rows and seconds (0: once). One line out: rows per second, processor ms per row.
BARE = """
import sys, time, numpy as np, saccade
before = int(open("/proc/self/statm").read().split()[1])
with saccade.load(sys.argv[1], threads=1) as predictor:
    predictor(np.zeros((224, 224, 3), np.uint8))
    grown = int(open("/proc/self/statm").read().split()[1]) - before
    print(grown * 4096, flush=True)
    for line in sys.stdin:
        rows, seconds = line.split()
        feeds = {"image": np.random.default_rng(0).random((int(rows), 3, 224, 224), np.float32)}
        count, begun, cpu = 0, time.perf_counter(), time.process_time()
        while time.perf_counter() < begun + float(seconds):
            predictor.engine.run(feeds)
            count += int(rows)
        wall = time.perf_counter() - begun
        print(count / wall, (time.process_time() - cpu) / count * 1e3, flush=True)
"""


async def _loads(port: int, request: bytes, seconds: float, pid: int) -> list[Load]:
    for _ in range(3):
        status, _ = await once(port, request)
        if status != 200:
            raise RuntimeError(f"the server answers {status}")
    return [await press(port, request, clients, seconds, pid) for clients in CONCURRENCIES]


def compare(peers: Path | None, seconds: float) -> dict[str, Any]:
    """Every server at every concurrency, one server after the other."""
    row = np.random.default_rng(0).random((1, 3, 224, 224), np.float32)
    found: dict[str, Any] = {}
    with ours(DEMO) as (process, port, _):
        request = infer_request(row, INFER)
        found["saccade"] = [asdict(each) for each in asyncio.run(_loads(port, request, seconds, process.pid))]
    model = bundles.read(bundles.resolve(DEMO)).graphs["model"].files["source"]
    for name in PACKAGES if peers else ():
        assert peers is not None
        python = peers.expanduser() / name / "bin" / "python"
        request = _peer_request(name, row)
        try:
            with peer(name, python, model) as (server, port):
                loads = asyncio.run(_loads(port, request, seconds, server.pid))
                found[name] = [asdict(each) for each in loads]
        except (OSError, RuntimeError, asyncio.IncompleteReadError) as error:
            found[name] = f"not measured: {error}"
    return found


def _peer_request(name: str, row: np.ndarray[Any, np.dtype[np.float32]]) -> bytes:
    """The tensor as the server reads it."""
    if name == "kserve":
        return infer_request(row, INFER)
    return (
        form_request(row.tobytes(), "/predict") if name == "litserve" else plain_request(row.tobytes(), "/")
    )


def saturation(rounds: int, seconds: float, processors: tuple[int, ...]) -> dict[str, Any]:
    """Throughput at 64 clients over the bare engine's, each at its best batch, in alternating rounds.

    processors: where the server and the bare engine may run; the engine has one thread in both. The best
    batch has the largest median of a few runs, of which each batch has one in turn.
    """
    row = np.random.default_rng(0).random((1, 3, 224, 224), np.float32)
    request = infer_request(row, INFER)
    bare = subprocess.Popen(
        [sys.executable, "-c", BARE, DEMO],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=pinned(*processors),
    )
    assert bare.stdout is not None
    engine_bytes = int(bare.stdout.readline())
    wall, cpu, alone = [], [], []
    with bare, contextlib.ExitStack() as servers:
        rates = _medians(lambda rows: _bare(bare, rows, seconds)[0])
        best = max(rates, key=lambda rows: rates[rows])
        ready = {
            rows: servers.enter_context(ours(DEMO, "--max-batch", str(rows), processors=processors))
            for rows in BATCHES
        }
        idle_bytes = resident_bytes(ready[best][0].pid)

        def press_it(rows: int) -> Load:
            process, port, _ = ready[rows]
            return asyncio.run(press(port, request, 64, seconds, process.pid))

        served = _medians(lambda rows: press_it(rows).per_second)
        best_served = max(served, key=lambda rows: served[rows])
        for _ in range(rounds):
            rate, milliseconds = _bare(bare, best, seconds)
            load = press_it(best_served)
            alone.append(rate)
            wall.append(load.per_second / rate)
            cpu.append(milliseconds / load.cpu_ms_per_request)
    return {
        "bare_per_second_by_batch": {rows: round(rate, 2) for rows, rate in rates.items()},
        "best_batch": best,
        "served_per_second_by_batch": {rows: round(rate, 2) for rows, rate in served.items()},
        "best_served_batch": best_served,
        "bare_per_second": _spread(alone),
        "throughput_over_bare": _spread(wall),
        "bare_cpu_over_cpu": _spread(cpu),
        "idle_mib": round(idle_bytes / 2**20, 1),
        "engine_mib": round(engine_bytes / 2**20, 1),
        "idle_beyond_engine_mib": round((idle_bytes - engine_bytes) / 2**20, 1),
    }


def _medians(measured: Callable[[int], float], runs: int = 3) -> dict[int, float]:
    """By batch; the batches take turns."""
    found = [{rows: measured(rows) for rows in BATCHES} for _ in range(runs)]
    return {rows: statistics.median(each[rows] for each in found) for rows in BATCHES}


def _bare(process: subprocess.Popen[str], rows: int, seconds: float) -> tuple[float, float]:
    assert process.stdin is not None
    assert process.stdout is not None
    print(rows, seconds, file=process.stdin, flush=True)
    rate, milliseconds = map(float, process.stdout.readline().split())
    return rate, milliseconds


def _spread(values: list[float]) -> dict[str, float]:
    low, median, high = statistics.quantiles(values, n=4)
    return {"median": round(median, 3), "low_quartile": round(low, 3), "high_quartile": round(high, 3)}


def added_latency(rounds: int) -> dict[str, Any]:
    """Milliseconds beyond the engine's own run, one request at a time; the ways take turns.

    floor: the same request to a server that does nothing.
    """
    row = np.random.default_rng(0).random((1, 3, 224, 224), np.float32)
    with tempfile.TemporaryDirectory() as folder:
        bundle = trivial_bundle(Path(folder, "trivial"), 224)
        with (
            ours(bundle, "--shared-memory") as (_, http_port, grpc_port),
            ways(bundle, row, http_port, grpc_port, SHARED) as asked,
            floor() as floor_ports,
            ways(bundle, row, *floor_ports, f"{SHARED}-floor") as floors,
        ):
            calls = dict(asked) | {f"{name} floor": floors[name] for name in asked if name != "engine"}
            samples: dict[str, list[float]] = {name: [] for name in calls}
            for count in range(rounds + 20):
                for name, ask in calls.items():
                    begun = time.perf_counter()
                    ask()
                    if count >= 20:
                        samples[name].append((time.perf_counter() - begun) * 1e3)
    median, last = ({n: float(np.percentile(v, at)) for n, v in samples.items()} for at in (50, 99))
    engine = median["engine"]
    return {"engine_ms": round(engine, 3)} | {
        name: {
            "added_median_ms": round(median[name] - engine, 3),
            "added_p99_ms": round(last[name] - engine, 3),
            "floor_median_ms": round(median[f"{name} floor"], 3),
        }
        for name in asked
        if name != "engine"
    }


def tagged(answers: int, clients: int = 32) -> dict[str, Any]:
    """Ask for so many rows, 1 to 8 at a time, whose answers are known: none may be wrong or lost."""
    with tempfile.TemporaryDirectory() as folder:
        bundle = trivial_bundle(Path(folder, "trivial"), 8)
        with ours(bundle, "--max-queue", "4096") as (process, port, _):
            asyncio.run(_ask_tagged(port, answers // 10, clients))
            before = resident_bytes(process.pid)
            begun = time.perf_counter()
            right, wrong = asyncio.run(_ask_tagged(port, answers, clients))
            seconds = time.perf_counter() - begun
            after = resident_bytes(process.pid)
    return {
        "asked": right + wrong,
        "right": right,
        "wrong": wrong,
        "seconds": round(seconds, 1),
        "resident_mib": [round(size / 2**20, 1) for size in (before, after)],
    }


async def _ask_tagged(port: int, answers: int, clients: int) -> tuple[int, int]:
    """Right and wrong answers. The mean of 64 equal whole numbers below 2**17 is exact in float32."""
    taken, right, wrong = 0, 0, 0

    async def client(seed: int) -> None:
        nonlocal taken, right, wrong
        rng, connection = np.random.default_rng(seed), await Connection.to(port)
        while taken < answers:
            rows = int(rng.integers(1, 9))
            taken += rows
            tags = rng.integers(0, 2**17, (rows, 3)).astype(np.float32)
            image = np.broadcast_to(tags[:, :, None, None], (rows, 3, 8, 8))
            status, body = await connection.ask(infer_request(np.ascontiguousarray(image), INFER))
            found = np.frombuffer(body[-tags.nbytes :], np.float32).reshape(tags.shape)
            good = int((found == tags).all(axis=1).sum()) if status == 200 else 0
            right, wrong = right + good, wrong + rows - good
        connection.close()

    await asyncio.gather(*map(client, range(clients)))
    return right, wrong


def measure(peers: Path | None, seconds: float, rounds: int) -> dict[str, Any]:
    """Everything but the tagged answers."""
    return {
        "model": DEMO,
        "servers": compare(peers, seconds),
        "saturation": saturation(rounds, seconds / 2, (0,)),
        "saturation_both_processors": saturation(rounds, seconds / 2, (0, 1)),
        "one_at_a_time": added_latency(400),
    }


def install(peers: Path) -> None:
    """Each peer in an environment of its own."""
    for name, package in PACKAGES.items():
        folder = peers.expanduser() / name
        if not (folder / "bin" / "python").exists():
            subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        pip: list[str | Path] = [folder / "bin" / "python", "-m", "pip", "install", "--quiet"]
        subprocess.run([*pip, *package.split(), "onnxruntime", "numpy"], check=True)


def main() -> None:
    """Measure from the command line, print the record, and keep it where asked."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--peers", type=Path, help="folder of the other servers' environments")
    parser.add_argument("--install", action="store_true", help="make these first")
    parser.add_argument(
        "--seconds",
        type=float,
        default=5.0,
        help="of each server's load; half of it of each turn with the bare engine",
    )
    parser.add_argument(
        "--rounds", type=int, default=15, help="of the comparison with the bare engine, 2 at least"
    )
    parser.add_argument("--answers", type=int, default=0, help="tagged answers to ask for, as 1000000")
    parser.add_argument("--out", type=Path, help="folder for the record")
    arguments = parser.parse_args()
    if arguments.rounds < 2:
        parser.error("--rounds: two at least, for a spread")
    if arguments.install and arguments.peers:
        install(arguments.peers)
    load = os.getloadavg()[0]
    pinned(1)()
    if arguments.answers:
        name, record = "serving_tagged", tagged(arguments.answers)
    else:
        name, record = "serving", measure(arguments.peers, arguments.seconds, arguments.rounds)
    record |= {
        "load_average_before": round(load, 2),  # what else the machine did: latencies want a quiet one
        "date": datetime.now(UTC).date().isoformat(),
        "machine": f"{platform.machine()} {platform.system()} {platform.release()}, {os.cpu_count()} CPUs",
        "versions": {n: version(n) for n in ("saccade", "onnxruntime", "uvicorn", "starlette", "grpcio")},
    }
    text = json.dumps(record, indent=1)
    print(text)
    if arguments.out:
        arguments.out.mkdir(parents=True, exist_ok=True)
        (arguments.out / f"{name}.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
