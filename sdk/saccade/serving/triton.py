"""Bundles as a model repository of NVIDIA Triton Inference Server.

    DIR/NAME/           a Python model: bytes of picture files in, the predictor's answers out
    DIR/NAME_GRAPH/     a tensorrt_plan or onnxruntime_onnx model for each of its graphs, which NAME asks

Clients send pictures to NAME, or tensors to NAME_GRAPH. With the engine "python" there is NAME alone, and the
graph runs inside it, on an engine of ours.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray

from saccade import bundle as bundles
from saccade.batching import Limits
from saccade.bundle import Bundle, Graph
from saccade.engines.conformance import read_sample
from saccade.engines.engine import EngineOptions, TensorSpec
from saccade.engines.tensorrt import plans
from saccade.errors import BundleError, UsageError
from saccade.serving import triton_answers as answers
from saccade.serving import triton_config as config
from saccade.serving.repository import named
from saccade.serving.triton_model import SETTINGS
from saccade.serving.triton_plans import Plan, find_plans

__all__ = ["RepositoryOptions", "Written", "write_repository"]

Engine: TypeAlias = Literal["auto", "tensorrt", "onnxruntime", "python"]
Device: TypeAlias = Literal["cpu", "cuda"]
BundlePath: TypeAlias = "str | os.PathLike[str]"
MODEL = """\
\"\"\"What Triton's Python backend runs; everything is in the saccade package.\"\"\"

from saccade.serving.triton_model import TritonPythonModel

__all__ = ["TritonPythonModel"]
"""
_PICTURE = TensorSpec("image", "bytes", ("batch", 1))


@dataclass(frozen=True, slots=True)
class RepositoryOptions:
    """engine: what runs the graphs. "tensorrt" and "onnxruntime" are Triton's own backends; "python" is
    `saccade.load` inside the Python model; "auto" is "tensorrt" where the bundle has a plan in `precision`,
    else "onnxruntime". limits: of the batches that Triton makes, and of its queue. instances: copies of each
    model. device: "cpu", or "cuda" for each GPU of the server. threads: CPU threads within one operator, of
    each instance. prompts: the classes of zero-shot bundles.
    """

    engine: Engine = "auto"
    precision: str = "fp32"
    limits: Limits = Limits()  # noqa: RUF009 -- frozen
    instances: int = 1
    device: Device = "cpu"
    threads: int | None = None
    prompts: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.engine not in get_args(Engine):
            raise UsageError(f"engine {self.engine!r}: choose {', '.join(get_args(Engine))}")
        if self.device not in get_args(Device) or self.instances < 1:
            raise UsageError(
                f"device {self.device!r}, instances {self.instances}: cpu or cuda, and at least 1"
            )
        EngineOptions(self.device, self.threads)  # refuses what cannot be


@dataclass(frozen=True, slots=True)
class Written:
    """One model of the repository: its folder there, what runs it, and the number of its version."""

    path: Path
    backend: str
    version: int

    def to_json(self) -> dict[str, Any]:
        return {
            "model": self.path.name,
            "path": str(self.path),
            "backend": self.backend,
            "version": self.version,
        }


def write_repository(
    models: Sequence[BundlePath],
    out: str | os.PathLike[str],
    options: RepositoryOptions | None = None,
    *,
    force: bool = False,
) -> tuple[Written, ...]:
    """Write Triton models for bundles into the repository `out`, which may hold others already.

    models: BUNDLE or NAME=BUNDLE, as `saccade serve` takes them; NAME is what clients call the model.
    Everything is written beside `out` first and moved there when it is whole. force: replace models that
    exist; their version counts up. Raises UsageError for names that exist or cannot be, or for a bundle
    without a plan where engine is "tensorrt"; BundleError for a damaged bundle.
    """
    chosen, target = options or RepositoryOptions(), Path(out)
    sources = named([os.fspath(model) for model in models])
    if not sources:
        raise UsageError("there is nothing to write: give at least one bundle")
    if target.exists() and not target.is_dir():
        raise UsageError(f"{target} is a file: name a folder, which is made where there is none")
    read = {name: bundles.read(bundles.resolve(source)) for name, source in sources.items()}
    staging = target.absolute().with_name(f".{target.absolute().name}-{secrets.token_hex(4)}")
    try:
        staging.mkdir(parents=True)
        written = [
            model
            for name, bundle in read.items()
            for model in _write_models(_Place(staging, target, force), name, bundle, chosen)
        ]
        target.mkdir(parents=True, exist_ok=True)
        for model in written:
            _publish(staging / model.path.name, model.path)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return tuple(written)


@dataclass(frozen=True, slots=True)
class _Place:
    """Where models are written, and where they will be."""

    staging: Path
    target: Path
    force: bool

    def new(self, name: str, backend: str) -> tuple[Path, Written]:
        """The version's folder of a new model, and what will be there."""
        path = self.target / name
        if path.exists() and not self.force:
            raise UsageError(f"{path} exists already: --force replaces it, NAME=BUNDLE chooses another name")
        if (self.staging / name).exists():
            raise UsageError(f"two models would be called {name!r}: choose other names, as NAME=BUNDLE")
        version = 1 + max((int(p.name) for p in path.glob("*") if p.name.isdecimal()), default=0)
        folder = self.staging / name / str(version)
        folder.mkdir(parents=True)
        return folder, Written(path, backend, version)


