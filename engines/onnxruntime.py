"""ONNX Runtime: the default engine, on CPUs and NVIDIA GPUs."""

from __future__ import annotations

import hashlib
import importlib
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from saccade.engines.arrays import DeviceArray, is_array, is_on_device, located, on_host
from saccade.engines.cuda import DEFAULT_STREAM, call
from saccade.engines.engine import EngineOptions, TensorSpec, check_feeds
from saccade.engines.lifetime import Closing, Owned
from saccade.errors import EngineError, InputError, MissingDependency, UsageError

T = TypeVar("T")

_SILENT = 4  # severity; what goes wrong arrives as an exception, once
_BOUNDED_SPINNING = (1, 31)  # the release it was measured with; one without a bound would spin on
_SPIN_US = "200"


class OnnxRuntimeEngine(Closing):
    """One `InferenceSession`.

    External weights are mapped; what a kernel wants in its own layout is copied once, so that there is one
    copy in memory either way. The session's threads spin briefly between the nodes of a run, and not between
    runs: a waiting predictor costs no processor time.

    On a GPU it lives in the device's primary CUDA context. Arrays there are bound where they lie.
    """

    def __init__(self, path: Path, options: EngineOptions) -> None:
        import onnxruntime

        providers = _providers(path, options, onnxruntime.get_available_providers())
        self._name = path.name
        self._device = options.device_index if options.on_cuda else None
        try:
            session = onnxruntime.InferenceSession(str(path), _session_options(options), providers=providers)
        except Exception as error:  # the runtime's errors have no common root
            raise EngineError(f"ONNX Runtime cannot open {path}: {_reason(error)}") from error
        wanted = providers[0][0] if options.on_cuda else "CPUExecutionProvider"
        if session.get_providers()[0] != wanted:  # it goes on with another one, and says nothing
            raise EngineError(
                f"ONNX Runtime found no usable {_LIBRARIES[wanted]} for {options.device!r}: "
                "see `saccade doctor`"
            )
        self.inputs = {node.name: _spec(node) for node in session.get_inputs()}
        self.outputs = {node.name: _spec(node) for node in session.get_outputs()}
        self._invalid = onnxruntime.capi.onnxruntime_pybind11_state.InvalidArgument
        self._session = Owned(session, f"the ONNX Runtime engine of {path.name}")

    def run(self, feeds: Mapping[str, Any], *, stream: int | None = None) -> dict[str, NDArray[Any]]:
        """All outputs by name. Thread-safe: a session runs concurrently.

        feeds: NumPy arrays, or any that speak DLPack or `__cuda_array_interface__`. stream: the handle of an
        application's CUDA stream, which makes the arrays on the device: it is waited for.
        """
        session, names = self._session.get(), list(self.outputs)
        if any(is_on_device(each) for each in feeds.values()):
            binding = self._bound(session, feeds, stream, "cpu")
            self._attempt(lambda: session.run_with_iobinding(binding))
            return dict(zip(names, binding.copy_outputs_to_cpu(), strict=True))
        given = {name: on_host(name, each) if is_array(each) else each for name, each in feeds.items()}
        check_feeds(given, self.inputs)
        contiguous = {name: np.ascontiguousarray(feed) for name, feed in given.items()}
        return dict(zip(names, self._attempt(lambda: session.run(names, contiguous)), strict=True))

    def run_on_device(self, feeds: Mapping[str, Any], *, stream: int | None = None) -> dict[str, DeviceArray]:
        """As `run`; the outputs stay on the GPU. They are the caller's, and finished."""
        if self._device is None:
            raise UsageError("run_on_device needs a GPU: open the engine with device='cuda'")
        session = self._session.get()
        binding = self._bound(session, feeds, stream, "cuda")
        self._attempt(lambda: session.run_with_iobinding(binding))
        found = {}
        for spec, value in zip(self.outputs.values(), binding.get_outputs(), strict=True):
            owner = (value, binding, session)  # the memory is the session's
            found[spec.name] = DeviceArray(
                owner, value.data_ptr(), tuple(value.shape()), np.dtype(spec.dtype)
            )
        return found

    def _bound(self, session: Any, feeds: Mapping[str, Any], stream: int | None, outputs_on: str) -> Any:
        """An IO binding of `feeds`, whose values are made, and of all outputs."""
        if self._device is None:
            raise InputError(
                "an input lies on a GPU, and the engine runs on the CPU: open it with device='cuda'"
            )
        after = DEFAULT_STREAM if stream == 0 else stream
        given = located(feeds, self.inputs, self._device, after)
        binding = session.io_binding()
        for name, feed in given.items():
            if feed.on_device:
                binding.bind_input(name, "cuda", self._device, feed.dtype.type, feed.shape, feed.address)
            else:
                binding.bind_cpu_input(name, feed.owner)
        for name in self.outputs:
            binding.bind_output(name, outputs_on, self._device if outputs_on == "cuda" else 0)
        for other in {after, *(feed.after for feed in given.values())} - {None}:
            call("cudaStreamSynchronize", other)  # the session has a stream of its own
        return binding

    def _attempt(self, work: Callable[[], T]) -> T:
        """What `work` gives; the runtime's errors as ours."""
        try:
            return work()
        except self._invalid as error:
            raise InputError(f"ONNX Runtime cannot run {self._name} on this: {_reason(error)}") from error
        except Exception as error:
            raise EngineError(f"ONNX Runtime failed on {self._name}: {_reason(error)}") from error

    def close(self) -> None:
        self._session.close()


