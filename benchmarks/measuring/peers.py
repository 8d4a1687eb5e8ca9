"""What Saccade is compared with: the same models as their users run them elsewhere.

Each is opened in a child process that holds nothing of ours. A plain export is made once in a further
process and kept in the cache, so that the memory of a peer is that of its runtime alone.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from saccade.benchmarks.measuring import harness, machine
from saccade.benchmarks.measuring.records import Configuration
from saccade.benchmarks.measuring.subjects import Subject
from saccade.errors import EngineError, UsageError

_HERE = "saccade.benchmarks.measuring.peers"


@dataclass(frozen=True, slots=True)
class Peer:
    """opener: the function here that opens it. cpu, cuda: where it runs. precisions: what it offers."""

    opener: str
    cpu: bool = True
    cuda: bool = True
    precisions: tuple[str, ...] = ("fp32",)


_TORCH = ("fp32", "fp16", "bf16")
PEERS: Mapping[str, Peer] = {
    "torch": Peer("torch_eager", precisions=_TORCH),
    "torch.compile": Peer("torch_compiled", precisions=_TORCH),
    "torch CUDA graph": Peer("torch_graph", cpu=False, precisions=_TORCH),
    "plain onnxruntime": Peer("plain_onnxruntime"),
    "plain openvino": Peer("plain_openvino", cuda=False),
    "trtexec": Peer("trtexec", cpu=False),
}


def of_bundle(
    path: str | os.PathLike[str],
    names: Sequence[str] = (),
    *,
    batches: Sequence[int] = (1,),
    threads: int | None = None,
    device: str = "cpu",
    precisions: Sequence[str] = ("fp32",),
    weights: str | os.PathLike[str] | None = None,
) -> list[Configuration]:
    """The peers called `names` (default: all that run on the device) of one bundle.

    On the CPU they run in float32 alone. weights: the bundle's checkpoint, for peers that answer the same.
    """
    unknown = sorted(set(names) - set(PEERS))
    if unknown:
        raise UsageError(f"no peer is called {unknown[0]!r}; there are {', '.join(PEERS)}")
    offered = ("fp32",) if device == "cpu" else tuple(precisions)
    chosen = {name: PEERS[name] for name in names or PEERS}
    ours = harness.of_bundle(path, "onnxruntime", threads=threads, device=device)
    return [
        replace(
            ours,
            engine=name,
            peer=True,
            batch=batch,
            precision=precision,
            accuracy=None,
            opener=f"{_HERE}:{peer.opener}",
            arguments={**ours.arguments, "weights": str(weights) if weights else None},
        )
        for name, peer in chosen.items()
        if (peer.cpu if device == "cpu" else peer.cuda)
        for batch in batches
        for precision in offered
        if precision in peer.precisions
    ]


# --- torch -----------------------------------------------------------------------------------------------


def torch_eager(configuration: Configuration) -> Subject:
    """The module as it is."""
    return _torch(configuration, lambda model, image: model)


def torch_compiled(configuration: Configuration) -> Subject:
    """torch.compile for this batch; on a GPU with the CUDA graphs of its mode "reduce-overhead"."""
    import torch

    mode = None if configuration.device == "cpu" else "reduce-overhead"
    return _torch(configuration, lambda model, image: torch.compile(model, dynamic=False, mode=mode))


def torch_graph(configuration: Configuration) -> Subject:
    """The eager module's kernels, recorded once in a CUDA graph and replayed."""
    return _torch(configuration, _captured)


def _torch(configuration: Configuration, prepare: Callable[[Any, Any], Callable[[Any], Any]]) -> Subject:
    import torch

    from saccade.benchmarks.measuring import peer_models

    given = configuration.arguments
    torch.set_num_threads(configuration.threads)
    torch.set_grad_enabled(False)
    model = peer_models.module_of(given["path"], given["weights"])
    agreement = _torch_agreement(model, given["path"])
    dtype = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[configuration.precision]
    model = model.to(configuration.device, dtype)
    host = peer_models.image_of(given["path"], configuration.batch).to(dtype)
    if configuration.device == "cpu":
        called = prepare(model, host)
        return Subject(run=lambda: called(host), agreement=agreement)
    host = host.pin_memory()
    image = host.to(configuration.device)
    called = prepare(model, image)

    def run() -> None:
        image.copy_(host, non_blocking=True)
        called(image).cpu()  # waits for the device

    def copy() -> None:
        image.copy_(host, non_blocking=True)
        torch.cuda.synchronize()

    def compute() -> None:
        called(image)
        torch.cuda.synchronize()

    return Subject(
        run=run, includes=("copy", "run"), parts={"copy": copy, "run": compute}, agreement=agreement
    )


def _captured(model: Any, image: Any) -> Callable[[Any], Any]:
    """PyTorch's recipe: a few runs on a stream aside, then the recording. The picture stays where it is."""
    import torch

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            model(image)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = model(image)

    def replay(_: Any) -> Any:
        graph.replay()
        return output

    return replay


def _torch_agreement(model: Any, path: str) -> float | None:
    """How far the module is from what the bundle's graph gave for its sample."""
    import torch

    from saccade.engines.conformance import read_sample

    found = _sample_file(path)
    if found is None:
        return None
    sample = read_sample(found)
    (expected,) = sample.outputs.values()
    output = model(torch.from_numpy(sample.inputs["image"])).float().numpy()
    return float(abs(output - expected).max() / max(abs(expected).max(), 1e-30))


