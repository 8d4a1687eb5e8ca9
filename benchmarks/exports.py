"""Export models with random weights at full size, verify them, and record what it took.

    python -m saccade.benchmarks.exports stvit_r_swin_small deepmad_r50 --bundles kept --out results
    python -m saccade.benchmarks.exports nvit --config sizes.json --out results

Without names, every model of the zoo that has sizes of its own. Each is exported in a process of its own,
so that time and memory are its own. A record that is already in the folder keeps the models that are not
measured again. The bundles can then be given to `saccade.benchmarks.tensorrt_builds`.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import json
import multiprocessing
import os
import platform
import resource
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from saccade import bundle
from saccade.engines.conformance import read_sample
from saccade.engines.engine import open_engine
from saccade.errors import SaccadeError
from saccade.models import zoo

RECORD = "exports.json"


@dataclass(frozen=True, slots=True)
class Export:
    """One model. `seconds` is wall time from `create` to the written and verified bundle.

    nodes: of the source graph, functions not expanded. worst: the largest share of its tolerance that any
    output used, over all graphs, engines and batch sizes; at most 1 for a bundle that was written.
    signal: how far the outputs of two pictures are apart, in tolerances. Random weights can let a picture
    vanish on its way; where this is not far above 1, `worst` says little.
    error: what stopped the export; the other figures are then None.
    """

    model: str
    date: str
    seconds: float
    peak_memory_mib: int
    nodes: int | None = None
    bundle_bytes: int | None = None
    engines: tuple[str, ...] = ()
    worst: float | None = None
    signal: float | None = None
    error: str = ""


def measure(name: str, folder: Path, config: Mapping[str, Any] | None = None) -> Export:
    """Export `name` into `folder`/`name` in a new process."""
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(_export, name, folder / name, config).result()


def _export(name: str, out: Path, config: Mapping[str, Any] | None) -> Export:
    from saccade.export import export_bundle

    today = datetime.now(UTC).date().isoformat()
    start = time.perf_counter()
    try:
        written = export_bundle(name, None, out, random=True, config=config)
    except SaccadeError as error:
        return Export(name, today, round(time.perf_counter() - start, 1), _peak_mib(), error=str(error))
    seconds = round(time.perf_counter() - start, 1)
    rows = json.loads((out / "verify.json").read_text(encoding="utf-8"))["comparisons"]
    return Export(
        name,
        today,
        seconds,
        _peak_mib(),
        nodes=written.provenance["nodes"],
        bundle_bytes=sum(file["bytes"] for file in written.files.values()),
        engines=tuple(dict.fromkeys(row["engine"] for row in rows)),
        worst=round(max(row["difference"] / row["tolerance"] for row in rows), 3),
        signal=round(measure_signal(out), 1),
    )


def measure_signal(path: Path) -> float:
    """Largest distance between the outputs of two pictures of noise, in tolerances of the bundle's sample."""
    graph = bundle.read(path, check=False).graphs["model"]
    assert graph.sample is not None  # export writes one
    sample = read_sample(graph.sample)
    pictures = np.random.default_rng(0).standard_normal((2, *sample.inputs["image"].shape[1:]), np.float32)
    with open_engine(graph.files, "onnxruntime") as engine:
        outputs = engine.run({"image": pictures})
    return max(float(np.ptp(outputs[name], axis=0).max()) / each for name, each in sample.tolerances.items())


def _peak_mib() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def record(exports: Sequence[Export], earlier: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What was measured and where, as plain data, the earlier models that were not repeated included."""
    again = {export.model for export in exports}
    kept = [model for model in earlier if model["model"] not in again]
    models = [*kept, *(asdict(export) for export in exports)]
    return {
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "models": sorted(models, key=lambda model: str(model["model"])),
    }


def main() -> None:
    """Measure from the command line; a line per model goes to stdout, the record where asked."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="models; every one of the zoo by default")
    parser.add_argument("--config", type=Path, help="JSON file of settings for the models named")
    parser.add_argument("--bundles", type=Path, help="folder to keep the bundles in")
    parser.add_argument("--out", type=Path, help="folder for the record")
    arguments = parser.parse_args()
    names = arguments.names or [name for name in zoo.names() if name != "nvit"]
    for name in names:
        zoo.entry(name)
    config = json.loads(arguments.config.read_text(encoding="utf-8")) if arguments.config else None
    with tempfile.TemporaryDirectory() as scratch:
        for name in names:
            export = measure(name, arguments.bundles or Path(scratch), config)
            print(f"{name:<28} {export.seconds:>7.1f} s {export.nodes} nodes {export.error}", flush=True)
            if arguments.out:
                _save([export], arguments.out)


def _save(exports: Sequence[Export], folder: Path) -> None:
    """After every model: a run that is cut short keeps what it has."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / RECORD
    earlier = json.loads(path.read_text(encoding="utf-8"))["models"] if path.exists() else []
    path.write_text(json.dumps(record(exports, earlier), indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
