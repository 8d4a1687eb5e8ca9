"""The protocol's gRPC messages as requests and answers: raw bytes, typed contents, or shared memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from saccade.errors import InputError
from saccade.serving.protocol import inference_pb2 as pb
from saccade.serving.repository import VERSION
from saccade.serving.shared_memory import SharedMemory
from saccade.serving.tensors import (
    InferRequest,
    Requested,
    check_names,
    checked_dtype,
    checked_shape,
    datatype_of,
    from_bytes,
    from_list,
)

__all__ = ["decode", "encode", "parse_infer"]

_MAX_ID = 256
# Protobuf's wire format: a field is its number and type, one varint, and a varint or so many bytes.
_VARINT, _BYTES = 0, 2
_RAW_INPUT_CONTENTS = 7 << 3 | _BYTES
_MAX_VARINT = 10
_MAX_FIELDS = 256  # protobuf's own parser is faster with many
# Where InferTensorContents has the values of each datatype; FP16 goes as raw bytes only.
_CONTENTS = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
}


def parse_infer(data: bytes) -> tuple[Any, list[memoryview]]:
    """A ModelInferRequest and its raw_input_contents, as views of `data`: protobuf would copy them twice.

    What is not plain in the message is left to protobuf, which raises DecodeError where it is none.
    """
    view, place, rest, raw = memoryview(data), 0, list[memoryview](), list[memoryview]()
    for _ in range(_MAX_FIELDS):
        if place == len(data):
            return pb.ModelInferRequest.FromString(b"".join(rest)), raw
        tag, begin, end = _field(data, place)
        if not begin <= end <= len(data):
            break
        if tag == _RAW_INPUT_CONTENTS:
            raw.append(view[begin:end])
        else:
            rest.append(view[place:end])
        place = end
    request = pb.ModelInferRequest.FromString(data)
    return request, [memoryview(each) for each in request.raw_input_contents]


def _field(data: bytes, place: int) -> tuple[int, int, int]:
    """The tag of the field at `place`, and where its value begins and ends: end 0 for what is not plain."""
    tag, begin = _varint(data, place)
    if not begin or tag & 7 not in (_VARINT, _BYTES):
        return tag, begin, 0
    value, after = _varint(data, begin)
    return (tag, after, after + value) if tag & 7 == _BYTES and after else (tag, begin, after)


def _varint(data: bytes, place: int) -> tuple[int, int]:
    """A number of 7 bits per byte, low ones first, and where it ends: 0 for one that does not."""
    value = 0
    for count, byte in enumerate(data[place : place + _MAX_VARINT]):
        value |= (byte & 0x7F) << 7 * count
        if byte < 0x80:
            return value, place + count + 1
    return value, 0


def decode(
    request: Any, raw: list[memoryview], remaining_s: float | None, memory: SharedMemory
) -> InferRequest:
    """A ModelInferRequest and its raw contents, as `parse_infer` gives them. remaining_s: until the client's
    deadline, None where it has none."""
    if len(request.id) > _MAX_ID:
        raise InputError(f"id has {len(request.id)} characters; at most {_MAX_ID}")
    check_names([each.name for each in request.inputs], "input")
    check_names([each.name for each in request.outputs], "output")
    left = list(raw)
    inputs = {each.name: _tensor(each, left, bool(raw), memory) for each in request.inputs}
    if left:
        raise InputError(f"{len(left)} of raw_input_contents belong to no input")
    return InferRequest(
        inputs=inputs,
        outputs=tuple(_requested(each, memory) for each in request.outputs),
        id=request.id,
        timeout_ms=_timeout_ms(_parameters(request.parameters), remaining_s),
    )


def encode(
    model: str, request: InferRequest, outputs: Mapping[str, NDArray[Any]], memory: SharedMemory
) -> Any:
    """A ModelInferResponse with raw bytes, but for outputs that go to shared memory."""
    response = pb.ModelInferResponse(model_name=model, model_version=VERSION, id=request.id)
    regions = {each.name: each.region for each in request.outputs}
    for name, array in outputs.items():
        output = response.outputs.add(name=name, datatype=datatype_of(array.dtype), shape=array.shape)
        region = regions.get(name)
        if region is None:
            response.raw_output_contents.append(array.tobytes())
            continue
        memory.write(*region, array)
        output.parameters["shared_memory_region"].string_param = region[0]
        output.parameters["shared_memory_offset"].int64_param = region[1]
        output.parameters["shared_memory_byte_size"].int64_param = array.nbytes
    return response


def _tensor(tensor: Any, raw: list[memoryview], is_raw: bool, memory: SharedMemory) -> NDArray[Any]:
    """One input; takes its bytes from the front of `raw`."""
    name = tensor.name
    dtype, shape = checked_dtype(name, tensor.datatype), checked_shape(name, list(tensor.shape))
    parameters = _parameters(tensor.parameters)
    if "shared_memory_region" in parameters:
        return memory.read(*_region(parameters), dtype, shape)
    if is_raw:
        if not raw:
            raise InputError(f"input {name!r} has no raw_input_contents")
        return from_bytes(name, raw.pop(0), dtype, shape)
    field = _CONTENTS.get(tensor.datatype)
    if field is None:
        raise InputError(f"input {name!r}: {tensor.datatype} goes into raw_input_contents")
    values = np.array(getattr(tensor.contents, field), _wide(dtype))
    return from_list(name, values, dtype, shape)


def _wide(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """The type in which the message holds values, so that small ones are checked before they are narrowed."""
    return np.dtype({"i": np.int64, "u": np.uint64}.get(dtype.kind, dtype))


def _requested(output: Any, memory: SharedMemory) -> Requested:
    parameters = _parameters(output.parameters)
    if parameters.get("classification"):
        raise InputError(f"output {output.name[:64]!r}: there is no classification extension")
    if "shared_memory_region" not in parameters:
        return Requested(output.name)
    region = _region(parameters)
    memory.check(*region)
    return Requested(output.name, region=region)


def _region(parameters: Mapping[str, Any]) -> tuple[str, int, int]:
    region = parameters["shared_memory_region"]
    offset, size = parameters.get("shared_memory_offset", 0), parameters.get("shared_memory_byte_size")
    if not isinstance(region, str) or type(offset) is not int or type(size) is not int:
        raise InputError("a region is a name, an offset and a byte_size")
    return region, offset, size


def _parameters(given: Any) -> dict[str, Any]:
    return {
        key: getattr(value, value.WhichOneof("parameter_choice") or "bool_param")
        for key, value in given.items()
    }


def _timeout_ms(parameters: Mapping[str, Any], remaining_s: float | None) -> float | None:
    """The nearer of the deadline and Triton's parameter `timeout`, in microseconds."""
    microseconds = parameters.get("timeout", 0)
    if type(microseconds) is not int or microseconds < 0:
        raise InputError("timeout must be a whole number of microseconds")
    times = [microseconds / 1e3] if microseconds else []
    if remaining_s is not None:
        times.append(max(0.0, remaining_s * 1e3))
    return min(times, default=None)
