"""ONNX Runtime on CUDA and through its TensorRT provider: what is bound, and what is refused.

No GPU here: the real ONNX Runtime executes the real bindings, on the CPU, and says that it is CUDA
(`OnCuda`); device memory is the stand-in's (fake_cuda.py).
"""

from __future__ import annotations

import ctypes
import gc
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from tests import tiny
from tests.engines.fake_tensorrt import OnDevice, World

import saccade
from saccade.engines.engine import EngineOptions, open_engine
from saccade.engines.onnxruntime import OnnxRuntimeEngine
from saccade.errors import EngineError, InputError, MissingDependency, UsageError

CUDA, TENSORRT, CPU = "CUDAExecutionProvider", "TensorrtExecutionProvider", "CPUExecutionProvider"
STREAM = 77


class Binding:
    """An IOBinding whose GPU is the CPU."""

    def __init__(self, real: Any) -> None:
        self.real = real
        self.bound: list[tuple[str, str]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)

    def bind_cpu_input(self, name: str, array: Any) -> None:
        self.bound.append((name, "host"))
        self.real.bind_cpu_input(name, array)

    def bind_input(self, name: str, device: str, index: int, *facts: Any) -> None:
        self.bound.append((name, f"{device}:{index}"))
        self.real.bind_input(name, "cpu", 0, *facts)

    def bind_output(self, name: str, device: str, index: int) -> None:
        self.bound.append((name, f"{device}:{index}"))
        self.real.bind_output(name, "cpu", 0)


class Session:
    def __init__(self, real: Any, providers: list[str]) -> None:
        self.real, self.providers = real, providers
        self.bindings: list[Binding] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)

    def get_providers(self) -> list[str]:
        return self.providers

    def io_binding(self) -> Binding:
        self.bindings.append(Binding(self.real.io_binding()))
        return self.bindings[-1]

    def run_with_iobinding(self, binding: Binding) -> None:
        self.real.run_with_iobinding(binding.real)


class OnCuda:
    """The module `onnxruntime` as built for GPUs, over the CPU's kernels. usable: providers that start."""

    def __init__(self, available: list[str], usable: list[str]) -> None:
        self._available, self._usable = available, usable
        self.wanted: list[Any] = []
        self.opened = ""

    def __getattr__(self, name: str) -> Any:
        return getattr(onnxruntime, name)

    def get_available_providers(self) -> list[str]:
        return [*self._available, CPU]

    def InferenceSession(self, path: str, options: Any, providers: list[Any]) -> Session:
        self.wanted, self.opened = providers, path
        names = [each if isinstance(each, str) else each[0] for each in providers]
        real = onnxruntime.InferenceSession(path, options, providers=[CPU])
        self.session = Session(real, [name for name in names if name in (*self._usable, CPU)])
        return self.session


@pytest.fixture
def enter(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., OnCuda]:
    monkeypatch.setenv("SACCADE_CACHE", str(tmp_path / "cache"))

    def _enter(available: list[str], usable: list[str] | None = None) -> OnCuda:
        module = OnCuda(available, available if usable is None else usable)
        monkeypatch.setitem(sys.modules, "onnxruntime", module)  # type: ignore[arg-type]
        return module

    return _enter


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    folder = tmp_path / "graphs"
    folder.mkdir()
    onnx.save(tiny.model(), folder / "model.onnx")
    return folder / "model.onnx"