def _session_options(options: EngineOptions) -> Any:
    import onnxruntime

    session = onnxruntime.SessionOptions()
    session.log_severity_level = _SILENT
    if options.threads is not None:
        session.intra_op_num_threads = options.threads
    # Plans of all activations, one for every batch size seen: a tenth more memory, no time won.
    session.enable_mem_pattern = False
    for key, value in _spinning(onnxruntime.__version__).items():
        session.add_session_config_entry(key, value)
    return session


def _spinning(version: str) -> dict[str, str]:
    """For a while only: threads that spin without end take the processor from others that have work."""
    if tuple(map(int, version.split(".")[:2])) < _BOUNDED_SPINNING:
        return {"session.intra_op.allow_spinning": "0"}
    return {"session.intra_op.spin_duration_us": _SPIN_US, "session.force_spinning_stop": "1"}


_LIBRARIES = {"CUDAExecutionProvider": "CUDA", "TensorrtExecutionProvider": "TensorRT"}


def _providers(path: Path, options: EngineOptions, available: list[str]) -> list[Any]:
    """Execution providers in order of preference, with their settings."""
    if not options.on_cuda:
        return ["CPUExecutionProvider"]
    if "CUDAExecutionProvider" not in available:
        raise MissingDependency(
            "the installed onnxruntime has no CUDA: "
            "pip uninstall -y onnxruntime && pip install 'saccade[gpu]'"
        )
    # TF32 keeps 10 bits of every factor; float32 graphs were verified in float32.
    settings = {"device_id": options.device_index, "use_tf32": 0}
    if options.memory_limit_mib is not None:
        settings["gpu_mem_limit"] = options.memory_limit_mib * 2**20
    found = [("CUDAExecutionProvider", settings), "CPUExecutionProvider"]
    return [_tensorrt(path, options, available), *found] if options.provider == "tensorrt" else found


def _tensorrt(path: Path, options: EngineOptions, available: list[str]) -> tuple[str, dict[str, Any]]:
    if "TensorrtExecutionProvider" not in available:
        raise MissingDependency(
            "the installed onnxruntime has no TensorRT: pip install 'saccade[gpu,tensorrt]', "
            "or take engine='tensorrt'"
        )
    with suppress(ImportError):
        importlib.import_module("tensorrt")  # what its wheel loads, the provider then finds
    from saccade.engines.tensorrt.plans import cache

    # The provider finds its engines again by the names of nodes; weights may be others under the same.
    folder = cache() / "onnxruntime" / _digest(path)
    folder.mkdir(parents=True, exist_ok=True)
    return "TensorrtExecutionProvider", {
        "device_id": options.device_index,
        "trt_engine_cache_enable": True,
        "trt_engine_cache_path": str(folder),
        "trt_timing_cache_enable": True,
        "trt_timing_cache_path": str(folder),
    }


def _digest(path: Path) -> str:
    """A sum over the graph, the weights beside it, and the libraries' versions."""
    from importlib.metadata import PackageNotFoundError, version

    import onnxruntime

    versions = [onnxruntime.__version__]
    with suppress(PackageNotFoundError):
        versions.append(version("tensorrt"))
    whole = hashlib.sha256(" ".join(versions).encode())
    weights = (each for each in sorted(path.parent.iterdir()) if each.is_file() and each.suffix != ".onnx")
    for each in (path, *weights):
        with each.open("rb") as file:
            whole.update(hashlib.file_digest(file, "sha256").digest())
    return whole.hexdigest()[:32]


_DTYPES = {"float": "float32", "double": "float64", "float16": "float16"}


def _spec(node: Any) -> TensorSpec:
    """ONNX Runtime writes types as tensor(float), and free dimensions as names or None."""
    kind = node.type.removeprefix("tensor(").removesuffix(")")
    shape = (size if size is not None else f"{node.name}_{axis}" for axis, size in enumerate(node.shape))
    return TensorSpec(node.name, _DTYPES.get(kind, kind), tuple(shape))


def _reason(error: Exception) -> str:
    """The runtime's message without its status code in front."""
    return re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", str(error).strip()) or type(error).__name__
