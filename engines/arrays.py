"""Arrays of any library, where they lie: on the host, or on a GPU. Nothing is copied.

Taken as inputs are NumPy arrays and whatever speaks `__cuda_array_interface__` (version 3) or DLPack.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from saccade.engines.cuda import DEFAULT_STREAM, call
from saccade.engines.engine import TensorSpec, check_feeds
from saccade.errors import InputError

# DLDeviceType and DLDataTypeCode of dlpack.h.
_CUDA_DEVICES = (2, 13)  # kDLCUDA, kDLCUDAManaged
_KINDS = {0: "i", 1: "u", 2: "f", 5: "c", 6: "b"}


@dataclass(frozen=True, slots=True)
class Feed:
    """An input: C-contiguous, `shape` and `dtype` as NumPy's, at `address`.

    on_device: the address is one of a GPU's. after: the stream whose work so far makes the values; None where
    they are made. owner: what keeps the memory.
    """

    owner: Any
    address: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    on_device: bool = False
    after: int | None = None

    @property
    def size(self) -> int:
        """Bytes."""
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize

    def stand_in(self) -> NDArray[Any]:
        """An array of this shape and type that takes no memory."""
        return np.broadcast_to(np.empty((), self.dtype), self.shape)

    def require_device(self, name: str, device: int) -> None:
        """InputError for memory that is not on GPU number `device`."""
        found = int(call("cudaPointerGetAttributes", self.address).device)
        if found != device:
            where = f"on 'cuda:{found}'" if found >= 0 else "in no memory of a GPU"
            raise InputError(f"input {name!r} lies {where}, the engine runs on 'cuda:{device}'")


def is_array(value: Any) -> bool:
    """Whether `locate` takes it."""
    return isinstance(value, np.ndarray) or is_on_device(value) or hasattr(value, "__dlpack__")


def is_on_device(value: Any) -> bool:
    """Whether `value` is an array on a GPU."""
    if isinstance(value, np.ndarray):
        return False
    if hasattr(value, "__dlpack_device__"):  # first: the other may be there and raise
        return int(value.__dlpack_device__()[0]) in _CUDA_DEVICES
    return hasattr(value, "__cuda_array_interface__")


def on_host(name: str, value: Any) -> NDArray[Any]:
    """A NumPy array of what lies on the host: itself, or a view of what DLPack offers."""
    if isinstance(value, np.ndarray):
        return value
    try:
        return np.from_dlpack(value)
    except Exception as error:  # each library has its own
        raise _unreadable(name, value, error) from error


def locate(name: str, value: Any, stream: int | None = None) -> Feed:
    """Where the array `value` lies. InputError where it has gaps on the device, or cannot be had.

    stream: the application's, whose work so far makes arrays that name none themselves.
    """
    if not is_on_device(value):
        host = np.ascontiguousarray(on_host(name, value))
        return Feed(host, host.ctypes.data, host.shape, host.dtype)
    try:
        interface = getattr(value, "__cuda_array_interface__", None)
    except Exception as error:  # PyTorch's, where a gradient is asked for
        raise _unreadable(name, value, error) from error
    if interface is None:
        return _of_capsule(name, value, stream)
    shape, dtype = tuple(interface["shape"]), np.dtype(interface["typestr"])
    _check_contiguous(name, shape, interface.get("strides"), dtype.itemsize)
    after = interface.get("stream")
    return Feed(value, int(interface["data"][0]), shape, dtype, True, stream if after is None else int(after))


def located(
    feeds: Mapping[str, Any], inputs: Mapping[str, TensorSpec], device: int, stream: int | None
) -> dict[str, Feed]:
    """Where each of `feeds` lies; InputError for what `inputs` do not take, or lies on another GPU."""
    given = {name: locate(name, each, stream) if is_array(each) else each for name, each in feeds.items()}
    check_feeds({n: f.stand_in() if isinstance(f, Feed) else f for n, f in given.items()}, inputs)
    for name, feed in given.items():
        if feed.on_device:
            feed.require_device(name, device)
    return given


class _Tensor(ctypes.Structure):
    """DLTensor of dlpack.h: what a capsule named "dltensor" points at begins with it."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


_pointer_in = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", ctypes.pythonapi)
)


def _of_capsule(name: str, value: Any, stream: int | None) -> Feed:
    """A device array by DLPack. The capsule is not renamed, so that it frees itself when the feed goes."""
    after = DEFAULT_STREAM if stream is None else stream
    try:
        capsule = value.__dlpack__(stream=after)
        tensor = _Tensor.from_address(_pointer_in(capsule, b"dltensor"))
    except Exception as error:  # each library has its own
        raise _unreadable(name, value, error) from error
    if tensor.code not in _KINDS or tensor.lanes != 1 or tensor.bits % 8:
        raise InputError(
            f"input {name!r} has DLPack type {tensor.code} of {tensor.bits} bits, NumPy has none such"
        )
    dtype = np.dtype(f"{_KINDS[tensor.code]}{tensor.bits // 8}")
    shape = tuple(tensor.shape[: tensor.ndim])
    strides = [step * dtype.itemsize for step in tensor.strides[: tensor.ndim]] if tensor.strides else None
    _check_contiguous(name, shape, strides, dtype.itemsize)
    return Feed(capsule, (tensor.data or 0) + tensor.byte_offset, shape, dtype, True, after)


def _unreadable(name: str, value: Any, error: Exception) -> InputError:
    return InputError(f"input {name!r}, a {type(value).__name__}, cannot be read: {error}")


def _check_contiguous(name: str, shape: Sequence[int], strides: Sequence[int] | None, step: int) -> None:
    """Steps are in bytes; where there is only one element along an axis, its step means nothing."""
    if strides is None:
        return
    for size, stride in zip(reversed(shape), reversed(strides), strict=True):
        if size != 1 and stride != step:
            raise InputError(f"input {name!r} is not contiguous on the device: copy it first, as x.copy()")
        step *= size


class DeviceArray:
    """An array on the GPU that owns its memory. CuPy, PyTorch, Numba and PyCUDA take it as it is:
    it speaks `__cuda_array_interface__`. shape, dtype: as NumPy's; C-contiguous.
    """

    def __init__(self, owner: Any, address: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self._owner = owner
        self._address = address
        self.shape = shape
        self.dtype = dtype

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        # No stream: whoever gets the array may read it, the work that fills it is done.
        return {
            "shape": self.shape,
            "typestr": self.dtype.str,
            "data": (self._address, False),
            "version": 3,
            "strides": None,
            "stream": None,
        }
