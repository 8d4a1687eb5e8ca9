"""ONNX Runtime: the default engine, on CPUs and NVIDIA GPUs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from saccade.engines.engine import Arrays, EngineOptions, TensorSpec, check_feeds
from saccade.engines.lifetime import Closing, Owned
from saccade.errors import EngineError, InputError, MissingDependency

_SILENT = 4  # severity; what goes wrong arrives as an exception, once
_BOUNDED_SPINNING = (1, 31)  # the release it was measured with; one without a bound would spin on
_SPIN_US = "200"


class OnnxRuntimeEngine(Closing):
    """One `InferenceSession`.

    External weights are mapped; what a kernel wants in its own layout is copied once, so that there is one
    copy in memory either way. The session's threads spin briefly between the nodes of a run, and not between
    runs: a waiting predictor costs no processor time.
    """

    def __init__(self, path: Path, options: EngineOptions) -> None:
        import onnxruntime

        providers = _providers(options, onnxruntime.get_available_providers())
        self._name = path.name
        try:
            session = onnxruntime.InferenceSession(str(path), _session_options(options), providers=providers)
        except Exception as error:  # the runtime's errors have no common root
            raise EngineError(f"ONNX Runtime cannot open {path}: {_reason(error)}") from error
        if options.on_cuda and session.get_providers()[0] != "CUDAExecutionProvider":
            raise EngineError(
                f"ONNX Runtime found no usable CUDA for {options.device!r}: see `saccade doctor`"
            )
        self.inputs = {node.name: _spec(node) for node in session.get_inputs()}
        self.outputs = {node.name: _spec(node) for node in session.get_outputs()}
        self._invalid = onnxruntime.capi.onnxruntime_pybind11_state.InvalidArgument
        self._session = Owned(session, f"the ONNX Runtime engine of {path.name}")

    def run(self, feeds: Arrays) -> dict[str, NDArray[Any]]:
        """All outputs by name. Thread-safe: a session runs concurrently."""
        session = self._session.get()
        check_feeds(feeds, self.inputs)
        names = list(self.outputs)
        try:
            values = session.run(names, {name: np.ascontiguousarray(feed) for name, feed in feeds.items()})
        except self._invalid as error:
            raise InputError(f"ONNX Runtime cannot run {self._name} on this: {_reason(error)}") from error
        except Exception as error:
            raise EngineError(f"ONNX Runtime failed on {self._name}: {_reason(error)}") from error
        return dict(zip(names, values, strict=True))

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


def _providers(options: EngineOptions, available: list[str]) -> list[Any]:
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
    return [("CUDAExecutionProvider", settings), "CPUExecutionProvider"]


_DTYPES = {"float": "float32", "double": "float64", "float16": "float16"}


def _spec(node: Any) -> TensorSpec:
    """ONNX Runtime writes types as tensor(float), and free dimensions as names or None."""
    kind = node.type.removeprefix("tensor(").removesuffix(")")
    shape = (size if size is not None else f"{node.name}_{axis}" for axis, size in enumerate(node.shape))
    return TensorSpec(node.name, _DTYPES.get(kind, kind), tuple(shape))


def _reason(error: Exception) -> str:
    """The runtime's message without its status code in front."""
    return re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", str(error).strip()) or type(error).__name__
