"""How much a model computes and moves for one picture, counted while its graph runs once."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saccade.models.card import Preprocessing

if TYPE_CHECKING:
    from saccade.bundle import Bundle

_SILENT = 4  # severity of ONNX Runtime's log
_REMEMBERED = 64


@dataclass(frozen=True, slots=True)
class Work:
    """flop: two for a multiply-accumulate of matrix products and convolutions; the rest is little.

    weight_bytes, activation_bytes: what these operators read and write in float32, weights apart, as if
    everything between them were fused away. None where nothing tells.
    """

    flop: float | None = None
    weight_bytes: float | None = None
    activation_bytes: float | None = None


def of_bundle(bundle: Bundle) -> Work:
    """Of the source graph that takes pictures, for one of the card's size.

    The card's own count where ONNX Runtime cannot run the graph, or it takes more than pictures.
    """
    from saccade.predictors.predictor import PICTURE_GRAPHS

    macs = bundle.card.multiply_accumulates
    stated = Work(flop=None if macs is None else 2.0 * macs)
    graph = bundle.graphs[next(name for name in PICTURE_GRAPHS if name in bundle.graphs)]
    if len(graph.inputs) > 1:
        return stated
    try:
        return count(graph.files["source"], (1, 3, *_size_hw(bundle.card.preprocessing)))
    except Exception:  # it is not installed, or cannot run this graph; its errors have no common root
        return stated


def _size_hw(given: Preprocessing) -> tuple[int, int]:
    if given.resize != "fit":
        return given.input_size_hw
    height, width = (-(-side // given.pad_multiple) * given.pad_multiple for side in given.resize_hw)
    return height, width


@lru_cache(_REMEMBERED)
def count(path: Path, image_shape: tuple[int, ...]) -> Work:
    """Run the graph `path` once on zeros, as it is written, and add up what its nodes do.

    Shapes that are computed from the picture's size are what they are then, whatever can be inferred.
    """
    import numpy as np
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = _SILENT
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.add_session_config_entry("session.disable_prepacking", "1")  # packed weights have no shape
    options.enable_profiling = True
    with tempfile.TemporaryDirectory() as folder:
        options.profile_file_prefix = f"{folder}/run"
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        (image,) = session.get_inputs()
        session.run(None, {image.name: np.zeros(image_shape, np.float32)})
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    counted = [
        _of_node(event["args"]) for event in events if event["args"].get("op_name") in _MULTIPLY_ACCUMULATES
    ]
    return Work(*(float(sum(each)) for each in zip(*counted, strict=True))) if counted else Work()


Shape = Sequence[int]


def _of_matmul(first: Shape, second: Shape, result: Shape) -> int:
    return math.prod(result) * first[-1]


def _of_gemm(first: Shape, second: Shape, result: Shape) -> int:
    return math.prod(first) * result[-1]  # whether the first factor is transposed or not


def _of_conv(image: Shape, kernel: Shape, result: Shape) -> int:
    return math.prod(result) * math.prod(kernel[1:])  # (out, in / groups, ...)


def _of_transposed_conv(image: Shape, kernel: Shape, result: Shape) -> int:
    return math.prod(image) * math.prod(kernel[1:])  # (in, out / groups, ...), for each input


_MULTIPLY_ACCUMULATES = {
    "MatMul": _of_matmul,
    "Gemm": _of_gemm,
    "Conv": _of_conv,
    "ConvTranspose": _of_transposed_conv,
}


def _of_node(event: Mapping[str, Any]) -> tuple[float, float, float]:
    """(flop, bytes of weights, bytes of activations) of one node of the runtime's profile."""
    first, second = (_shape(each) for each in event["input_type_shape"][:2])
    result = _shape(event["output_type_shape"][0])
    name = event["op_name"]
    # The factors of attention are activations both, and have a batch: more than two dimensions.
    weight = name != "MatMul" or len(second) == 2
    moved = [first, result] if weight else [first, second, result]
    return (
        2.0 * _MULTIPLY_ACCUMULATES[name](first, second, result),
        4.0 * math.prod(second) if weight else 0.0,
        4.0 * sum(math.prod(each) for each in moved),
    )


def _shape(typed: Mapping[str, Shape]) -> Shape:
    """Of {"float": [1, 3, 224, 224]}."""
    (shape,) = typed.values()
    return shape


def accuracy(bundle: Bundle, precision: str) -> float | None:
    """In percent: as measured when a precision was added to the bundle, else for float32 as published."""
    try:
        report: Any = json.loads((bundle.path / "verify.json").read_text(encoding="utf-8"))
        rows = report["evidence"]["rows"]
        return next(100.0 * row["accuracy"] for row in rows if row["precision"] == precision)
    except (OSError, ValueError, KeyError, TypeError, StopIteration):
        return bundle.card.top1 if precision == "fp32" else None
