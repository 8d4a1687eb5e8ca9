"""An engine over a graph that is in memory: written to a temporary folder for as long as it runs."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

import onnx

from saccade.engines.engine import Engine, open_engine


@contextlib.contextmanager
def opened(model: onnx.ModelProto, engine: str = "onnxruntime") -> Iterator[Engine]:
    """Open `model` in `engine`; file and engine are gone when the block is left."""
    with tempfile.TemporaryDirectory(prefix="saccade-") as folder:
        path = Path(folder) / "model.onnx"
        onnx.save(model, path)
        with open_engine({"source": path}, engine) as running:
            yield running
