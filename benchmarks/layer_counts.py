"""Layers that TensorRT for RTX makes of exported graphs, with parse and build figures.

    python -m saccade.benchmarks.layer_counts my_bundle other.onnx --out benchmarks/results

Takes bundles (every graph in them) and ONNX files, and judges one after another with NVIDIA's parser and
builder; no GPU is needed. A rise in layers for the same model is a regression of the exporter or the parser.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import onnx

from saccade.engines.readiness import check
from saccade.engines.tensorrt.parser import BatchRange, judge

RECORD = "tensorrt_rtx_layers.json"
BATCH = BatchRange(1, 4, 8)


@dataclass(frozen=True, slots=True)
class LayerCount:
    """One graph. `nodes` of the main graph; `function_calls` of them are inlined when parsed.

    `layers` is the network after parsing. ready: the readiness report's opinion, for comparison.
    """

    model: str
    ready: bool
    parsed: bool
    built: bool | None
    nodes: int
    function_calls: int
    layers: int
    parse_seconds: float
    build_seconds: float | None
    plan_bytes: int | None
    peak_memory_mib: int
    errors: tuple[str, ...]


def graphs(path: Path) -> dict[str, Path]:
    """The ONNX file at `path`, or those of the bundle there, by the names that the record gives them."""
    if path.is_file():
        return {path.stem: path}
    found = sorted((path / "graphs").glob("*.onnx"), key=lambda graph: len(graph.name))
    return {" ".join([path.name, *(part[1:] for part in graph.suffixes[:-1])]): graph for graph in found}


def measure(model_name: str, graph: Path, targets: Sequence[str]) -> LayerCount:
    """Judge `graph` with NVIDIA's parser and builder."""
    verdict = judge(graph, profile=BATCH, compute_capabilities=targets)
    model = onnx.load(graph, load_external_data=False)
    functions = {function.name for function in model.functions}
    return LayerCount(
        model=model_name,
        ready=check(graph).ok,
        parsed=verdict.parsed,
        built=verdict.built,
        nodes=len(model.graph.node),
        function_calls=sum(node.op_type in functions for node in model.graph.node),
        layers=verdict.layers,
        parse_seconds=verdict.parse_seconds,
        build_seconds=verdict.build_seconds,
        plan_bytes=verdict.plan_bytes,
        peak_memory_mib=verdict.peak_memory_mib,
        errors=tuple(f"{refusal.node}: {refusal.message}" for refusal in verdict.errors),
    )


def record(counts: Sequence[LayerCount], targets: Sequence[str]) -> dict[str, object]:
    """What was measured, with what and when, as plain data."""
    packages = ("saccade", "tensorrt-rtx-cu13-libs", "onnx", "torch", "onnxscript")
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "cpus": os.cpu_count(),
        "batch": BATCH._asdict(),
        "compute_capabilities": list(targets),
        "versions": {name: version(name) for name in packages},
        "models": [asdict(count) for count in counts],
    }


def main() -> None:
    """Measure from the command line; the table goes to stdout, the record where asked."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("paths", nargs="+", type=Path, help="bundles or ONNX files")
    parser.add_argument("--target", action="append", help="compute capability, default 80; may be repeated")
    parser.add_argument("--out", type=Path, help="folder for the record")
    arguments = parser.parse_args()
    targets = arguments.target or ["80"]
    counts = []
    for path in arguments.paths:
        print(f"{path.name} ...", file=sys.stderr)
        counts += [measure(name, graph, targets) for name, graph in graphs(path).items()]
    for count in counts:
        print(f"{count.model:<24} {count.nodes:>6} nodes {count.layers:>6} layers  built: {count.built}")
    if arguments.out:
        arguments.out.mkdir(parents=True, exist_ok=True)
        text = json.dumps(record(counts, targets), indent=1)
        (arguments.out / RECORD).write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
