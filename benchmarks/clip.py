"""CLIP's towers beside open_clip's, and exact search beside NumPy and faiss, on one CPU thread.

    python -m saccade.benchmarks.clip towers mobileclip_s2 clip_vit_b_16 --out results
    python -m saccade.benchmarks.clip search --out results

Everything that is compared runs in one process, in turns, with random weights at full size. What is measured
is the processor time of the process, which other work on the machine hardly changes; the load is recorded.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from saccade.engines.engine import EngineOptions, open_engine
from saccade.engines.export import export_graph
from saccade.engines.inputs import Input, picture
from saccade.models import create, zoo
from saccade.models.clip import Towers
from saccade.models.deploy import merge

RECORD = "clip.json"
OPEN_CLIP = {
    "mobileclip_s1": "MobileCLIP-S1",
    "mobileclip_s2": "MobileCLIP-S2",
    "mobileclip_b": "MobileCLIP-B",
    "clip_vit_b_16": "ViT-B-16",
}
Run = Callable[[], Any]


@dataclass(frozen=True, slots=True)
class Latency:
    """Processor time of one run: `what` is measured as `how`, at `batch` pictures, texts or queries."""

    what: str
    how: str
    batch: int
    median_ms: float
    least_ms: float
    rounds: int
    load: float
    date: str


def interleaved(what: str, batch: int, runs: Mapping[str, Run], rounds: int) -> list[Latency]:
    """Time each of `runs` once per round, in turns, after two rounds that do not count."""
    taken: dict[str, list[float]] = {how: [] for how in runs}
    for turn in range(rounds + 2):
        for how, run in runs.items():
            begin = time.process_time()
            run()
            if turn >= 2:
                taken[how].append(1e3 * (time.process_time() - begin))
    today, load = datetime.now(UTC).date().isoformat(), round(os.getloadavg()[0], 1)
    return [
        Latency(what, how, batch, round(statistics.median(each), 2), round(min(each), 2), rounds, load, today)
        for how, each in taken.items()
    ]


# --- towers ----------------------------------------------------------------------------------------------


def measure_towers(name: str, batches: Sequence[int], rounds: int, *, compiled: bool = True) -> list[Latency]:
    """Both towers of `name`: the SDK's graphs, and open_clip's module eager, compiled, plainly exported."""
    import open_clip

    torch.manual_seed(0)
    theirs = open_clip.create_model(OPEN_CLIP[name]).eval()
    ours = create(name, checkpoint=theirs.state_dict(), official_stem=False)
    assert isinstance(ours, Towers)
    side = zoo.entry(name).card.preprocessing.input_size_hw
    tokens = Input("tokens", ("batch", 77), draw=_tokens)
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        for tower, module, twin, given in (
            ("image", merge(Towers(ours.trunk)), _Call(theirs, "encode_image").eval(), picture(side)),
            ("text", ours.text, _Call(theirs, "encode_text").eval(), tokens),
        ):
            folder = Path(scratch) / tower
            folder.mkdir()
            rows += _measure_tower(f"{name} {tower}", module, twin, given, folder, batches, rounds, compiled)
    return rows


def _measure_tower(
    what: str,
    module: Any,
    twin: torch.nn.Module,
    given: Input,
    folder: Path,
    batches: Sequence[int],
    rounds: int,
    compiled: bool,
) -> list[Latency]:
    import onnx

    onnx.save(export_graph(module, [given], outputs=("embeddings",)), folder / "saccade.onnx")
    _plain_export(twin, given, folder / "plain.onnx")
    rows = []
    options = EngineOptions(threads=1)
    with (
        open_engine({"source": folder / "saccade.onnx"}, "onnxruntime", options) as engine,
        open_engine({"source": folder / "plain.onnx"}, "onnxruntime", options) as plain,
    ):
        for batch in batches:
            values = given.sample(np.random.default_rng(0), batch)
            feeds, tensor = {given.name: values}, torch.from_numpy(values)
            runs: dict[str, Run] = {
                "saccade, ONNX Runtime": partial(engine.run, feeds),
                "open_clip, plain ONNX export": partial(plain.run, feeds),
                "open_clip, eager": partial(twin, tensor),
            }
            if compiled:
                runs["open_clip, torch.compile"] = partial(torch.compile(twin, dynamic=False), tensor)
            with torch.inference_mode():
                _require_agreement(what, engine.run(feeds)["embeddings"], twin(tensor).numpy())
                rows += interleaved(what, batch, runs, rounds)
            torch.compiler.reset()
    return rows


class _Call(torch.nn.Module):
    """One tower of open_clip's model as a module."""

    def __init__(self, model: torch.nn.Module, method: str) -> None:
        super().__init__()
        self.model = model
        self.method = method

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        embeddings: torch.Tensor = getattr(self.model, self.method)(values)
        return embeddings