def image(batch: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(0).standard_normal((batch, 3, 32, 32)).astype(np.float32)


def test_device_arrays_are_bound_where_they_lie(
    graph: Path, world: World, enter: Callable[..., OnCuda]
) -> None:
    module = enter([CUDA])
    pixels = image(2)
    fed = OnDevice(world, np.zeros_like(pixels), stream=STREAM)
    address = fed.__cuda_array_interface__["data"][0]
    world.cuda.later(STREAM, lambda: ctypes.memmove(address, pixels.ctypes.data, pixels.nbytes))
    with OnnxRuntimeEngine(graph, EngineOptions("cuda")) as engine:
        found = engine.run({"image": fed})["logits"]
        np.testing.assert_allclose(found, tiny.logits(pixels), rtol=1e-5, atol=1e-5)
        (binding,) = module.session.bindings
        assert binding.bound == [("image", "cuda:0"), ("logits", "cpu:0")]
        np.testing.assert_array_equal(engine.run({"image": pixels})["logits"], found)
    assert len(module.session.bindings) == 1  # NumPy in and out needs none


@pytest.mark.parametrize("on_device", [False, True])
def test_outputs_stay_on_the_device_and_outlive_the_engine(
    graph: Path, world: World, enter: Callable[..., OnCuda], on_device: bool
) -> None:
    module = enter([CUDA])
    pixels = image(3)
    with OnnxRuntimeEngine(graph, EngineOptions("cuda")) as engine:
        out = engine.run_on_device({"image": OnDevice(world, pixels) if on_device else pixels})["logits"]
        bound = module.session.bindings[0].bound
        engine.run_on_device({"image": image(3) + 1})
    assert bound == [("image", "cuda:0" if on_device else "host"), ("logits", "cuda:0")]
    del engine, module.session
    gc.collect()
    facts = out.__cuda_array_interface__
    assert (facts["shape"], facts["typestr"]) == ((3, 10), "<f4")
    read = np.frombuffer(ctypes.string_at(facts["data"][0], 3 * 10 * 4), np.float32).reshape(3, 10)
    np.testing.assert_allclose(read, tiny.logits(pixels), rtol=1e-5, atol=1e-5)


def test_device_arrays_that_do_not_fit(graph: Path, world: World, enter: Callable[..., OnCuda]) -> None:
    enter([CUDA])
    there = OnDevice(world, image(1))
    world.cuda.placed[there.__cuda_array_interface__["data"][0]] = (0, 1)
    with OnnxRuntimeEngine(graph, EngineOptions("cuda")) as engine:
        with pytest.raises(InputError, match="lies on 'cuda:1', the engine runs on 'cuda:0'"):
            engine.run({"image": there})
        with pytest.raises(InputError, match=r"shape \(1, 3, 16, 16\)"):
            engine.run({"image": OnDevice(world, image(1)[:, :, :16, :16].copy())})
    with OnnxRuntimeEngine(graph, EngineOptions()) as engine:
        with pytest.raises(InputError, match="the engine runs on the CPU: open it with device='cuda'"):
            engine.run({"image": OnDevice(world, image(1))})
        with pytest.raises(UsageError, match="run_on_device needs a GPU"):
            engine.run_on_device({"image": image(1)})


def test_tensorrt_comes_first_and_keeps_its_engines(
    graph: Path, enter: Callable[..., OnCuda], tmp_path: Path
) -> None:
    module = enter([TENSORRT, CUDA])
    options = EngineOptions("cuda:1", provider="tensorrt", memory_limit_mib=64)
    folders = []
    for weights in (b"one", b"one", b"two"):  # the second time as the first
        (graph.parent / "weights.bin").write_bytes(weights)
        with OnnxRuntimeEngine(graph, options) as engine:
            engine.run({"image": image(1)})
        (first, settings), (second, cuda), last = module.wanted
        assert (first, second, last) == (TENSORRT, CUDA, CPU)
        assert settings["device_id"] == cuda["device_id"] == 1
        assert cuda["gpu_mem_limit"] == 64 << 20
        folders.append(Path(settings["trt_engine_cache_path"]))
    assert folders[0].is_relative_to(tmp_path / "cache")
    assert folders[0].is_dir()
    assert folders[0] == folders[1] != folders[2]


@pytest.mark.parametrize(
    ("available", "usable", "error", "message"),
    [
        ([CUDA], [CUDA], MissingDependency, r"no TensorRT: pip install 'saccade\[gpu,tensorrt\]'"),
        ([TENSORRT, CUDA], [CUDA], EngineError, "no usable TensorRT for 'cuda'"),
        ([TENSORRT, CUDA], [], EngineError, "no usable TensorRT for 'cuda'"),
    ],
)
def test_without_tensorrt_nothing_else_is_taken(
    graph: Path,
    enter: Callable[..., OnCuda],
    available: list[str],
    usable: list[str],
    error: type[Exception],
    message: str,
) -> None:
    enter(available, usable)
    with pytest.raises(error, match=message):
        OnnxRuntimeEngine(graph, EngineOptions("cuda", provider="tensorrt"))


def test_cuda_that_does_not_start_is_said(graph: Path, enter: Callable[..., OnCuda]) -> None:
    enter([CUDA], usable=[])
    with pytest.raises(EngineError, match="no usable CUDA for 'cuda': see `saccade doctor`"):
        OnnxRuntimeEngine(graph, EngineOptions("cuda"))


def test_tensorrt_gets_the_graph_without_functions(graph: Path, enter: Callable[..., OnCuda]) -> None:
    module = enter([TENSORRT, CUDA])
    inlined = graph.with_name("model.openvino.onnx")
    inlined.write_bytes(graph.read_bytes())
    graphs = {"source": graph, "onnxruntime": graph, "openvino": inlined}
    for provider, opened in (("tensorrt", inlined), ("cuda", graph)):
        open_engine(graphs, "onnxruntime", EngineOptions("cuda", provider=provider)).close()
        assert module.opened == str(opened)


def test_a_bundle_is_loaded_on_the_provider(tmp_path: Path, enter: Callable[..., OnCuda]) -> None:
    module = enter([TENSORRT, CUDA])
    made = tiny.write_bundle(tmp_path / "tiny")
    with saccade.load(made.path, device="cuda", provider="tensorrt", prove=True) as predictor:
        assert predictor.engine_name == "onnxruntime"
    assert [each[0] for each in module.wanted[:2]] == [TENSORRT, CUDA]
    with pytest.raises(UsageError, match="chooses the precision of layers itself, not 'fp16'"):
        saccade.load(made.path, device="cuda", provider="tensorrt", precision="fp16")
