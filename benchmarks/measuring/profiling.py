"""Where the time of one run goes, layer by layer, as the engine's own profiler tells.

    python -m saccade.benchmarks.measuring.profiling   (a configuration as JSON on standard input)

ONNX Runtime writes a trace, OpenVINO counts per node. Both fuse first, so that layers are what is executed
and not what is written; both slow small layers down. It happens in a process of its own.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from saccade.benchmarks.measuring.records import Configuration, Layer, Profile

_RUNS = 5
_WARM_UP = 2


def profile(configuration: Configuration) -> Profile | None:
    """The layers of one of our engines on a bundle, slowest first; None where it has no profiler or fails."""
    if configuration.engine not in _PROFILERS or configuration.device != "cpu":
        return None
    done = subprocess.run(
        [sys.executable, "-m", "saccade.benchmarks.measuring.profiling"],
        input=json.dumps(asdict(configuration)),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": str(configuration.threads)},
        check=False,
    )
    if done.returncode:
        return None
    layers = [Layer(**plain) for plain in json.loads(done.stdout.splitlines()[-1])]
    return Profile(configuration, tuple(layers))


def main() -> None:
    """Profile the configuration on standard input; the layers go out as one line of JSON."""
    given = Configuration(**json.loads(sys.stdin.readline()))
    taken: Mapping[tuple[str, str], list[float]] = _PROFILERS[given.engine](given)
    layers = [
        Layer(name, operator, float(f"{statistics.median(times):.4g}"))
        for (name, operator), times in taken.items()
    ]
    layers.sort(key=lambda layer: -layer.ms)
    print(json.dumps([asdict(layer) for layer in layers]))


def _opened(given: Configuration) -> tuple[Path, dict[str, Any]]:
    """The file that the engine reads, and what it is fed."""
    import numpy as np

    from saccade import bundle as bundles
    from saccade.benchmarks.measuring.subjects import PICTURE_HW
    from saccade.loading import graph_for
    from saccade.predictors.predictor import PICTURE_GRAPHS
    from saccade.preprocess import batches

    bundle = bundles.read(bundles.resolve(given.arguments["path"]), check=False)
    name = next(name for name in PICTURE_GRAPHS if name in bundle.graphs)
    files = graph_for(bundle, name, given.engine, given.precision).files
    card = bundle.card.preprocessing
    size_hw = card.resize_hw if card.resize == "fit" else PICTURE_HW
    pictures = [np.zeros((*size_hw, 3), np.uint8)] * given.batch
    (batch,) = batches(pictures, card)
    feeds: dict[str, Any] = {"image": batch.image}
    if any(spec.name == "size_hw" for spec in bundle.graphs[name].inputs):
        feeds["size_hw"] = np.array(batch.resized_hw, np.float32)
    return files.get(given.engine, files["source"]), feeds


def _onnxruntime(given: Configuration) -> Mapping[tuple[str, str], list[float]]:
    """Milliseconds of every node in each run, from the runtime's trace."""
    import onnxruntime

    path, feeds = _opened(given)
    taken: defaultdict[tuple[str, str], list[float]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as folder:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = given.threads
        options.enable_profiling = True
        options.profile_file_prefix = f"{folder}/trace"
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        for _ in range(_WARM_UP + _RUNS):
            session.run(None, feeds)
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            name = event["name"].removesuffix("_kernel_time")
            taken[name, event["args"]["op_name"]].append(event["dur"] / 1e3)
    return {key: times[_WARM_UP:] or times for key, times in taken.items()}


def _openvino(given: Configuration) -> Mapping[tuple[str, str], list[float]]:
    """Milliseconds of every node that is executed in each run."""
    import openvino

    path, feeds = _opened(given)
    settings = {
        "INFERENCE_PRECISION_HINT": "f32",
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": given.threads,
        "PERF_COUNT": True,
    }
    request = openvino.Core().compile_model(str(path), "CPU", settings).create_infer_request()
    taken: defaultdict[tuple[str, str], list[float]] = defaultdict(list)
    for run in range(_WARM_UP + _RUNS):
        request.infer(feeds)
        for node in request.profiling_info if run >= _WARM_UP else ():
            if node.real_time.total_seconds() > 0:
                taken[node.node_name, node.node_type].append(1e3 * node.real_time.total_seconds())
    return taken


_PROFILERS: Mapping[str, Callable[[Configuration], Mapping[tuple[str, str], list[float]]]] = {
    "onnxruntime": _onnxruntime,
    "openvino": _openvino,
}

if __name__ == "__main__":
    main()
