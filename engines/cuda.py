"""CUDA through NVIDIA's cuda-python: contexts, memory, streams, graphs. Each object frees what it holds."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import partial
from typing import Any

from saccade.errors import EngineError, MissingDependency

_OUT_OF_MEMORY = "cudaErrorMemoryAllocation"
DEFAULT_STREAM = 1  # cudaStreamLegacy; other libraries also say 0


def library(name: str = "cuda") -> Any:
    """The module with the call `name`: `cuda.bindings.runtime`; `.driver` where it begins with cu alone."""
    module = "runtime" if name.startswith("cuda") else "driver"
    try:
        return importlib.import_module(f"cuda.bindings.{module}")
    except ImportError as error:
        raise MissingDependency(f"cuda-python is not installed ({error}): pip install cuda-python") from error


def call(name: str, *arguments: Any) -> Any:
    """What the CUDA call `name` returns beside its code: nothing, one value or a tuple. EngineError else."""
    api = library(name)
    code, *values = getattr(api, name)(*arguments)
    if int(code):
        explain = "cudaGetErrorString" if name.startswith("cuda") else "cuGetErrorString"
        _, text = getattr(api, explain)(code)
        reason = text.decode() if isinstance(text, bytes) else str(text)
        hint = ""
        if getattr(code, "name", "") == _OUT_OF_MEMORY:
            hint = ": build with a smaller --batch or --size, use fewer contexts, or free the GPU"
        raise EngineError(f"{name} failed: {reason}{hint}")
    return values[0] if len(values) == 1 else tuple(values)


class _Handle:
    """A CUDA object, freed once: by `close`, or when nobody holds it any more."""

    _free: Callable[[], Any] | None = None  # until there is something to free

    def __init__(self, value: Any, free: str, *freed: Any) -> None:
        self.value = value
        self._free = partial(getattr(library(free), free), *(freed or (value,)))

    @property
    def address(self) -> int:
        return int(self.value)

    def close(self) -> None:
        free, self._free = self._free, None
        if free is not None:
            free()  # a failure has no remedy: the context is gone, and its memory with it

    def __del__(self) -> None:
        self.close()


class Context:
    """Where memory, streams and kernels live; current inside `with`, in any thread.

    The context that is current in this thread, where it is one of `device`: an application may have made its
    own, as PyCUDA does. Else the device's primary context, which CUDA's run time, PyTorch and CuPy share.
    What was current before `with` is so again after it.
    """

    def __init__(self, device: int) -> None:
        current, wanted = call("cuCtxGetCurrent"), call("cuDeviceGet", device)
        self._primary: _Handle | None = None
        if int(current) and int(call("cuCtxGetDevice")) == int(wanted):
            self._value = current
            return
        self._value = call("cuDevicePrimaryCtxRetain", wanted)
        self._primary = _Handle(self._value, "cuDevicePrimaryCtxRelease", wanted)

    def __enter__(self) -> None:
        call("cuCtxPushCurrent", self._value)

    def __exit__(self, *raised: object) -> None:
        library("cu").cuCtxPopCurrent()  # a failure has no remedy, and the next call tells


class Memory(_Handle):
    """`size` bytes in the current context, aligned to 256. Freed in that context, from any thread."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._driver, self._context = library("cu"), call("cuCtxGetCurrent")
        super().__init__(call("cudaMalloc", max(size, 1)), "cudaFree")

    def close(self) -> None:
        if self._free is None:
            return
        failed, *_ = self._driver.cuCtxPushCurrent(self._context)
        super().close()
        if not int(failed):
            self._driver.cuCtxPopCurrent()


class _Event(_Handle):
    """A point in a stream."""

    def __init__(self) -> None:
        flags = library().cudaEventDisableTiming
        super().__init__(call("cudaEventCreateWithFlags", flags), "cudaEventDestroy")


class Stream(_Handle):
    """A stream that does not wait for the default stream."""

    def __init__(self) -> None:
        flags = library().cudaStreamNonBlocking
        super().__init__(call("cudaStreamCreateWithFlags", flags), "cudaStreamDestroy")

    def copy(self, to: int, source: int, size: int, kind: str) -> None:
        """Enqueue a copy; kind: "HostToDevice", "DeviceToHost" or "DeviceToDevice"."""
        direction = getattr(library().cudaMemcpyKind, f"cudaMemcpy{kind}")
        call("cudaMemcpyAsync", to, source, size, direction, self.value)

    def follow(self, other: int) -> None:
        """What is enqueued from now on starts after what is enqueued on the stream `other` so far."""
        event = _Event()
        call("cudaEventRecord", event.value, other)
        call("cudaStreamWaitEvent", self.value, event.value, 0)
        event.close()  # the wait stays

    def wait(self) -> None:
        call("cudaStreamSynchronize", self.value)

    def capture(self, work: Callable[[], None]) -> Graph:
        """What `work` enqueues on this stream, to be replayed. Nothing runs."""
        mode = library().cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        call("cudaStreamBeginCapture", self.value, mode)
        graph = None
        try:
            try:
                work()
            finally:  # whatever happens, the stream leaves capture mode
                graph = call("cudaStreamEndCapture", self.value)
            return Graph(call("cudaGraphInstantiate", graph, 0))
        finally:
            if graph is not None:
                library().cudaGraphDestroy(graph)


class Graph(_Handle):
    """An executable CUDA graph."""

    def __init__(self, value: Any) -> None:
        super().__init__(value, "cudaGraphExecDestroy")

    def launch(self, stream: Stream) -> None:
        call("cudaGraphLaunch", self.value, stream.value)