def _publish(staged: Path, target: Path) -> None:
    if target.exists():
        target.rename(staged.with_name(f"{staged.name}.replaced"))
    staged.rename(target)


def _write_models(place: _Place, name: str, bundle: Bundle, options: RepositoryOptions) -> Iterator[Written]:
    """The models of one bundle: those that others ask come first."""
    if (bundle.task == "zero_shot") != bool(options.prompts):
        raise UsageError(
            f"{bundle.name} is made for {bundle.task}: prompts are the classes of zero-shot bundles, and "
            "these need them, as --prompt 'a dog' --prompt 'a cat'"
        )
    if options.engine == "python":
        yield _write_in_process(place, name, bundle, options)
        return
    plan_of = find_plans(bundle, options.precision) if options.engine != "onnxruntime" else {}
    if options.engine == "tensorrt" and not plan_of:
        raise UsageError(
            f"{bundle.path} has no {options.precision} plan for TensorRT: "
            + plans.build_command(bundle.path, "tensorrt", options.precision)
        )
    asked: dict[str, Any] = {}
    # An embedder is sent pictures: nothing would ask its text tower.
    for graph_name in bundle.graphs:
        if bundle.task == "embedding" and graph_name == "text":
            continue
        graph = bundles.graph_in(bundle, graph_name, options.precision)
        model_name = f"{name}_{graph_name}"
        if plan_of:
            yield _write_plan(place, model_name, graph, plan_of[graph_name], options)
        else:
            yield _write_onnx(place, model_name, graph, options)
        tensors = {"inputs": _entries(graph.inputs), "outputs": _entries(graph.outputs)}
        asked[graph_name] = {"model": model_name, **tensors}
    settings = {"card": bundle.card.to_json(), "untrained": bundle.untrained, "graphs": asked}
    yield _write_python(place, name, bundle, settings, options, "cpu")