def _plain_export(module: torch.nn.Module, given: Input, path: Path) -> None:
    """As PyTorch's documentation has it: the dynamo exporter, a free batch, nothing merged beforehand."""
    sample = torch.from_numpy(given.sample(np.random.default_rng(0), 2))
    program = torch.onnx.export(
        module,
        (sample,),
        dynamo=True,
        input_names=[given.name],
        output_names=["embeddings"],
        dynamic_shapes=({0: torch.export.Dim.DYNAMIC},),
        verbose=False,
    )
    assert program is not None
    program.save(path)


def _tokens(rng: np.random.Generator, shape: tuple[int, ...]) -> Any:
    tokens = rng.integers(1, 49406, shape)
    tokens[:, 0], tokens[:, 20], tokens[:, 21:] = 49406, 49407, 0
    return tokens


def _require_agreement(what: str, ours: Any, theirs: Any) -> None:
    """Comparing speeds of different functions would say nothing."""
    largest = float(np.abs(ours - theirs).max() / np.abs(theirs).max())
    if not largest < 1e-3:
        raise SystemExit(f"{what}: the two towers differ by {largest:.2g} of the largest value")


# --- search ----------------------------------------------------------------------------------------------


def measure_search(count: int, width: int, batches: Sequence[int], rounds: int, k: int = 10) -> list[Latency]:
    """The `k` nearest of `count` vectors: the SDK, NumPy's full sort and faiss's flat index. Same answers."""
    import faiss

    faiss.omp_set_num_threads(1)
    rng = np.random.default_rng(0)
    vectors = _unit(rng.standard_normal((count, width), np.float32))
    index = faiss.IndexFlatIP(width)
    index.add(vectors)
    rows = []
    for batch in batches:
        noise = rng.standard_normal((batch, width), np.float32)
        queries = _unit(vectors[:batch] + _unit(noise))
        runs: dict[str, Run] = {
            "saccade": partial(_exact, vectors, queries, k),
            "NumPy argsort": partial(_sorted, vectors, queries, k),
            "faiss flat": partial(_flat, index, queries, k),
        }
        answers = {how: run() for how, run in runs.items()}
        for how, places in answers.items():
            if not np.array_equal(places, answers["saccade"]):
                raise SystemExit(f"{how} finds other rows than saccade")
        rows += interleaved(f"{k} of {count} x {width}", batch, runs, rounds)
    return rows


def _exact(vectors: Any, queries: Any, k: int) -> Any:
    from saccade.gallery import nearest

    return nearest.exact(vectors, queries, k)[0]


def _sorted(vectors: Any, queries: Any, k: int) -> Any:
    return np.argsort(-(queries @ vectors.T), axis=1, kind="stable")[:, :k]


def _flat(index: Any, queries: Any, k: int) -> Any:
    return index.search(queries, k)[1]


def _unit(rows: Any) -> Any:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


# --- the command -----------------------------------------------------------------------------------------


def main() -> None:
    """Measure from the command line; a line per figure goes to stdout, the record where asked."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("towers", "search"))
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"models (default: {', '.join(OPEN_CLIP)})")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    parser.add_argument("--vectors", type=int, default=100_000)
    parser.add_argument("--out", type=Path, help="folder for the record")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.what == "search":
        save(measure_search(arguments.vectors, 512, arguments.batches, arguments.rounds), arguments.out)
        return
    for name in arguments.names or OPEN_CLIP:
        compiled = not arguments.no_compile
        save(measure_towers(name, arguments.batches, arguments.rounds, compiled=compiled), arguments.out)


def save(rows: Sequence[Latency], folder: Path | None) -> None:
    """Print `rows`, and put them into the record in `folder` in place of earlier ones of the same kind."""
    for row in rows:
        print(f"{row.what:<24} {row.how:<30} batch {row.batch:<3} {row.median_ms:>9.2f} ms", flush=True)
    if folder is None:
        return
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / RECORD
    earlier = json.loads(path.read_text(encoding="utf-8"))["latencies"] if path.exists() else []
    again = {(row.what, row.batch) for row in rows}
    kept = [row for row in earlier if (row["what"], row["batch"]) not in again]
    record = {
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "threads": 1,
        "clock": "processor time of the process",
        "torch": torch.__version__,
        "latencies": [*kept, *map(asdict, rows)],
    }
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
