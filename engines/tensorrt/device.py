"""Device memory, streams and CUDA graphs, through NVIDIA's cuda-python. Each object frees what it holds."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from saccade.errors import EngineError, InputError, MissingDependency

_OUT_OF_MEMORY = "cudaErrorMemoryAllocation"


def cuda() -> Any:
    """The module `cuda.bindings.runtime`."""
    try:
        return importlib.import_module("cuda.bindings.runtime")
    except ImportError as error:
        raise MissingDependency(
            f"cuda-python is not installed ({error}): pip install 'saccade[tensorrt]'"
        ) from error


def call(name: str, *arguments: Any) -> Any:
    """What the CUDA call `name` returns beside its code: nothing, one value or a tuple. EngineError else."""
    library = cuda()
    code, *values = getattr(library, name)(*arguments)
    if int(code):
        _, text = library.cudaGetErrorString(code)
        reason = text.decode() if isinstance(text, bytes) else str(text)
        hint = ""
        if getattr(code, "name", "") == _OUT_OF_MEMORY:
            hint = ": build with a smaller --batch or --size, use fewer contexts, or free the GPU"
        raise EngineError(f"{name} failed: {reason}{hint}")
    return values[0] if len(values) == 1 else tuple(values)


class _Handle:
    """A CUDA object, freed once: by `close`, or when nobody holds it any more."""

    _free: Callable[[Any], Any] | None = None  # until there is something to free

    def __init__(self, value: Any, free: str) -> None:
        self.value = value
        self._free = getattr(cuda(), free)

    def close(self) -> None:
        free, self._free = self._free, None
        if free is not None:
            free(self.value)  # a failure has no remedy: the context is gone, and its memory with it

    def __del__(self) -> None:
        self.close()


class Memory(_Handle):
    """`size` bytes on the current device, aligned to 256."""

    def __init__(self, size: int) -> None:
        self.size = size
        super().__init__(call("cudaMalloc", max(size, 1)), "cudaFree")

    @property
    def address(self) -> int:
        return int(self.value)


class Stream(_Handle):
    """A stream that does not wait for the default stream."""

    def __init__(self) -> None:
        flags = cuda().cudaStreamNonBlocking
        super().__init__(call("cudaStreamCreateWithFlags", flags), "cudaStreamDestroy")

    @property
    def address(self) -> int:
        return int(self.value)

    def copy(self, to: int, source: int, size: int, kind: str) -> None:
        """Enqueue a copy; kind: "HostToDevice", "DeviceToHost" or "DeviceToDevice"."""
        direction = getattr(cuda().cudaMemcpyKind, f"cudaMemcpy{kind}")
        call("cudaMemcpyAsync", to, source, size, direction, self.value)

    def wait(self) -> None:
        call("cudaStreamSynchronize", self.value)

    def capture(self, work: Callable[[], None]) -> Graph:
        """What `work` enqueues on this stream, to be replayed. Nothing runs."""
        mode = cuda().cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
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
                cuda().cudaGraphDestroy(graph)


class Graph(_Handle):
    """An executable CUDA graph."""

    def __init__(self, value: Any) -> None:
        super().__init__(value, "cudaGraphExecDestroy")

    def launch(self, stream: Stream) -> None:
        call("cudaGraphLaunch", self.value, stream.value)


class DeviceArray:
    """An array on the GPU that owns its memory. CuPy, PyTorch, Numba and PyCUDA take it as it is:
    it speaks `__cuda_array_interface__`. shape, dtype: as NumPy's; C-contiguous.
    """

    def __init__(self, memory: Memory, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self._memory = memory
        self.shape = shape
        self.dtype = dtype

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        # No stream: whoever gets the array may read it, the work that fills it is done.
        return {
            "shape": self.shape,
            "typestr": self.dtype.str,
            "data": (self._memory.address, False),
            "version": 3,
            "strides": None,
            "stream": None,
        }


class Feed:
    """An input where it lies: on the host, or on the device. Keeps the array alive."""

    def __init__(self, name: str, array: Any) -> None:
        self._array: Any
        interface = getattr(array, "__cuda_array_interface__", None)
        self.on_device = interface is not None
        if interface is None:
            host: NDArray[Any] = np.ascontiguousarray(array)
            self._array, self.address = host, host.ctypes.data
            self.shape, self.dtype = host.shape, host.dtype
            return
        self._array, self.address = array, int(interface["data"][0])
        self.shape, self.dtype = tuple(interface["shape"]), np.dtype(interface["typestr"])
        _check_contiguous(name, self.shape, self.dtype, interface.get("strides"))
        producer = interface.get("stream")
        if producer is not None:
            call("cudaStreamSynchronize", producer)  # the array may still be in the making

    @property
    def size(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize

    def stand_in(self) -> NDArray[Any]:
        """An array of this shape and type that takes no memory."""
        return np.broadcast_to(np.empty((), self.dtype), self.shape)


def _check_contiguous(
    name: str, shape: Sequence[int], dtype: np.dtype[Any], strides: Sequence[int] | None
) -> None:
    expected, step = [], dtype.itemsize
    for size in reversed(shape):
        expected.append(step)
        step *= size
    if strides is not None and list(strides) != expected[::-1]:
        raise InputError(f"input {name!r} is not contiguous on the device: copy it first, as x.copy()")
