"""Stand-ins for CUDA's run time and its driver: test_tensorrt_api.py holds their names to NVIDIA's.

Work on a stream is done at once, but for what `Cuda.later` leaves there until somebody waits for it.
"""

from __future__ import annotations

import ctypes
import enum
import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from tests.engines.faults import Faults, call


class CudaError(enum.IntEnum):
    cudaSuccess = 0
    cudaErrorMemoryAllocation = 2


class CudaResult(enum.IntEnum):
    CUDA_SUCCESS = 0
    CUDA_ERROR_CONTEXT_IS_DESTROYED = 709


class DriverApi:
    """The module `cuda.bindings.driver`: CUDA contexts, of which each thread has a stack."""

    PRIMARY = 1000

    def __init__(self, faults: Faults) -> None:
        self._faults = faults
        self._threads = threading.local()
        self.retained = 0
        self.devices: dict[int, int] = {}  # of contexts that are not on the first

    def _complain(self, words: str) -> None:
        pass

    @property
    def stack(self) -> list[int]:
        """The contexts of this thread, the current one last."""
        if not hasattr(self._threads, "stack"):
            self._threads.stack = []
        return self._threads.stack

    @property
    def current(self) -> int:
        return self.stack[-1] if self.stack else 0

    def cuGetErrorString(self, code: Any) -> tuple[Any, bytes]:
        return CudaResult.CUDA_SUCCESS, b"context is destroyed"

    @call((CudaResult.CUDA_ERROR_CONTEXT_IS_DESTROYED, None))
    def cuCtxGetCurrent(self) -> tuple[Any, int]:
        return CudaResult.CUDA_SUCCESS, self.current

    @call((CudaResult.CUDA_ERROR_CONTEXT_IS_DESTROYED, None))
    def cuCtxGetDevice(self) -> tuple[Any, int]:
        return CudaResult.CUDA_SUCCESS, self.devices.get(self.current, 0)

    @call((CudaResult.CUDA_ERROR_CONTEXT_IS_DESTROYED, None))
    def cuDeviceGet(self, ordinal: int) -> tuple[Any, int]:
        return CudaResult.CUDA_SUCCESS, ordinal

    @call((CudaResult.CUDA_ERROR_CONTEXT_IS_DESTROYED,))
    def cuCtxPushCurrent(self, context: int) -> tuple[Any, ...]:
        self.stack.append(context)
        return (CudaResult.CUDA_SUCCESS,)

    def cuCtxPopCurrent(self) -> tuple[Any, int]:
        return CudaResult.CUDA_SUCCESS, self.stack.pop()

    @call((CudaResult.CUDA_ERROR_CONTEXT_IS_DESTROYED, None))
    def cuDevicePrimaryCtxRetain(self, device: int) -> tuple[Any, int]:
        self.retained += 1
        return CudaResult.CUDA_SUCCESS, self.PRIMARY + device

    def cuDevicePrimaryCtxRelease(self, device: int) -> tuple[Any, ...]:
        self.retained -= 1
        return (CudaResult.CUDA_SUCCESS,)


