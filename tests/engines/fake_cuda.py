"""Stand-ins for CUDA's run time and its driver: test_tensorrt_api.py holds their names to NVIDIA's."""

from __future__ import annotations

import ctypes
import enum
from collections.abc import Callable
from typing import Any

from tests.engines.faults import Faults, call


class CudaError(enum.IntEnum):
    cudaSuccess = 0
    cudaErrorMemoryAllocation = 2


class Cuda:
    """The module `cuda.bindings.runtime`. Device memory is host memory at addresses of its own."""

    cudaStreamNonBlocking = 1

    class cudaMemcpyKind(enum.IntEnum):
        cudaMemcpyHostToDevice = 1
        cudaMemcpyDeviceToHost = 2
        cudaMemcpyDeviceToDevice = 3

    class cudaStreamCaptureMode(enum.IntEnum):
        cudaStreamCaptureModeThreadLocal = 1

    def __init__(self, faults: Faults) -> None:
        self._faults = faults
        self._held: dict[int, Any] = {}
        self._handles: dict[int, str] = {}
        self._recording: dict[int, list[Callable[[], None]]] = {}
        self._graphs: dict[int, list[Callable[[], None]]] = {}
        self._next = 1
        self.launches = 0

    @property
    def leaks(self) -> list[str]:
        """What was made and not freed."""
        return [*(f"memory {address:x}" for address in self._held), *self._handles.values()]

    def _complain(self, words: str) -> None:
        pass

    def _handle(self, kind: str) -> int:
        self._next += 1
        self._handles[self._next] = kind
        return self._next

    def enqueue(self, stream: int, work: Callable[[], None]) -> None:
        recording = self._recording.get(stream)
        if recording is None:
            work()
        else:
            recording.append(work)

    def cudaGetErrorString(self, code: Any) -> tuple[Any, bytes]:
        return CudaError.cudaSuccess, b"out of memory"

    @call((CudaError.cudaErrorMemoryAllocation,))
    def cudaSetDevice(self, index: int) -> tuple[Any, ...]:
        return (CudaError.cudaSuccess,)

    @call((CudaError.cudaErrorMemoryAllocation, None))
    def cudaMalloc(self, size: int) -> tuple[Any, int]:
        memory = ctypes.create_string_buffer(size + 256)
        self._held[ctypes.addressof(memory)] = memory
        return CudaError.cudaSuccess, ctypes.addressof(memory)

    def cudaFree(self, address: int) -> tuple[Any, ...]:
        del self._held[address]
        return (CudaError.cudaSuccess,)

    @call((CudaError.cudaErrorMemoryAllocation,))
    def cudaMemcpyAsync(self, to: int, source: int, size: int, kind: Any, stream: int) -> tuple[Any, ...]:
        ctypes.memmove(to, source, size)
        return (CudaError.cudaSuccess,)

    @call((CudaError.cudaErrorMemoryAllocation, None))
    def cudaStreamCreateWithFlags(self, flags: int) -> tuple[Any, int]:
        return CudaError.cudaSuccess, self._handle("stream")

    def cudaStreamDestroy(self, stream: int) -> tuple[Any, ...]:
        del self._handles[stream]
        return (CudaError.cudaSuccess,)

    @call((CudaError.cudaErrorMemoryAllocation,))
    def cudaStreamSynchronize(self, stream: int) -> tuple[Any, ...]:
        return (CudaError.cudaSuccess,)

    @call((CudaError.cudaErrorMemoryAllocation,))
    def cudaStreamBeginCapture(self, stream: int, mode: Any) -> tuple[Any, ...]:
        self._recording[stream] = []
        return (CudaError.cudaSuccess,)

    def cudaStreamEndCapture(self, stream: int) -> tuple[Any, int | None]:
        recorded = self._recording.pop(stream)  # also where it fails
        if self._faults.strikes("cudaStreamEndCapture"):
            return CudaError.cudaErrorMemoryAllocation, None
        graph = self._handle("graph")
        self._graphs[graph] = recorded
        return CudaError.cudaSuccess, graph

    def cudaGraphDestroy(self, graph: int) -> tuple[Any, ...]:
        del self._handles[graph]
        return (CudaError.cudaSuccess,)

    @call((CudaError.cudaErrorMemoryAllocation, None))
    def cudaGraphInstantiate(self, graph: int, flags: int) -> tuple[Any, int]:
        executable = self._handle("executable graph")
        self._graphs[executable] = self._graphs[graph]
        return CudaError.cudaSuccess, executable

    def cudaGraphExecDestroy(self, graph: int) -> tuple[Any, ...]:
        del self._handles[graph]
        return (CudaError.cudaSuccess,)

    @call((CudaError.cudaErrorMemoryAllocation,))
    def cudaGraphLaunch(self, graph: int, stream: int) -> tuple[Any, ...]:
        self.launches += 1
        for work in self._graphs[graph]:
            work()
        return (CudaError.cudaSuccess,)


class Driver:
    """libcuda.so.1 as ctypes gives it, with one GPU of capability 9.0."""

    name = b"NVIDIA H100 80GB HBM3"

    def __init__(self, faults: Faults) -> None:
        self._faults = faults

    def _complain(self, words: str) -> None:
        pass

    def cuGetErrorString(self, code: int, text: Any) -> int:
        text._obj.value = b"no CUDA-capable device is detected"
        return 0

    @call(100)
    def cuInit(self, flags: int) -> int:
        return 0

    @call(100)
    def cuDeviceGetCount(self, count: Any) -> int:
        count._obj.value = 1
        return 0

    @call(100)
    def cuDeviceGet(self, device: Any, index: int) -> int:
        device._obj.value = index
        return 0

    @call(100)
    def cuDeviceGetName(self, name: Any, size: int, device: Any) -> int:
        name.value = self.name
        return 0

    @call(100)
    def cuDeviceGetAttribute(self, value: Any, attribute: int, device: Any) -> int:
        value._obj.value = {75: 9, 76: 0}[attribute]
        return 0

    @call(100)
    def cuDriverGetVersion(self, version: Any) -> int:
        version._obj.value = 13010
        return 0
