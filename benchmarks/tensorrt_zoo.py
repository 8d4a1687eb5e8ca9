"""Build every model of the zoo with TensorRT for RTX, in fp32 and fp16, and record what came of it.

    python -m saccade.benchmarks.tensorrt_zoo --out benchmarks/results
    python -m saccade.benchmarks.tensorrt_zoo swin_small fpn_swin_tiny --each-target --out benchmarks/results

The smallest model of every family comes first. Rows that the record has are not built again, so a run that
was cut short goes on where it was. No GPU is needed. Each model is exported with random weights at full size,
built by `saccade.build`, and removed. Nothing is compared here: that is what `saccade export` does, and it
takes most of the time.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import importlib
import json
import multiprocessing
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from saccade import bundle as bundles
from saccade.benchmarks import tensorrt_builds
from saccade.bundle import Bundle
from saccade.engines.tensorrt.options import Precision
from saccade.errors import SaccadeError
from saccade.models import zoo

# One plan for all of them costs no more time than a plan for one. Turing takes no float32 matrix products.
ALL_TARGETS: dict[Precision, str] = {
    "fp32": "sm80+sm86+sm89+sm120",
    "fp16": "sm75+sm80+sm86+sm89+sm120",
}
EACH_TARGET: dict[Precision, tuple[str, ...]] = {
    "fp32": ("sm80", "sm86+sm89", "sm120"),
    "fp16": ("sm75", "sm80", "sm86+sm89", "sm120"),
}
# What `create` must be told of a model that has no sizes of its own: pruned unevenly, as NViT's are.
SIZES: dict[str, dict[str, Any]] = {
    "nvit": {
        "dims": {
            "EMB": 496,
            "head": [4, 5, 6, 7, 8, 8, 8, 8, 7, 6, 5, 4],
            "QK": [24, 26, 28, 30, 32, 34, 36, 34, 32, 30, 28, 26],
            "V": [40, 44, 48, 52, 56, 60, 64, 60, 56, 52, 48, 44],
            "MLP": [800, 900, 1000, 1100, 1200, 1300, 1200, 1100, 1000, 900, 800, 700],
        }
    }
}
_LARGE = ("fpn", "upernet", "dpt", "detection")  # families of free picture sizes: minutes for each plan


def ordered(names: Sequence[str]) -> list[str]:
    """The smallest of every family, then the rest, those of fixed picture sizes before the others."""
    cards = sorted((zoo.entry(name).card for name in names), key=lambda card: card.parameters or 0)
    first = {card.family: card.name for card in reversed(cards)}

    def place(index: int) -> tuple[bool, bool, int]:
        card = cards[index]
        return first[card.family] != card.name, card.family in _LARGE, index

    return [cards[index].name for index in sorted(range(len(cards)), key=place)]


def write_uncompared(name: str, out: Path) -> Bundle:
    """The model `name` with random weights as a bundle of fp32 and fp16 graphs. Nothing is compared."""
    from saccade.engines.export import export_graph
    from saccade.engines.graphs import write_graphs
    from saccade.engines.precision import convert
    from saccade.export.bundles import TASKS
    from saccade.export.options import Options

    entry = zoo.entry(name)
    config = SIZES.get(name)
    if entry.config.get("causal") is not None:
        config = {"text": True}  # both towers, where the text tower is one that this package builds
    options = Options(name, random=True, config=config)
    planned = importlib.import_module(TASKS[entry.card.task]).plan(options, entry)

    def fill(folder: Path) -> dict[str, Any]:
        graphs = folder / "graphs"
        graphs.mkdir()
        described, sources = {}, {}
        for key, part in planned.parts.items():
            source = export_graph(part.module, part.inputs, outputs=part.outputs, name=name)
            low = convert(source, "fp16").model
            written = write_graphs({key: source}, graphs, f"{key}.bin")[key]
            halves = write_graphs({f"{key}.fp16": low}, graphs, f"{key}.fp16.bin")[f"{key}.fp16"]
            files = {_variant(made): f"graphs/{file.path.name}" for made, file in written.items()}
            for made, file in halves.items():
                variant = "fp16" if made == "source" else f"fp16.{_variant(made)}"
                files[variant] = f"graphs/{file.path.name}"
            sources[key] = source
            described[key] = {
                "inputs": [_tensor(value) for value in source.graph.input],
                "outputs": [_tensor(value) for value in source.graph.output],
                "files": files,
                "sample": None,
            }
        card = planned.card(sources)
        return {
            "name": name,
            "task": card.task,
            "card": card.to_json(),
            "graphs": described,
            "untrained": True,
        }

    return bundles.write(out, fill)


def _variant(made: str) -> str:
    """The engine that a derived graph is for."""
    return "openvino" if made == "inlined" else made


def _tensor(value: Any) -> dict[str, Any]:
    import onnx

    kind = value.type.tensor_type
    dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type).name
    return {"name": value.name, "dtype": dtype, "shape": [d.dim_param or d.dim_value for d in kind.shape.dim]}


def _write_in_child(name: str, out: Path) -> None:
    write_uncompared(name, out)


def measure(
    name: str, wanted: Sequence[tuple[Precision, str]], scratch: Path
) -> Iterator[list[tensorrt_builds.Row]]:
    """Export `name` and build it for each of `wanted`, a precision and a target; the rows of each."""
    folder = scratch / name
    try:
        # A process of its own, so that torch's memory is gone before the builder takes its own.
        context = multiprocessing.get_context("spawn")
        with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as pool:
            pool.submit(_write_in_child, name, folder).result()
        for precision, target in wanted:
            yield list(tensorrt_builds.measure(folder, target, precision))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _missing(name: str, each_target: bool, out: Path | None) -> list[tuple[Precision, str]]:
    """What the record has no plan of."""
    wanted: list[tuple[Precision, str]] = list(ALL_TARGETS.items())
    if each_target:
        wanted = [(precision, target) for precision, names in EACH_TARGET.items() for target in names]
    path = out / tensorrt_builds.RECORD if out else None
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"] if path and path.exists() else []
    there = {(row["precision"], row["target"]) for row in rows if row["model"] == name and row["layers"]}
    return [each for each in wanted if each not in there]


def main() -> None:
    """Measure from the command line; a line per plan goes to stdout, the record where asked."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="models; every one of the zoo by default")
    parser.add_argument(
        "--each-target", action="store_true", help="a plan for each target instead of one for all"
    )
    parser.add_argument("--out", type=Path, help="folder for the record")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        for name in ordered(arguments.names or list(zoo.ENTRIES)):
            wanted = _missing(name, arguments.each_target, arguments.out)
            if not wanted:
                continue
            print(f"{name} ...", file=sys.stderr, flush=True)
            try:
                for rows in measure(name, wanted, Path(scratch)):
                    _keep(rows, arguments.out)
            except SaccadeError as error:
                print(f"{name} was not exported: {error}", file=sys.stderr, flush=True)


def _keep(rows: Sequence[tensorrt_builds.Row], out: Path | None) -> None:
    for row in rows:
        print(tensorrt_builds.line(row), flush=True)
    if out:
        tensorrt_builds.save(rows, out)


if __name__ == "__main__":
    main()
