"""Read an ONNX file's `metadata_props` without the onnx package, and without reading its weights.

An ONNX file is a protocol buffer: a sequence of (field, type, content). Of the outermost one, `ModelProto`,
field 14 holds pairs of strings; everything else is stepped over.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from saccade.errors import BundleError

__all__ = ["read_metadata"]

_METADATA_PROPS = 14
_KEY, _VALUE = 1, 2
_VARINT, _EIGHT_BYTES, _BYTES, _FOUR_BYTES = 0, 1, 2, 5
_LARGEST = 2**24  # bytes of one entry; a card with 21,841 labels takes 0.5 MB


def read_metadata(path: Path) -> dict[str, str]:
    """Key and value of every entry. BundleError where `path` is no ONNX file, or is cut short."""
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            entries = [dict(_fields(io.BytesIO(entry), len(entry))) for entry in _entries(file, size)]
            return {entry[_KEY].decode(): entry.get(_VALUE, b"").decode() for entry in entries}
    except (ValueError, KeyError) as error:
        raise BundleError(f"{path} is not an ONNX file, or it is damaged: {error}") from error


def _entries(file: BinaryIO, size: int) -> Iterator[bytes]:
    return (content for field, content in _fields(file, size, wanted=_METADATA_PROPS))


def _fields(file: BinaryIO, size: int, wanted: int | None = None) -> Iterator[tuple[int, bytes]]:
    """Number and content of the fields that hold bytes; only of `wanted` where that is given."""
    while file.tell() < size:
        tag = _varint(file)
        field, kind = tag >> 3, tag & 7
        if kind == _VARINT:
            _varint(file)
            continue
        length = _varint(file) if kind == _BYTES else {_EIGHT_BYTES: 8, _FOUR_BYTES: 4}.get(kind)
        if length is None or field == 0 or file.tell() + length > size:
            raise ValueError(f"field {field} of type {kind} at byte {file.tell()}")
        if kind != _BYTES or field != (wanted or field):
            file.seek(length, os.SEEK_CUR)
        elif length > _LARGEST:
            raise ValueError(f"an entry of {length} bytes")
        else:
            yield field, file.read(length)


def _varint(file: BinaryIO) -> int:
    """Seven bits a byte, lowest first; the top bit says that more follow."""
    value = 0
    for shift in range(0, 70, 7):
        byte = file.read(1)
        if not byte:
            raise ValueError("it ends within a field")
        value |= (byte[0] & 0x7F) << shift
        if byte[0] < 0x80:
            return value
    raise ValueError("a number of more than ten bytes")