def _write_in_process(place: _Place, name: str, bundle: Bundle, options: RepositoryOptions) -> Written:
    """The Python model with the whole bundle in it, less its plans; it repeats the sample when it starts."""
    settings = {
        "bundle": "bundle",
        "precision": options.precision,
        "threads": options.threads,
        "prove": _has_samples(bundle, options.precision),
    }
    written = _write_python(place, name, bundle, settings, options, options.device)
    inside = place.staging / name / str(written.version) / "bundle"
    for file in (*bundle.files, bundles.MANIFEST):
        (inside / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(bundle.path / file, inside / file)
    return written


def _has_samples(bundle: Bundle, precision: str) -> bool:
    """Whether every graph has answers to repeat; detectors in a lower precision have none."""
    try:
        for graph in bundle.graphs:
            bundles.sample_of(bundle, graph, precision)
    except BundleError:
        return False
    return True


def _write_python(
    place: _Place,
    name: str,
    bundle: Bundle,
    settings: Mapping[str, Any],
    options: RepositoryOptions,
    device: str,
) -> Written:
    folder, written = place.new(name, "python")
    width = len(options.prompts) or _width(bundle)
    content = {**settings, "prompts": list(options.prompts), "width": width}
    (folder / SETTINGS).write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    (folder / "model.py").write_text(MODEL, encoding="utf-8")
    outputs = config.tensors(answers.specs(answers.columns(bundle.task, width)))
    labels = options.prompts or bundle.card.labels
    if labels and bundle.task in ("classification", "zero_shot"):
        # Triton's classification extension: scores as "score:index:label".
        (folder.parent / "labels.txt").write_text("\n".join(labels) + "\n", encoding="utf-8")
        outputs = [
            {**each, "label_filename": "labels.txt"} if each["name"] == "scores" else each for each in outputs
        ]
    _write_config(
        folder,
        {
            "name": name,
            "backend": "python",
            **config.batching(options.limits),
            "input": config.tensors([_PICTURE]),
            "output": outputs,
            **config.instances(options.instances, device),
        },
    )
    return written


def _width(bundle: Bundle) -> int:
    """Classes, or numbers of an embedding: the second dimension of the first output, where it is fixed."""
    (output, *_) = next(iter(bundle.graphs.values())).outputs
    size = output.shape[1] if len(output.shape) > 1 else 0
    return size if isinstance(size, int) else 0


def _write_onnx(place: _Place, name: str, graph: Graph, options: RepositoryOptions) -> Written:
    folder, written = place.new(name, "onnxruntime")
    source = graph.files.get("onnxruntime", graph.files["source"])
    # With weights beside it, a model is a folder of this name with a file of this name in it.
    (folder / "model.onnx").mkdir()
    shutil.copyfile(source, folder / "model.onnx" / "model.onnx")
    content = source.read_bytes()
    for beside in source.parent.iterdir():
        if beside != source and beside.name.encode() in content:  # the weights that it names
            shutil.copyfile(beside, folder / "model.onnx" / beside.name)
    _write_config(
        folder,
        {
            "name": name,
            "platform": "onnxruntime_onnx",
            **config.batching(options.limits),
            "input": config.tensors(graph.inputs),
            "output": config.tensors(graph.outputs),
            **config.instances(options.instances, options.device),
            **config.parameters({"intra_op_thread_count": options.threads}),
            **_warm_up(folder, _sample(graph)),
        },
    )
    return written


def _write_plan(place: _Place, name: str, graph: Graph, plan: Plan, options: RepositoryOptions) -> Written:
    folder, written = place.new(name, "tensorrt")
    for file_name, content in plan.files.items():
        (folder / file_name).write_bytes(content)
    _write_config(
        folder,
        {
            "name": name,
            "platform": "tensorrt_plan",
            **config.batching(plan.limits(options.limits)),
            "input": config.tensors(plan.inputs),
            "output": config.tensors(plan.outputs),
            **config.instances(options.instances, "cuda"),
            **plan.file_names(),
            **_warm_up(folder, plan.fitting(_sample(graph))),
        },
    )
    return written


def _sample(graph: Graph) -> Mapping[str, NDArray[Any]]:
    """One row of each input of the bundle's conformance sample; {} where it has none."""
    if graph.sample is None:
        return {}
    return {name: np.ascontiguousarray(array[:1]) for name, array in read_sample(graph.sample).inputs.items()}


def _warm_up(folder: Path, sample: Mapping[str, NDArray[Any]]) -> config.Message:
    if not sample:
        return {}
    files = folder.parent / "warmup"
    files.mkdir()
    for name, array in sample.items():
        (files / name).write_bytes(array.tobytes())
    return config.warm_up(sample)


def _write_config(folder: Path, message: config.Message) -> None:
    (folder.parent / "config.pbtxt").write_text(config.text(message), encoding="utf-8")


def _entries(specs: Sequence[TensorSpec]) -> list[dict[str, Any]]:
    return [asdict(spec) for spec in specs]
