"""Build bundles with TensorRT for RTX and record what came of it; no GPU is needed.

    python -m saccade.benchmarks.tensorrt_builds kept/* --target sm80 --target sm86+sm89 --out results

The bundles may come from `saccade.benchmarks.exports --bundles kept`. Plans are measured and removed. A
record that is already in the folder keeps the rows that are not measured again.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

from saccade import bundle as bundles
from saccade.builds import BatchRange, BuildOptions, SizeRange, build
from saccade.engines.tensorrt.options import Precision
from saccade.engines.tensorrt.parser import ShapeRange, judge
from saccade.errors import SaccadeError

RECORD = "tensorrt_rtx_builds.json"
BATCH = BatchRange(1, 4, 16)
FREE_BATCH = BatchRange(1, 1, 2)  # of large pictures: TensorRT's tensors hold fewer than 2^31 numbers
SIZE = SizeRange((256, 256), (800, 1344), (1344, 1344))
TARGETS = ("sm80", "sm86+sm89", "sm120")


@dataclass(frozen=True, slots=True)
class Row:
    """One plan of one graph, or the message of why there is none.

    layers: of the network that was built; source_layers: of the source graph, where its functions are inlined
    by the parser (None where it is what was built). seconds: wall time of the whole command.
    """

    model: str
    graph: str
    target: str
    precision: str
    date: str
    seconds: float
    layers: int | None = None
    source_layers: int | None = None
    plan_bytes: int | None = None
    parse_seconds: float | None = None
    build_seconds: float | None = None
    peak_memory_mib: int | None = None
    version: str = ""
    message: str = ""


def measure(path: Path, target: str, precision: Precision) -> Iterator[Row]:
    """Build every graph of the bundle at `path` for `target`."""
    bundle = bundles.read(path, check=False)
    free = any("height" in spec.shape for graph in bundle.graphs.values() for spec in graph.inputs)
    options = BuildOptions(
        flavour="tensorrt_rtx",
        precision=precision,
        batch=FREE_BATCH if free else BATCH,
        size=SIZE if free else None,
        target=target,
    )
    today = datetime.now(UTC).date().isoformat()
    started = time.perf_counter()
    try:
        built = build(path, options)
    except SaccadeError as error:
        seconds = round(time.perf_counter() - started, 1)
        yield Row(bundle.name, ",".join(bundle.graphs), target, precision, today, seconds, message=str(error))
        return
    for each in built:
        record = each.record
        shutil.rmtree(each.path)
        yield Row(
            model=bundle.name,
            graph=record.graph,
            target=target,
            precision=precision,
            date=today,
            seconds=record.wall_seconds,
            layers=record.layers,
            source_layers=_source_layers(bundle.graphs[record.graph], precision),
            plan_bytes=record.plan_bytes,
            parse_seconds=record.parse_seconds,
            build_seconds=record.build_seconds,
            peak_memory_mib=record.peak_memory_mib,
            version=record.version,
        )


def _source_layers(graph: bundles.Graph, precision: Precision) -> int | None:
    if "openvino" not in graph.files or precision not in ("fp32", "tf32"):
        return None
    dimensions = {"batch": BATCH.opt, "height": SIZE.opt[0], "width": SIZE.opt[1]}
    shapes = {
        spec.name: ShapeRange(*[tuple(dimensions.get(str(size), size) for size in spec.shape)] * 3)  # type: ignore[arg-type]
        for spec in graph.inputs
    }
    return judge(graph.files["source"], profile=shapes, build=False).layers


def save(rows: Sequence[Row], folder: Path) -> None:
    """Merge `rows` into the record; after every model, so that a run that is cut short keeps what it has."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / RECORD
    earlier = json.loads(path.read_text(encoding="utf-8"))["rows"] if path.exists() else []
    merged = {_name(row): row for row in (*earlier, *map(asdict, rows))}
    content: dict[str, Any] = {
        "cpus": os.cpu_count(),
        "batch": BATCH._asdict(),
        "batch_of_free_sizes": FREE_BATCH._asdict(),
        "size": SIZE._asdict(),
        "rows": [merged[name] for name in sorted(merged)],
    }
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def line(row: Row) -> str:
    """One row for a terminal."""
    size = (row.plan_bytes or 0) / 2**20
    figures = f"{row.layers or '-':>6} layers {size:>7.1f} MiB {row.seconds:>6.1f} s"
    return f"{row.model:<24} {row.graph:<6} {row.precision} {row.target:<10} {figures} {row.message}"


def _name(row: dict[str, Any]) -> tuple[str, ...]:
    return tuple(str(row[field]) for field in ("model", "graph", "precision", "target"))


def main() -> None:
    """Measure from the command line; a line per plan goes to stdout, the record where asked."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundles", nargs="+", type=Path, help="bundles' folders")
    parser.add_argument("--target", action="append", help=f"may be repeated; default {', '.join(TARGETS)}")
    parser.add_argument("--precision", default="fp32", help="fp32, tf32, fp16 or bf16")
    parser.add_argument("--out", type=Path, help="folder for the record")
    arguments = parser.parse_args()
    for path in arguments.bundles:
        for target in arguments.target or TARGETS:
            print(f"{path.name} for {target} ...", file=sys.stderr)
            rows = list(measure(path, target, cast(Precision, arguments.precision)))
            for row in rows:
                print(line(row))
            if arguments.out:
                save(rows, arguments.out)


if __name__ == "__main__":
    main()