class Cuda:
    """The module `cuda.bindings.runtime`. Device memory is host memory at addresses of its own.

    placed: the CUDA context and the device of each piece of memory. freed_elsewhere: memory that was freed in
    another context. copied: kinds of the copies so far.
    """

    cudaStreamNonBlocking = 1
    cudaEventDisableTiming = 2

    class cudaMemcpyKind(enum.IntEnum):
        cudaMemcpyHostToDevice = 1
        cudaMemcpyDeviceToHost = 2
        cudaMemcpyDeviceToDevice = 3

    class cudaStreamCaptureMode(enum.IntEnum):
        cudaStreamCaptureModeThreadLocal = 1

    def __init__(self, faults: Faults, driver: DriverApi) -> None:
        self._faults = faults
        self._driver = driver
        self._held: dict[int, Any] = {}
        self._later: dict[int, list[Callable[[], None]]] = {}
        self._events: dict[int, int] = {}
        self.placed: dict[int, tuple[int, int]] = {}
        self.freed_elsewhere: list[int] = []
        self.copied: list[str] = []
        self._handles: dict[int, str] = {}
        self._recording: dict[int, list[Callable[[], None]]] = {}
        self._graphs: dict[int, list[Callable[[], None]]] = {}
        self._next = 1
        self.launches = 0

    @property
    def leaks(self) -> list[str]:
        """What was made and not freed."""
        contexts = ["primary context"] * self._driver.retained
        return [*(f"memory {address:x}" for address in self._held), *self._handles.values(), *contexts]

    def _complain(self, words: str) -> None:
        pass

    def _handle(self, kind: str) -> int:
        self._next += 1
        self._handles[self._next] = kind
        return self._next

    @property
    def recording(self) -> bool:
        """Whether any stream is being captured."""
        return bool(self._recording)

    def enqueue(self, stream: int, work: Callable[[], None]) -> None:
        recording = self._recording.get(stream)
        if recording is None:
            work()
        else:
            recording.append(work)

    def cudaGetErrorString(self, code: Any) -> tuple[Any, bytes]:
        return CudaError.cudaSuccess, b"out of memory"

    @call((CudaError.cudaErrorMemoryAllocation, None))
    def cudaMalloc(self, size: int) -> tuple[Any, int]:
        memory = ctypes.create_string_buffer(size + 512)
        address = -(-ctypes.addressof(memory) // 256) * 256
        self._held[address] = memory
        self.placed[address] = (self._driver.current, 0)
        return CudaError.cudaSuccess, address

    def cudaFree(self, address: int) -> tuple[Any, ...]:
        del self._held[address]
        if self.placed[address][0] != self._driver.current:
            self.freed_elsewhere.append(address)
        return (CudaError.cudaSuccess,)

    @call((CudaError.cudaErrorMemoryAllocation,))
    def cudaMemcpyAsync(self, to: int, source: int, size: int, kind: Any, stream: int) -> tuple[Any, ...]:
        self.copied.append(kind.name.removeprefix("cudaMemcpy"))
        ctypes.memmove(to, source, size)
        return (CudaError.cudaSuccess,)

    @call((CudaError.cudaErrorMemoryAllocation, None))
    def cudaPointerGetAttributes(self, address: int) -> tuple[Any, Any]:
        inside = (start for start, memory in self._held.items() if start <= address < start + len(memory))
        start = next(inside, None)
        return CudaError.cudaSuccess, SimpleNamespace(device=-2 if start is None else self.placed[start][1])

    def later(self, stream: int, work: Callable[[], None]) -> None:
        """Leave `work` on a stream: it is done when somebody waits for the stream."""
        self._later.setdefault(stream, []).append(work)

    def _finish(self, stream: int) -> None:
        for work in self._later.pop(stream, ()):
            work()

    @call((CudaError.cudaErrorMemoryAllocation, None))
    def cudaEventCreateWithFlags(self, flags: int) -> tuple[Any, int]:
        return CudaError.cudaSuccess, self._handle("event")

    @call((CudaError.cudaErrorMemoryAllocation,))
    def cudaEventRecord(self, event: int, stream: int) -> tuple[Any, ...]:
        self._events[event] = stream
        return (CudaError.cudaSuccess,)

    @call((CudaError.cudaErrorMemoryAllocation,))
    def cudaStreamWaitEvent(self, stream: int, event: int, flags: int) -> tuple[Any, ...]:
        self._finish(self._events[event])
        return (CudaError.cudaSuccess,)

    def cudaEventDestroy(self, event: int) -> tuple[Any, ...]:
        del self._handles[event]
        return (CudaError.cudaSuccess,)

    @call((CudaError.cudaErrorMemoryAllocation, None))
    def cudaStreamCreateWithFlags(self, flags: int) -> tuple[Any, int]:
        return CudaError.cudaSuccess, self._handle("stream")

    def cudaStreamDestroy(self, stream: int) -> tuple[Any, ...]:
        del self._handles[stream]
        return (CudaError.cudaSuccess,)

    @call((CudaError.cudaErrorMemoryAllocation,))
    def cudaStreamSynchronize(self, stream: int) -> tuple[Any, ...]:
        self._finish(stream)
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
