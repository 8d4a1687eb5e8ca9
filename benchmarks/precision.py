"""What fp16 and bf16 cost full-size models: error of outputs, float32 islands, layers in TensorRT for RTX.

    python -m saccade.benchmarks.precision tiny_vit_21m_224 nvit --out benchmarks/results

Weights are random and the picture is noise: the figures say what rounding and the parser make of the
architecture, nothing of accuracy (examples/10_lower_precision.py has that, for trained networks). Errors are
emulated, see docs/precision.md; no GPU is needed.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import numpy as np
import onnx
import torch

from saccade.conversion import RULE, with_tolerances
from saccade.engines import verify
from saccade.engines.conformance import Sample
from saccade.engines.export import export_graph
from saccade.engines.graphs import write_graphs
from saccade.engines.inputs import picture
from saccade.engines.islands import search
from saccade.engines.precision import PRECISIONS
from saccade.engines.tensorrt.options import Precision
from saccade.engines.tensorrt.parser import judge
from saccade.export.modules import module
from saccade.export.options import Options
from saccade.models import zoo
from saccade.models.deploy import merge

RECORD = "precision.json"
# Turing takes no float32 matrix products: there only fp16 is of interest.
TARGETS: tuple[tuple[Precision, str], ...] = (("fp32", "80"), ("fp16", "80"), ("fp16", "75"), ("bf16", "80"))


@dataclass(frozen=True, slots=True)
class Built:
    """The verdict of NVIDIA's builder on one graph: the form in standard operators, where there is one."""

    precision: str
    compute_capability: str
    ok: bool
    layers: int
    plan_mib: float | None
    errors: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Conversion:
    """One precision. error: largest difference of an output from float64, as a share of its largest value.

    tolerance: the largest that is accepted, likewise. islands: nodes that stay float32, by reason.
    """

    precision: str
    error: float
    tolerance: float
    islands: dict[str, int]
    runs: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Measured:
    """One model."""

    model: str
    nodes: int
    conversions: tuple[Conversion, ...]
    built: tuple[Built, ...]


def measure(name: str) -> Measured:
    """Convert `name` with random weights to every precision, and let NVIDIA's builder judge all graphs."""
    size_hw = zoo.entry(name).card.preprocessing.input_size_hw
    made = merge(module(Options(name, random=True), {}, [torch.randn(2, 3, *size_hw)]))
    inputs, outputs = [picture(size_hw)], ("output",)
    source = export_graph(made, inputs, outputs=outputs, name=name)
    (expected,) = verify.expectations(made, inputs, outputs, batches=(1,))
    exact = {key: values.astype(np.float32) for key, values in expected.outputs.items()}
    sample = Sample(expected.feeds, exact, dict(expected.noise_floors))
    graphs = {"fp32": source}
    conversions = []
    for precision in PRECISIONS:
        conversion, graphs[precision] = convert(source, precision, sample)
        conversions.append(conversion)
    return Measured(name, len(source.graph.node), tuple(conversions), tuple(judged(graphs)))


def convert(source: onnx.ModelProto, precision: str, sample: Sample) -> tuple[Conversion, onnx.ModelProto]:
    """Search the islands of `source`. sample: with noise floors for tolerances."""
    held = with_tolerances(sample, PRECISIONS[precision].roundoff)
    started = time.perf_counter()
    found = search(source, precision, [held])
    seconds = time.perf_counter() - started
    worst = max(found.differences, key=lambda row: row.largest / row.tolerance)
    largest = float(np.abs(sample.outputs[worst.output]).max())
    conversion = Conversion(
        precision,
        worst.largest / largest,
        worst.tolerance / largest,
        dict(Counter(found.converted.islands.values())),
        found.runs,
        round(seconds, 1),
    )
    return conversion, found.converted.model


def judged(graphs: dict[str, onnx.ModelProto]) -> Iterator[Built]:
    """NVIDIA's verdict on each of `TARGETS`."""
    with tempfile.TemporaryDirectory() as scratch:
        for precision, target in TARGETS:
            folder = Path(scratch) / f"{precision}.{target}"
            folder.mkdir()
            written = write_graphs({"model": graphs[precision]}, folder)["model"]
            path = written.get("inlined", written["source"]).path
            verdict = judge(path, precision=precision, compute_capabilities=(target,))
            plan = None if verdict.plan_bytes is None else round(verdict.plan_bytes / 2**20, 1)
            errors = tuple(f"{refusal.node}: {refusal.message}" for refusal in verdict.errors[:3])
            yield Built(precision, target, verdict.ok, verdict.layers, plan, errors)


def record(measured: Sequence[Measured]) -> dict[str, object]:
    """What was measured, with what and when, as plain data."""
    packages = ("saccade", "onnx", "onnxruntime", "torch", "tensorrt-rtx-cu13-libs")
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "tolerance": RULE,
        "versions": {name: version(name) for name in packages},
        "models": [asdict(each) for each in measured],
    }


def main() -> None:
    """Measure from the command line; the table goes to stdout, the record where asked."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="+", metavar="NAME", help="models that take one picture")
    parser.add_argument("--out", type=Path, help="folder for the record")
    arguments = parser.parse_args()
    measured = []
    for name in arguments.names:
        print(f"{name} ...", file=sys.stderr)
        measured.append(measure(name))
        for each in measured[-1].conversions:
            kept = sum(each.islands.values())
            print(
                f"{name:<24} {each.precision} error {each.error:.2e} of {each.tolerance:.2e}, {kept} islands"
            )
        for built in measured[-1].built:
            print(
                f"{name:<24} {built.precision} sm{built.compute_capability} {built.ok} {built.layers} layers"
            )
        if arguments.out:
            arguments.out.mkdir(parents=True, exist_ok=True)
            text = json.dumps(record(measured), indent=1)
            (arguments.out / RECORD).write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
