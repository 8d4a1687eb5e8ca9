"""The graph files of a bundle: the source and what is derived from it, over one file of weights.

Tensors are stored once however many graphs use them, and are mapped by the runtimes, not copied.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import onnx
from onnx.external_data_helper import set_external_data

from saccade.engines.passes import inline, tensorrt

WEIGHTS = "weights.bin"
SMALL = 1024  # bytes; smaller tensors stay in the graph, where shape inference can read them
ALIGNMENT = 64  # bytes; a cache line, and what vector loads like


@dataclass(frozen=True, slots=True)
class GraphFile:
    """One graph: its file, and for a derived one the rewrites that made it from the source."""

    path: Path
    passes: tuple[str, ...] = ()


def write_graphs(
    sources: Mapping[str, onnx.ModelProto], folder: Path, weights: str = WEIGHTS
) -> dict[str, dict[str, GraphFile]]:
    """Write each source, by name, and what is derived from it into `folder`: files by name and variant.

    "source" is always there; "inlined" only where the source has local functions, "tensorrt" where it
    detects objects. weights: the file that holds the tensors of all.
    """
    with (folder / weights).open("wb") as file:
        pool = _Pool(file)
        return {name: _write(pool, source, folder, name) for name, source in sources.items()}


def _write(pool: _Pool, source: onnx.ModelProto, folder: Path, name: str) -> dict[str, GraphFile]:
    files = {"source": GraphFile(pool.save(source, folder / f"{name}.onnx"))}
    if source.functions:
        path = pool.save(inline.inline(source), folder / f"{name}.inlined.onnx")
        files["inlined"] = GraphFile(path, inline.NAMES)
    if tensorrt.differs(source):
        path = pool.save(tensorrt.for_tensorrt(source), folder / f"{name}.tensorrt.onnx")
        files["tensorrt"] = GraphFile(path, tensorrt.NAMES)
    return files


class _Pool:
    """Appends tensors to one file, each content once."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._location = Path(file.name).name
        self._places: dict[bytes, tuple[int, int]] = {}

    def save(self, model: onnx.ModelProto, path: Path) -> Path:
        """Write `model` to `path` with its large initializers moved into the pool; `model` stays as it is."""
        stored = onnx.ModelProto()
        stored.CopyFrom(model)
        for tensor in stored.graph.initializer:
            content = onnx.numpy_helper.to_array(tensor).tobytes()
            if len(content) >= SMALL:
                offset, length = self._place(content)
                place = onnx.TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
                place.raw_data = b"-"  # set_external_data insists on a raw tensor
                set_external_data(place, self._location, offset, length)
                place.ClearField("raw_data")
                tensor.CopyFrom(place)
        path.write_bytes(stored.SerializeToString())
        return path

    def _place(self, content: bytes) -> tuple[int, int]:
        digest = hashlib.sha256(content).digest()
        if digest not in self._places:
            self._file.write(b"\0" * (-self._file.tell() % ALIGNMENT))
            self._places[digest] = self._file.tell(), len(content)
            self._file.write(content)
            self._file.flush()
        return self._places[digest]


def set_metadata(model: onnx.ModelProto, metadata: Mapping[str, str]) -> None:
    """Put `metadata` into the file's `metadata_props`, replacing what was there."""
    del model.metadata_props[:]
    for key, value in metadata.items():
        model.metadata_props.add(key=key, value=value)
