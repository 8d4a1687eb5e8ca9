"""OpenVINO: Intel's runtime, fastest on some models. It reads only graphs without local functions."""

from __future__ import annotations

import queue
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from saccade.engines.engine import Arrays, EngineOptions, TensorSpec, check_feeds
from saccade.engines.lifetime import Closing, Owned
from saccade.errors import EngineError


class OpenVinoEngine(Closing):
    """One compiled model, computing in float32 whatever the CPU offers.

    An infer request serves one call at a time, so each call borrows one from a pool as large as OpenVINO can
    run side by side; further calls wait.
    """

    def __init__(self, path: Path, options: EngineOptions) -> None:
        import openvino

        # On CPUs with AMX or bf16, OpenVINO would otherwise round a float32 graph to bfloat16.
        settings: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
        if options.threads is not None:
            settings["INFERENCE_NUM_THREADS"] = options.threads
        self._name = path.name
        try:
            compiled = openvino.Core().compile_model(str(path), "CPU", settings)
            parallel = compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS")
            requests = [compiled.create_infer_request() for _ in range(parallel)]
        except Exception as error:  # the runtime's errors have no common root
            raise EngineError(f"OpenVINO cannot open {path}: {_reason(error)}") from error
        self.inputs = {port.any_name: _spec(port) for port in compiled.inputs}
        self.outputs = {port.any_name: _spec(port) for port in compiled.outputs}
        pool: queue.SimpleQueue[Any] = queue.SimpleQueue()
        for request in requests:
            pool.put(request)
        self._pool = Owned(pool, f"the OpenVINO engine of {path.name}")

    def run(self, feeds: Arrays) -> dict[str, NDArray[Any]]:
        """All outputs by name, copied out of the request. Thread-safe."""
        pool = self._pool.get()
        check_feeds(feeds, self.inputs)
        request = pool.get()
        try:
            request.infer({name: np.ascontiguousarray(feed) for name, feed in feeds.items()})
            return {name: request.get_tensor(name).data.copy() for name in self.outputs}
        except Exception as error:
            raise EngineError(f"OpenVINO failed on {self._name}: {_reason(error)}") from error
        finally:
            pool.put(request)

    def close(self) -> None:
        self._pool.close()


def _spec(port: Any) -> TensorSpec:
    """OpenVINO drops the names of free dimensions; they are named after the tensor and the axis."""
    shape = (
        f"{port.any_name}_{axis}" if dimension.is_dynamic else dimension.get_length()
        for axis, dimension in enumerate(port.partial_shape)
    )
    return TensorSpec(port.any_name, np.dtype(port.element_type.to_dtype()).name, tuple(shape))


def _reason(error: Exception) -> str:
    """The last line of the message: the first ones are places in OpenVINO's sources."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
