"""OpenVINO: Intel's runtime, fastest on some models. It reads only graphs without local functions."""

from __future__ import annotations

import queue
import threading
from collections.abc import Mapping
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
        # On CPUs with AMX or bf16, OpenVINO would otherwise round a float32 graph to bfloat16.
        settings: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
        if options.threads is not None:
            settings["INFERENCE_NUM_THREADS"] = options.threads
        self._name = path.name
        try:
            compiled = _Compiled(path, settings)
        except Exception as error:  # the runtime's errors have no common root
            raise EngineError(f"OpenVINO cannot open {path}: {_reason(error)}") from error
        self.inputs, self.outputs = compiled.inputs, compiled.outputs
        self._compiled = Owned(compiled, f"the OpenVINO engine of {path.name}")

    def run(self, feeds: Arrays) -> dict[str, NDArray[Any]]:
        """All outputs by name, copied out of the request. Thread-safe."""
        compiled = self._compiled.get()
        check_feeds(feeds, self.inputs)
        try:
            pool = compiled.requests(feeds)
            request = pool.get()
            try:
                request.infer({name: np.ascontiguousarray(feed) for name, feed in feeds.items()})
                return {name: request.get_tensor(name).data.copy() for name in self.outputs}
            finally:
                pool.put(request)
        except Exception as error:
            raise EngineError(f"OpenVINO failed on {self._name}: {_reason(error)}") from error

    def close(self) -> None:
        self._compiled.close()


class _Compiled:
    """Infer requests: of the graph for a batch of one, until another is asked for; from then on of any batch.

    With every size fixed, one picture takes 1.5 to 4 % less time. Only one form is held, since each packs
    the weights for itself: another would be as much memory again.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        import openvino

        self._core, self._settings = openvino.Core(), dict(settings)
        model = self._core.read_model(str(path))
        self.inputs = {port.any_name: _spec(port) for port in model.inputs}
        self.outputs = {port.any_name: _spec(port) for port in model.outputs}
        self._lock = threading.Lock()
        self._any_batch = model if all(map(_is_free_in_batch_alone, self.inputs.values())) else None
        self._requests = self._pool(model if self._any_batch is None else self._of_one(model))

    def requests(self, feeds: Arrays) -> queue.SimpleQueue[Any]:
        """The pool that serves `feeds`; the first batch of another size than one waits for a compilation."""
        if self._any_batch is not None and any(len(feed) != 1 for feed in feeds.values()):
            with self._lock:
                if self._any_batch is not None:  # another thread may have been faster
                    self._requests = self._pool(self._any_batch)
                    self._any_batch = None
        return self._requests

    def _of_one(self, model: Any) -> Any:
        fixed = model.clone()
        fixed.reshape({name: [1, *spec.shape[1:]] for name, spec in self.inputs.items()})
        return fixed

    def _pool(self, model: Any) -> queue.SimpleQueue[Any]:
        compiled = self._core.compile_model(model, "CPU", self._settings)
        pool: queue.SimpleQueue[Any] = queue.SimpleQueue()
        for _ in range(compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS")):
            pool.put(compiled.create_infer_request())
        return pool


def _is_free_in_batch_alone(spec: TensorSpec) -> bool:
    free = [axis for axis, size in enumerate(spec.shape) if isinstance(size, str)]
    return free == [0]


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