def _sample_file(path: str) -> Path | None:
    from saccade import bundle as bundles
    from saccade.predictors.predictor import PICTURE_GRAPHS

    bundle = bundles.read(bundles.resolve(path), check=False)
    return bundle.graphs[next(name for name in PICTURE_GRAPHS if name in bundle.graphs)].sample


# --- plain exports ---------------------------------------------------------------------------------------


def plain_onnxruntime(configuration: Configuration) -> Subject:
    """The plain export in ONNX Runtime with its own settings, but the number of threads."""
    graph, seconds = _plain_export(configuration)
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = configuration.threads
    cuda = configuration.device != "cpu"
    providers = ["CUDAExecutionProvider"] if cuda else ["CPUExecutionProvider"]
    session = onnxruntime.InferenceSession(str(graph), options, providers=providers)
    if session.get_providers()[0] != providers[0]:
        raise EngineError("ONNX Runtime found no usable CUDA: see `saccade doctor`")
    feeds = {"image": _noise(session.get_inputs()[0].shape)}
    includes = ("copy", "run") if cuda else ("run",)
    return Subject(run=lambda: session.run(None, feeds), includes=includes, prepared_s=seconds)


def plain_openvino(configuration: Configuration) -> Subject:
    """The plain export in OpenVINO, held to float32: by itself it takes bfloat16 where the CPU has that."""
    graph, seconds = _plain_export(configuration)
    import openvino

    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": configuration.threads}
    compiled = openvino.Core().compile_model(str(graph), "CPU", settings)
    request = compiled.create_infer_request()
    feeds = {"image": _noise(compiled.inputs[0].shape)}
    return Subject(run=lambda: request.infer(feeds), prepared_s=seconds)


def _noise(shape: Sequence[int]) -> Any:
    import numpy as np

    return np.random.default_rng(0).standard_normal(tuple(shape)).astype(np.float32)


def _plain_export(configuration: Configuration) -> tuple[Path, float]:
    """The plain export for this batch, from the cache or made there, and the seconds that took."""
    began = time.perf_counter()
    given = configuration.arguments
    target = _cache() / f"{_export_key(configuration)}.export" / "model.onnx"
    if not target.exists():
        target.parent.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent.parent) as folder:
            made = Path(folder) / "plain"
            made.mkdir()
            command = [sys.executable, "-m", "saccade.benchmarks.measuring.peer_models", given["path"]]
            command += [str(configuration.batch), str(made / "model.onnx")]
            command += [given["weights"]] if given["weights"] else []
            done = subprocess.run(command, stdout=sys.stderr, stderr=subprocess.PIPE, text=True, check=False)
            if done.returncode:
                last = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
                raise EngineError(f"torch.onnx.export failed: {last}")
            if not target.exists():  # another process may have been faster
                made.rename(target.parent)
    return target, time.perf_counter() - began


def _cache() -> Path:
    from saccade.engines.tensorrt.plans import cache

    return cache() / "peers"


def _export_key(configuration: Configuration) -> str:
    """Of everything that the exported file depends on."""
    from saccade import bundle as bundles

    bundle = bundles.read(bundles.resolve(configuration.arguments["path"]), check=False)
    weights = configuration.arguments["weights"]
    parts = {
        "name": bundle.name,
        "config": bundle.provenance.get("config", {}),
        "outputs": [list(spec.shape) for spec in next(iter(bundle.graphs.values())).outputs],
        "image": bundle.card.preprocessing.input_size_hw,
        "weights": bundles.sha256(Path(weights)) if weights and Path(weights).is_file() else weights,
        "batch": configuration.batch,
        "versions": machine.versions(("saccade", "torch", "timm", "onnx", "onnxscript")),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:24]


# --- trtexec ---------------------------------------------------------------------------------------------


def trtexec(configuration: Configuration) -> Subject:
    """NVIDIA's own program on the plain export: it times itself, copies included."""
    program = shutil.which("trtexec")
    if program is None:
        raise EngineError("trtexec is not on the PATH: it comes with NVIDIA's TensorRT, in its folder bin")
    graph, seconds = _plain_export(configuration)
    plan = graph.with_suffix(".plan")
    device = configuration.device.partition(":")[2] or "0"
    base = [program, f"--device={device}", "--useCudaGraph", "--useSpinWait"]
    if not plan.exists():
        built = [*base, f"--onnx={graph}", f"--saveEngine={plan}", "--skipInference"]
        subprocess.run(built, check=True, stdout=sys.stderr)
    times = _trtexec_times([*base, f"--loadEngine={plan}"])
    return Subject(lambda: None, ("copy", "run"), prepared_s=seconds, clock=lambda: next(times) / 1e3)


def _trtexec_times(command: Sequence[str]) -> Iterator[float]:
    """Milliseconds of single runs, for ever: the program is started again when its times are used up."""
    while True:
        with tempfile.TemporaryDirectory() as folder:
            times = Path(folder) / "times.json"
            subprocess.run([*command, f"--exportTimes={times}"], check=True, stdout=sys.stderr)
            yield from (float(each["latencyMs"]) for each in json.loads(times.read_text(encoding="utf-8")))
