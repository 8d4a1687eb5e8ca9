"""The one contract between a predictor and whatever executes its graph, and the choice among engines.

A third engine is one file with one class and one line in `ENGINES`; nothing else asks which one it holds.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self, TypeAlias

import numpy as np
from numpy.typing import NDArray

from saccade.errors import EngineMismatch, InputError, MissingDependency, UsageError

Arrays: TypeAlias = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """A graph input or output: `dtype` as NumPy names it, `shape` with names for dynamic dimensions."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """How an engine may use the machine. None leaves the choice to the runtime.

    device: "cpu", "cuda" or "cuda:N". threads: CPU threads within one operator.
    memory_limit_mib: limit of the device memory arena; for CUDA devices only. TensorRT alone: contexts, the
    runs that go on at once; cuda_graphs, whether launches of repeated shapes are recorded and replayed.
    ONNX Runtime alone, on CUDA devices: provider, "cuda", or "tensorrt", which builds engines from a float32
    graph in its first run of a shape, keeps them in the user's cache, and may multiply in TF32.
    """

    device: str = "cpu"
    threads: int | None = None
    memory_limit_mib: int | None = None
    contexts: int = 1
    cuda_graphs: bool = True
    provider: str = "cuda"

    def __post_init__(self) -> None:
        if not re.fullmatch(r"cpu|cuda(:\d+)?", self.device):
            raise UsageError(f"device {self.device!r}: write cpu, cuda or cuda:N")
        if self.threads is not None and self.threads < 1:
            raise UsageError(f"threads is {self.threads}; it must be at least 1, or None for all")
        if self.contexts < 1:
            raise UsageError(f"contexts is {self.contexts}; it must be at least 1")
        if self.provider not in ("cuda", "tensorrt"):
            raise UsageError(f"provider {self.provider!r}: choose cuda or tensorrt")
        if self.provider == "tensorrt" and not self.on_cuda:
            raise UsageError(f"provider 'tensorrt' is for CUDA devices, not for {self.device!r}")
        if self.memory_limit_mib is not None and self.memory_limit_mib < 1:
            raise UsageError(f"memory_limit_mib is {self.memory_limit_mib}; it is a positive number")

    @property
    def on_cuda(self) -> bool:
        return self.device != "cpu"

    @property
    def device_index(self) -> int:
        """N of "cuda:N"; 0 otherwise."""
        return int(self.device.partition(":")[2] or 0)


class Engine(Protocol):
    """Runs one graph. `run` is thread-safe and checks its feeds (InputError).

    `close` may be called twice; `run` after it, or in a process forked from the one that opened the engine,
    raises ClosedError. Leaving a `with` block closes. Arrays returned by `run` belong to the caller.
    """

    @property
    def inputs(self) -> Mapping[str, TensorSpec]: ...
    @property
    def outputs(self) -> Mapping[str, TensorSpec]: ...
    def run(self, feeds: Arrays) -> dict[str, NDArray[Any]]: ...
    def close(self) -> None: ...
    def __enter__(self) -> Self: ...
    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...


@dataclass(frozen=True, slots=True)
class Backend:
    """Where an engine class is, the package it needs, and the extra that installs that.

    cuda: the extra that installs the form for GPUs; "" where there is none. built: it opens a file that was
    built from the graph ahead, not the graph.
    """

    target: str
    package: str
    extra: str
    cuda: str = ""
    built: bool = False


ENGINES: Mapping[str, Backend] = {
    "onnxruntime": Backend("saccade.engines.onnxruntime:OnnxRuntimeEngine", "onnxruntime", "cpu", cuda="gpu"),
    "openvino": Backend("saccade.engines.openvino:OpenVinoEngine", "openvino", "openvino"),
    "reference": Backend("saccade.engines.reference:ReferenceEngine", "onnx", "export"),
    "tensorrt": Backend(
        "saccade.engines.tensorrt.runtime:TensorRtEngine",
        "cuda.bindings",
        "tensorrt",
        cuda="tensorrt",
        built=True,
    ),
}
# What `auto` takes: the first of these that is installed and can use the device.
AUTO_ORDER = ("onnxruntime", "openvino")


def resolve_engine(engine: str = "auto", options: EngineOptions | None = None) -> str:
    """The name of the engine that `open_engine` takes: `engine`, or for "auto" the first of `AUTO_ORDER`.

    Imports no engine. Raises UsageError for a name or device that cannot work, MissingDependency with the
    line that installs what is missing.
    """
    options = options or EngineOptions()
    runs_on_cuda = options.on_cuda or (engine in ENGINES and ENGINES[engine].built)
    if options.memory_limit_mib is not None and not runs_on_cuda:
        raise UsageError(
            f"memory_limit_mib={options.memory_limit_mib} with engine {engine!r} on {options.device!r}: "
            "it is for CUDA devices only"
        )
    if engine == "auto":
        fitting = [name for name in AUTO_ORDER if ENGINES[name].cuda or not options.on_cuda]
        installed = [name for name in fitting if _is_installed(name)]
        return installed[0] if installed else _require(fitting[0], options)
    if engine not in ENGINES:
        near = difflib.get_close_matches(engine, ENGINES, n=1)
        hint = f"did you mean {near[0]!r}?" if near else "there are"
        raise UsageError(f"no engine is called {engine!r}; {hint} auto, {', '.join(ENGINES)}")
    if options.on_cuda and not ENGINES[engine].cuda:
        raise UsageError(
            f"engine {engine!r} runs on the CPU only, not on {options.device!r}; use 'onnxruntime'"
        )
    return _require(engine, options)


def open_engine(
    graphs: Mapping[str, Path], engine: str = "auto", options: EngineOptions | None = None
) -> Engine:
    """Open the variant of the graph that suits the engine.

    graphs: file by variant: "source" always; "onnxruntime", "openvino" where a graph was derived for that
    engine; "tensorrt" the folder of a plan. Raises as `resolve_engine` does, and EngineError when the runtime
    refuses the file.
    """
    options = options or EngineOptions()
    name = resolve_engine(engine, options)
    module, cls = ENGINES[name].target.split(":")
    if ENGINES[name].built and name not in graphs:
        raise EngineMismatch(
            f"engine {name!r} opens what was built for it, and nothing was: saccade build BUNDLE"
        )
    # TensorRT's parser makes fewer layers of bodies that were inlined and folded (docs/tensorrt.md).
    variant = "openvino" if name == "onnxruntime" and options.provider == "tensorrt" else name
    path = graphs.get(variant, graphs["source"])
    opened: Engine = getattr(importlib.import_module(module), cls)(path, options)
    return opened


def check_feeds(feeds: Arrays, inputs: Mapping[str, TensorSpec]) -> None:
    """Raise InputError unless `feeds` has exactly the `inputs`, in their types and shapes.

    A dimension with a name may have any size above zero, the same wherever the name stands.
    """
    if feeds.keys() != inputs.keys():
        missing, unknown = sorted(inputs.keys() - feeds.keys()), sorted(feeds.keys() - inputs.keys())
        raise InputError(f"the graph takes {sorted(inputs)}: missing {missing}, unknown {unknown}")
    sizes: dict[str, int] = {}
    for name, spec in inputs.items():
        array = feeds[name]
        if not isinstance(array, np.ndarray):
            raise InputError(f"input {name!r} is a {type(array).__name__}, not a NumPy array")
        if array.dtype != np.dtype(spec.dtype):
            raise InputError(f"input {name!r} has dtype {array.dtype}, the graph takes {spec.dtype}")
        if not _fits(array.shape, spec.shape, sizes):
            raise InputError(
                f"input {name!r} has shape {array.shape}, the graph takes ({', '.join(map(str, spec.shape))})"
            )


def _fits(shape: tuple[int, ...], expected: tuple[int | str, ...], sizes: dict[str, int]) -> bool:
    """Whether `shape` matches; notes in `sizes` what the named dimensions are."""
    if len(shape) != len(expected):
        return False
    return all(
        size == (sizes.setdefault(wanted, size) if isinstance(wanted, str) else wanted) and size > 0
        for size, wanted in zip(shape, expected, strict=True)
    )


def _is_installed(engine: str) -> bool:
    try:
        return importlib.util.find_spec(ENGINES[engine].package) is not None
    except ModuleNotFoundError:  # the package around it
        return False


def _require(engine: str, options: EngineOptions) -> str:
    if not _is_installed(engine):
        extra = ENGINES[engine].cuda if options.on_cuda else ENGINES[engine].extra
        raise MissingDependency(
            f"engine {engine!r} needs {ENGINES[engine].package}, which is not installed: "
            f"pip install 'saccade[{extra}]'"
        )
    return engine
