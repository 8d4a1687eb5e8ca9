"""Launch the shipped PTX through the CUDA driver: what TensorRT does with a plugin, without TensorRT.

Nothing but ctypes and the driver's library. Works in the current CUDA context (torch's, cuda-python's), or in
device 0's primary one where there is none. Status: unverified until a GPU has run `make test-gpu`.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import cache
from typing import Any

from saccade.engines.kernels import ptx
from saccade.engines.kernels.ptx import LaunchRecord
from saccade.engines.tensorrt.gpu import require_gpu
from saccade.errors import EngineError, UsageError


class Function:
    """One kernel, loaded. Its module stays loaded as long as the process runs."""

    def __init__(self, record: LaunchRecord) -> None:
        """Compile the PTX for the current device. EngineError without a driver or where it refuses."""
        self.record = record
        self._cuda = _driver()
        module, self._function = ctypes.c_void_p(), ctypes.c_void_p()
        text = ctypes.c_char_p(ptx.load(record).encode("ascii"))
        self._call("cuModuleLoadData", ctypes.byref(module), text)
        self._call("cuModuleGetFunction", ctypes.byref(self._function), module, record.kernel.encode("ascii"))

    def launch(self, grid: tuple[int, int, int], arguments: Sequence[int], stream: int = 0) -> None:
        """Queue one launch on `stream` (a CUstream as a number).

        arguments: device addresses and int32 values in the order of the record's parameters. The memory must
        stay until the stream has come past the launch. Raises UsageError for arguments that do not fit.
        """
        values = [self._value(*each) for each in zip(self.record.parameters, arguments, strict=True)]
        addresses = (ctypes.c_void_p * len(values))(
            *(ctypes.cast(ctypes.pointer(value), ctypes.c_void_p) for value in values)
        )
        block = (self.record.block_x, 1, 1)
        shared = self.record.shared_bytes
        self._call(
            "cuLaunchKernel", self._function, *grid, *block, shared, ctypes.c_void_p(stream), addresses, None
        )

    def _value(self, parameter: tuple[str, str], argument: int) -> Any:
        name, kind = parameter
        if not kind.startswith("*"):
            return ctypes.c_int32(argument)
        if argument % self.record.alignment:
            raise UsageError(
                f"{name} is at {argument:#x}: it must be aligned to {self.record.alignment} bytes"
            )
        return ctypes.c_uint64(argument)

    def _call(self, name: str, *arguments: Any) -> None:
        _check(self._cuda, name, getattr(self._cuda, name)(*arguments))


@cache
def _driver() -> ctypes.CDLL:
    """The driver's library, with a context current."""
    require_gpu()
    cuda = ctypes.CDLL("libcuda.so.1")
    context, device = ctypes.c_void_p(), ctypes.c_int()
    _check(cuda, "cuCtxGetCurrent", cuda.cuCtxGetCurrent(ctypes.byref(context)))
    if not context.value:
        _check(cuda, "cuDeviceGet", cuda.cuDeviceGet(ctypes.byref(device), 0))
        retained = cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), device)
        _check(cuda, "cuDevicePrimaryCtxRetain", retained)
        _check(cuda, "cuCtxSetCurrent", cuda.cuCtxSetCurrent(context))
    return cuda


def _check(cuda: ctypes.CDLL, name: str, code: int) -> None:
    if code:
        text = ctypes.c_char_p()
        cuda.cuGetErrorString(code, ctypes.byref(text))
        raise EngineError(f"{name} failed: {text.value.decode() if text.value else f'error {code}'}")
