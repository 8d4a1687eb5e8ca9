"""The NVIDIA driver, asked before any library that would crash without it. Nothing but ctypes."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

from saccade.errors import EngineError, UsageError

_LIBRARY = "libcuda.so.1"
_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, _MINOR
_NAME_BYTES = 256


@dataclass(frozen=True, slots=True)
class Gpu:
    """One device. capability: as "90" for 9.0. driver: the CUDA version it serves, as "13.1"."""

    name: str
    capability: str
    driver: str


def find_gpu(index: int = 0) -> Gpu | None:
    """Device `index` of the driver; None where there is no driver, or no device at all."""
    try:
        return require_gpu(index)
    except EngineError:
        return None


def require_gpu(index: int = 0) -> Gpu:
    """Device `index`. EngineError without a driver that answers; UsageError where there are fewer devices."""
    try:
        cuda = ctypes.CDLL(_LIBRARY)
    except OSError as error:
        raise EngineError(
            f"this machine has no NVIDIA driver ({_LIBRARY} cannot be loaded): TensorRT runs on NVIDIA GPUs "
            "only. `nvidia-smi` must work; elsewhere use engine='onnxruntime'"
        ) from error
    _check(cuda, "cuInit", cuda.cuInit(0))
    count = ctypes.c_int()
    _check(cuda, "cuDeviceGetCount", cuda.cuDeviceGetCount(ctypes.byref(count)))
    if count.value == 0:
        raise EngineError("the NVIDIA driver sees no GPU here: `nvidia-smi` must list one")
    if not 0 <= index < count.value:
        raise UsageError(f"device 'cuda:{index}' does not exist: the driver has {count.value}")
    return _describe(cuda, index)


def _describe(cuda: ctypes.CDLL, index: int) -> Gpu:
    device, value, name = ctypes.c_int(), ctypes.c_int(), ctypes.create_string_buffer(_NAME_BYTES)
    _check(cuda, "cuDeviceGet", cuda.cuDeviceGet(ctypes.byref(device), index))
    _check(cuda, "cuDeviceGetName", cuda.cuDeviceGetName(name, _NAME_BYTES, device))
    numbers = []
    for attribute in (_MAJOR, _MINOR):
        answer = cuda.cuDeviceGetAttribute(ctypes.byref(value), attribute, device)
        _check(cuda, "cuDeviceGetAttribute", answer)
        numbers.append(value.value)
    _check(cuda, "cuDriverGetVersion", cuda.cuDriverGetVersion(ctypes.byref(value)))
    driver = f"{value.value // 1000}.{value.value % 1000 // 10}"
    return Gpu(name.value.decode(), "".join(map(str, numbers)), driver)


def _check(cuda: ctypes.CDLL, call: str, code: int) -> None:
    if code:
        text = ctypes.c_char_p()
        cuda.cuGetErrorString(code, ctypes.byref(text))
        reason = text.value.decode() if text.value else "unknown error"
        raise EngineError(
            f"the NVIDIA driver does not answer ({call}: error {code}, {reason}): `nvidia-smi` must work"
        )
