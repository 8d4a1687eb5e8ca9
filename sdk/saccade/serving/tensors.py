"""Tensors of the Open Inference Protocol, by their names, as NumPy arrays and back. Nothing here trusts a
client: every size is checked against the bytes that are there."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from saccade.engines.engine import TensorSpec
from saccade.errors import InputError

__all__ = [
    "DATATYPES",
    "InferRequest",
    "Requested",
    "check_names",
    "datatype_of",
    "from_bytes",
    "from_list",
    "metadata",
]

DATATYPES = {
    "BOOL": np.dtype(np.bool_),
    "UINT8": np.dtype(np.uint8),
    "UINT16": np.dtype(np.uint16),
    "UINT32": np.dtype(np.uint32),
    "UINT64": np.dtype(np.uint64),
    "INT8": np.dtype(np.int8),
    "INT16": np.dtype(np.int16),
    "INT32": np.dtype(np.int32),
    "INT64": np.dtype(np.int64),
    "FP16": np.dtype(np.float16),
    "FP32": np.dtype(np.float32),
    "FP64": np.dtype(np.float64),
}
_NAMES = {dtype: name for name, dtype in DATATYPES.items()}
_MAX_RANK = 16
_MAX_TENSORS = 64
_MAX_NAME = 256
_MAX_SIZE = 2**40  # elements along one axis; what is larger overflows somewhere


@dataclass(frozen=True, slots=True)
class Requested:
    """An output that a client asks for. binary: as bytes behind the JSON. region: where it goes in shared
    memory, (name, offset, bytes)."""

    name: str
    binary: bool = False
    region: tuple[str, int, int] | None = None


@dataclass(frozen=True, slots=True)
class InferRequest:
    """What a client wants inferred, whichever way it came. outputs: none for all of them; binary: then, how.
    timeout_ms: the client's own patience; None for the server's."""

    inputs: dict[str, NDArray[Any]]
    outputs: tuple[Requested, ...] = ()
    binary: bool = False
    id: str = ""
    timeout_ms: float | None = None


def datatype_of(dtype: np.dtype[Any] | str) -> str:
    """The protocol's name of a NumPy dtype.

    >>> datatype_of("float32")
    'FP32'
    """
    return _NAMES[np.dtype(dtype)]


def metadata(specs: Sequence[TensorSpec]) -> list[dict[str, Any]]:
    """Names, datatypes and shapes; -1 is a free dimension."""
    return [
        {
            "name": spec.name,
            "datatype": datatype_of(spec.dtype),
            "shape": [size if isinstance(size, int) else -1 for size in spec.shape],
        }
        for spec in specs
    ]


def check_names(names: Sequence[str], what: str) -> None:
    """InputError unless the names of inputs or outputs are few, short, and each given once."""
    if len(names) > _MAX_TENSORS:
        raise InputError(f"the request has {len(names)} {what}s; at most {_MAX_TENSORS} are read")
    if any(len(name) > _MAX_NAME for name in names):
        raise InputError(f"the name of an {what} has more than {_MAX_NAME} characters")
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise InputError(f"{what} {twice!r} is given twice")


def checked_dtype(name: str, datatype: Any) -> np.dtype[Any]:
    """The dtype of a datatype; InputError for one that is unknown, or that no model here takes."""
    if not isinstance(datatype, str) or datatype not in DATATYPES:
        raise InputError(
            f"input {name!r} has the datatype {str(datatype)[:32]!r}; there are {', '.join(DATATYPES)}"
        )
    return DATATYPES[datatype]


def checked_shape(name: str, shape: Any) -> tuple[int, ...]:
    """`shape` as a tuple of sizes; InputError for anything else."""
    if not isinstance(shape, Sequence) or isinstance(shape, str) or len(shape) > _MAX_RANK:
        raise InputError(f"input {name!r} needs a shape: a list of at most {_MAX_RANK} sizes")
    if any(type(size) is not int or not 0 <= size <= _MAX_SIZE for size in shape):
        raise InputError(f"input {name!r} has the shape {list(shape)}; sizes are whole numbers from 0")
    return tuple(shape)


def from_bytes(
    name: str, data: bytes | memoryview, dtype: np.dtype[Any], shape: tuple[int, ...]
) -> NDArray[Any]:
    """An array over `data`, without a copy; it may not be aligned. Little-endian, rows first."""
    wanted = math.prod(shape) * dtype.itemsize
    if len(data) != wanted:
        raise InputError(f"input {name!r} of shape {list(shape)} takes {wanted} bytes, there are {len(data)}")
    if dtype == np.bool_:
        return (np.frombuffer(data, np.uint8) != 0).reshape(shape)  # other values than 0 and 1 are no bool
    return np.frombuffer(data, dtype).reshape(shape)


def from_list(name: str, data: Any, dtype: np.dtype[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    """An array of numbers from JSON, flat or nested as the shape says."""
    try:
        given = np.array(data)
    except (ValueError, OverflowError, RecursionError) as error:
        raise InputError(f"input {name!r}: its data is not a list of numbers, or is ragged") from error
    if given.size == 0 and given.dtype == np.float64:
        given = given.astype(dtype)
    kinds = {"b": "b", "u": "iu", "i": "iu"}.get(dtype.kind, "iuf")
    if given.dtype.kind not in kinds:
        raise InputError(f"input {name!r}: its data does not fit {datatype_of(dtype)}")
    if given.size != math.prod(shape) or given.ndim not in (1, len(shape)):
        raise InputError(
            f"input {name!r} has the shape {list(shape)}, its data {list(given.shape)}: {given.size} values"
        )
    if given.ndim != 1 and given.shape != shape:
        raise InputError(f"input {name!r} has the shape {list(shape)}, its data {list(given.shape)}")
    if dtype.kind in "iu" and given.size:
        bounds = np.iinfo(dtype)
        if int(given.min()) < bounds.min or int(given.max()) > bounds.max:
            raise InputError(f"input {name!r}: {datatype_of(dtype)} is {bounds.min} to {bounds.max}")
    with np.errstate(over="ignore"):  # what float32 cannot hold is infinite
        return given.astype(dtype, copy=False).reshape(shape)
