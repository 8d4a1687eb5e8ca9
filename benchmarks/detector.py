"""Where a whole detector's time goes, from an RGB array to pasted masks, on ONNX Runtime CPU.

    python -m saccade.benchmarks.detector cascade_mask_rcnn_stvit_r_swin_small --out benchmarks/results

Weights are random, their logits spread so that a hundred objects are found: every mask is computed, and
pasted. Inside the graph the times are the runtime's own profile, by the module that each node comes from.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime

from saccade.engines.engine import EngineOptions
from saccade.engines.export import export_graph
from saccade.engines.graphs import write_graphs
from saccade.engines.onnxruntime import OnnxRuntimeEngine
from saccade.export import detection
from saccade.export.options import Options
from saccade.models import zoo
from saccade.models.card import Card
from saccade.predictors.detection import InstanceSegmenter
from saccade.results.detections import Detections

# What the first words of a node's name say; the rest of the graph is small and counts as "other".
PARTS = {
    "backbone": "backbone",
    "neck": "neck and RPN",
    "rpn_head": "neck and RPN",
    "roi_head": "heads",
}


@dataclass(frozen=True, slots=True)
class Part:
    """Seconds for one picture: processor time of all threads, which other work disturbs least."""

    name: str
    median_s: float
    fastest_s: float


@dataclass(frozen=True, slots=True)
class Record:
    """outside_share: of the whole time, what preprocessing and postprocessing take; of the fastest times."""

    model: str
    picture_hw: tuple[int, int]
    padded_hw: tuple[int, int]
    objects: int
    rounds: int
    threads: int
    parts: tuple[Part, ...]
    whole_s: float
    outside_share: float
    load_average: tuple[float, ...]
    date: str
    machine: str
    versions: dict[str, str]


def measure(name: str, picture_hw: tuple[int, int], rounds: int, threads: int) -> Record:
    """Export `name` with random weights, then time `rounds` pictures after one to warm up."""
    with tempfile.TemporaryDirectory() as folder:
        graph, card = _export(name, Path(folder))
        samples, objects, padded_hw = _passes(graph, card, picture_hw, rounds, threads, Path(folder))
    parts = tuple(
        Part(part, round(statistics.median(times), 4), round(min(times), 4))
        for part, times in samples.items()
    )
    whole = sum(part.fastest_s for part in parts)
    outside = sum(part.fastest_s for part in parts if part.name in ("preprocess", "postprocess"))
    return Record(
        model=name,
        picture_hw=picture_hw,
        padded_hw=padded_hw,
        objects=objects,
        rounds=rounds,
        threads=threads,
        parts=parts,
        whole_s=round(whole, 3),
        outside_share=round(outside / whole, 4),
        load_average=tuple(round(each, 1) for each in os.getloadavg()),
        date=datetime.now(UTC).date().isoformat(),
        machine=f"{platform.machine()} {platform.system()} {platform.release()}",
        versions={package: version(package) for package in ("saccade", "onnxruntime", "torch", "numpy")},
    )


def _export(name: str, folder: Path) -> tuple[Path, Card]:
    """The graph that ONNX Runtime takes, and the card."""
    entry = zoo.entry(name)
    plan = detection.plan(Options(name, random=True), entry)
    part = plan.parts["model"]
    graph = export_graph(part.module, part.inputs, outputs=part.outputs, name=name)
    written = write_graphs({"model": graph}, folder)["model"]
    return written.get("inlined", written["source"]).path, plan.card({"model": graph})


def _passes(
    graph: Path, card: Card, picture_hw: tuple[int, int], rounds: int, threads: int, folder: Path
) -> tuple[dict[str, list[float]], int, tuple[int, int]]:
    """Seconds by part and round; how many objects there were, and the size of the tensor."""
    picture = np.random.default_rng(0).integers(0, 256, (*picture_hw, 3), dtype=np.uint8)
    predictor = InstanceSegmenter(
        {"model": OnnxRuntimeEngine(graph, EngineOptions(threads=threads))}, card, untrained=True
    )
    before: list[float] = []
    after: list[float] = []
    with predictor:
        for _ in range(rounds + 1):
            (batch,) = _timed(lambda: predictor.preprocess([picture]), before)
        outputs = predictor.run(batch)
        for _ in range(rounds + 1):
            found = _timed(lambda: _pasted(predictor.postprocess(outputs, batch)[0]), after)
    feeds = {"image": batch.image, "size_hw": np.array(batch.resized_hw, np.float32)}
    inside = _profiled(graph, feeds, rounds, threads, folder)
    height, width = batch.image.shape[2:]
    return {"preprocess": before[1:], **inside, "postprocess": after[1:]}, len(found), (height, width)


def _pasted(found: Detections) -> Detections:
    """The same, after looking at every mask."""
    assert found.masks is not None
    for row in range(len(found)):
        found.masks.crop(row)
    return found


def _timed(work: Callable[[], Any], times: list[float]) -> Any:
    start = time.process_time()
    result = work()
    times.append(time.process_time() - start)
    return result


def _profiled(
    graph: Path, feeds: dict[str, Any], rounds: int, threads: int, folder: Path
) -> dict[str, list[float]]:
    """Processor seconds of each part, round by round; the first run is left out.

    The profile has wall times, which other work stretches: they share out each run's processor time.
    """
    options = onnxruntime.SessionOptions()
    options.enable_profiling = True
    options.profile_file_prefix = str(folder / "profile")
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
    runs_s: list[float] = []
    for _ in range(rounds + 1):
        _timed(lambda: session.run(None, feeds), runs_s)
    events = json.loads(Path(session.end_profiling()).read_text())
    nodes = onnx.load(graph, load_external_data=False).graph.node
    makers = {output: node.name for node in nodes for output in node.output}
    runs = sorted(e["ts"] for e in events if e["name"] == "model_run")
    rows: list[Counter[str]] = [Counter() for _ in runs]
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            round_ = sum(start <= event["ts"] for start in runs) - 1
            rows[round_][_part(event["name"].removesuffix("_kernel_time"), makers)] += event["dur"] / 1e6
    names = dict.fromkeys([*PARTS.values(), "other"])
    pairs = list(zip(rows, runs_s, strict=True))[1:]
    return {name: [run_s * row[name] / row.total() for row, run_s in pairs] for name in names}


def _part(node: str, makers: Mapping[str, str]) -> str:
    """Of a node of the runtime; those of blocked layouts have the name of the value that they make."""
    name = makers.get(node.partition("_nchwc")[0], node)
    return PARTS.get(name.replace("/", ".").split(".")[0], "other")


def main() -> None:
    """Measure from the command line, print the record, and keep it where asked."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", nargs="?", default="cascade_mask_rcnn_stvit_r_swin_small")
    parser.add_argument("--height", type=int, default=800)
    parser.add_argument("--width", type=int, default=1333)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="folder for the record")
    given = parser.parse_args()
    made = measure(given.model, (given.height, given.width), given.rounds, given.threads)
    record = json.dumps(asdict(made), indent=1)
    print(record)
    if given.out:
        given.out.mkdir(parents=True, exist_ok=True)
        (given.out / f"detector_{given.model}.json").write_text(record + "\n")


if __name__ == "__main__":
    main()
