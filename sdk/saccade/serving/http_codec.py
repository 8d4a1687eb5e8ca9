"""The protocol's HTTP bodies: JSON, with tensors inside it or as bytes behind it (the binary extension)."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import Any

import orjson
from numpy.typing import NDArray

from saccade.errors import InputError
from saccade.serving.exchange import to_json
from saccade.serving.refusals import BodyTooLarge
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

__all__ = ["compress", "decode", "decompress", "encode", "parse_json"]

_MAX_ID = 256
_MAX_WHOLE = 2**63 - 1
_WINDOWS = {"gzip": 31, "deflate": 15}  # zlib's window bits: with gzip's header, with zlib's own


def decompress(body: bytes | memoryview, encoding: str, limit: int) -> bytes | memoryview:
    """A body as it was before its Content-Encoding; at most `limit` bytes are ever made."""
    if encoding in ("", "identity"):
        return body
    if encoding not in _WINDOWS:
        raise InputError(f"Content-Encoding {encoding[:32]!r}: gzip, deflate or none is read")
    stream = zlib.decompressobj(_WINDOWS[encoding])
    try:
        whole = stream.decompress(body, limit + 1)
    except zlib.error as error:
        raise InputError(f"the body is not {encoding}: {error}") from error
    if len(whole) > limit:
        raise BodyTooLarge(f"the body unpacks to more than {limit} bytes")
    if not stream.eof:
        raise InputError(f"the body is {encoding} that was cut short")
    return whole


def compress(body: bytes, accepted: str) -> tuple[bytes, str]:
    """The body and its Content-Encoding, for a client that accepts exactly one: it asks for that.

    Clients that merely could unpack (browsers, aiohttp: "gzip, deflate") get plain bytes: packing floats
    costs more than it saves.
    """
    if accepted not in _WINDOWS:
        return body, ""
    packer = zlib.compressobj(1, zlib.DEFLATED, _WINDOWS[accepted])
    return packer.compress(body) + packer.flush(), accepted


def parse_json(text: bytes | memoryview) -> dict[str, Any]:
    """A JSON object; InputError for anything else."""
    try:
        value = orjson.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"the body is not JSON: {str(error)[:200]}") from error
    if not isinstance(value, dict):
        raise InputError("the body is not a JSON object")
    return value


def decode(body: bytes | memoryview, json_length: int | None, memory: SharedMemory) -> InferRequest:
    """A request to infer. json_length: of its JSON, where binary tensors follow as views of `body`."""
    length = len(body) if json_length is None else json_length
    if not 0 <= length <= len(body):
        raise InputError(f"Inference-Header-Content-Length is {length}, the body has {len(body)} bytes")
    given = parse_json(body[:length])
    parameters = _object(given.get("parameters"), "parameters")
    entries = _objects(given.get("inputs"), "inputs")
    reader = _Reader(memoryview(body), length, memory)
    names = [_text(entry.get("name"), "the name of an input") for entry in entries]
    check_names(names, "input")
    inputs = {name: reader.tensor(name, entry) for name, entry in zip(names, entries, strict=True)}
    if reader.place != len(body):
        raise InputError(f"{len(body) - reader.place} bytes follow the last binary tensor")
    outputs = [] if given.get("outputs") is None else _objects(given["outputs"], "outputs")
    check_names([_text(entry.get("name"), "the name of an output") for entry in outputs], "output")
    binary = _flag(parameters, "binary_data_output")
    return InferRequest(
        inputs=inputs,
        outputs=tuple(_requested(entry, binary, memory) for entry in outputs),
        binary=binary,
        id=_text(given.get("id", ""), "id"),
        timeout_ms=_timeout_ms(parameters),
    )


def encode(
    model: str, request: InferRequest, outputs: Mapping[str, NDArray[Any]], memory: SharedMemory
) -> tuple[bytes, int | None]:
    """The body of an answer, and the length of its JSON where binary tensors follow."""
    how = {each.name: each for each in request.outputs}
    entries, tail = [], list[bytes]()
    for name, array in outputs.items():
        requested = how.get(name) or Requested(name, request.binary)
        entry: dict[str, Any] = {
            "name": name,
            "datatype": datatype_of(array.dtype),
            "shape": list(array.shape),
        }
        if requested.region is not None:
            region, offset, size = requested.region
            memory.write(region, offset, size, array)
            entry["parameters"] = {
                "shared_memory_region": region,
                "shared_memory_offset": offset,
                "shared_memory_byte_size": array.nbytes,
            }
        elif requested.binary:
            entry["parameters"] = {"binary_data_size": array.nbytes}
            tail.append(array.tobytes())
        else:
            entry["data"] = array.ravel().tolist()
        entries.append(entry)
    head: dict[str, Any] = {"model_name": model, "model_version": VERSION, "outputs": entries}
    if request.id:
        head["id"] = request.id
    text = to_json(head)
    return (b"".join([text, *tail]), len(text)) if tail else (text, None)


class _Reader:
    """Takes binary tensors, one after the other, from behind the JSON."""

    def __init__(self, body: memoryview, place: int, memory: SharedMemory) -> None:
        self._body = body
        self.place = place
        self._memory = memory

    def tensor(self, name: str, entry: Mapping[str, Any]) -> NDArray[Any]:
        dtype = checked_dtype(name, entry.get("datatype"))
        shape = checked_shape(name, entry.get("shape"))
        parameters = _object(entry.get("parameters"), f"the parameters of {name!r}")
        if "shared_memory_region" in parameters:
            return self._memory.read(*_region(parameters), dtype, shape)
        if "binary_data_size" in parameters:
            size = _whole(parameters["binary_data_size"], "binary_data_size")
            end = self.place + size
            if end > len(self._body):
                raise InputError(f"input {name!r} has {size} bytes, {len(self._body) - self.place} are there")
            data, self.place = self._body[self.place : end], end
            return from_bytes(name, data, dtype, shape)
        if "data" not in entry:
            raise InputError(f"input {name!r} has no data")
        return from_list(name, entry["data"], dtype, shape)


def _requested(entry: Mapping[str, Any], binary: bool, memory: SharedMemory) -> Requested:
    name = _text(entry.get("name"), "the name of an output")
    parameters = _object(entry.get("parameters"), f"the parameters of {name!r}")
    if parameters.get("classification"):
        raise InputError(
            f"output {name!r}: there is no classification extension; POST a picture to /v1/models"
        )
    if "shared_memory_region" in parameters:
        region = _region(parameters)
        memory.check(*region)
        return Requested(name, region=region)
    return Requested(name, _flag(parameters, "binary_data", binary))


def _region(parameters: Mapping[str, Any]) -> tuple[str, int, int]:
    return (
        _text(parameters["shared_memory_region"], "shared_memory_region"),
        _whole(parameters.get("shared_memory_offset", 0), "shared_memory_offset"),
        _whole(parameters.get("shared_memory_byte_size"), "shared_memory_byte_size"),
    )


def _timeout_ms(parameters: Mapping[str, Any]) -> float | None:
    """Triton's parameter `timeout` is in microseconds; 0 is none."""
    microseconds = _whole(parameters.get("timeout", 0), "timeout")
    return microseconds / 1e3 if microseconds else None


def _object(value: Any, what: str) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise InputError(f"{what} must be a JSON object")
    return value


def _objects(value: Any, what: str) -> list[dict[str, Any]]:
    if not isinstance(value, list) or not value or not all(isinstance(each, dict) for each in value):
        raise InputError(f"{what} must be a list of objects, at least one")
    return value


def _text(value: Any, what: str) -> str:
    if not isinstance(value, str) or len(value) > _MAX_ID:
        raise InputError(f"{what} must be a text of at most {_MAX_ID} characters")
    return value


def _whole(value: Any, what: str) -> int:
    if type(value) is not int or not 0 <= value < _MAX_WHOLE:
        raise InputError(f"{what} must be a whole number from 0")
    return value


def _flag(parameters: Mapping[str, Any], name: str, default: bool = False) -> bool:
    value = parameters.get(name, default)
    if not isinstance(value, bool):
        raise InputError(f"{name} must be true or false")
    return value
