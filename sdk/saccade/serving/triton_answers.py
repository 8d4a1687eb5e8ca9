"""A predictor's results as the tensors that a Triton model gives, and as JSON.

Pictures of one request may have results of different sizes: a tensor is then as large as the largest, with
zeros beyond the others' ends, and `count` or `size_hw` says what is real.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from saccade.engines.engine import TensorSpec
from saccade.errors import UsageError

__all__ = ["JSON", "Column", "columns", "json_column", "specs", "stacked"]

JSON = "json"  # the name of the output that holds everything as text


@dataclass(frozen=True, slots=True)
class Column:
    """One output. shape: of one picture's part, with names for sizes that differ; of: its values."""

    dtype: str
    shape: tuple[int | str, ...]
    of: Callable[[Any], Any]


_SIZE = Column("int32", (2,), lambda result: result.size_hw)
_BOXES: Mapping[str, Column] = {
    "boxes_xyxy": Column("float32", ("objects", 4), lambda found: found.boxes_xyxy),
    "scores": Column("float32", ("objects",), lambda found: found.scores),
    "indices": Column("int64", ("objects",), lambda found: found.indices),
    "count": Column("int32", (1,), lambda found: [len(found)]),
    "size_hw": _SIZE,
}


def columns(task: str, width: int) -> Mapping[str, Column]:
    """The outputs of a task, less the JSON. width: classes, or numbers of an embedding. UsageError for a
    task without a predictor."""
    labels = "uint8" if width <= 256 else "uint16"
    by_task: Mapping[str, Mapping[str, Column]] = {
        "classification": {"scores": Column("float32", (width,), lambda result: result.scores)},
        "zero_shot": {"scores": Column("float32", (width,), lambda result: result.scores)},
        "embedding": {"vector": Column("float32", (width,), lambda result: result.vectors[0])},
        "detection": _BOXES,
        "instance_segmentation": {
            **_BOXES,
            "masks": Column("bool", ("objects", "height", "width"), lambda found: np.asarray(found.masks)),
        },
        "semantic_segmentation": {
            "labels": Column(labels, ("height", "width"), lambda result: result.labels),
            "size_hw": Column("int32", (2,), lambda result: result.labels.shape),
        },
        "depth": {
            "depth": Column("float32", ("height", "width"), lambda result: result.depth),
            "size_hw": Column("int32", (2,), lambda result: result.depth.shape),
        },
    }
    if task not in by_task:
        raise UsageError(f"there is no predictor for {task}; there are predictors for {', '.join(by_task)}")
    return by_task[task]


def specs(chosen: Mapping[str, Column]) -> list[TensorSpec]:
    """The outputs as tensors, with the JSON first."""
    tensors = [TensorSpec(name, column.dtype, ("batch", *column.shape)) for name, column in chosen.items()]
    return [TensorSpec(JSON, "bytes", ("batch", 1)), *tensors]


def json_column(results: Sequence[Any]) -> NDArray[np.object_]:
    """(N, 1) of bytes: what each result's `to_json` says, in UTF-8."""
    texts = [json.dumps(result.to_json(), ensure_ascii=False).encode() for result in results]
    return np.array(texts, np.object_).reshape(-1, 1)


def stacked(column: Column, results: Sequence[Any]) -> NDArray[Any]:
    """The column of all results, (N, ...), zeros where one is smaller than the largest."""
    rows = [np.asarray(column.of(result), column.dtype) for result in results]
    sizes = np.max([row.shape for row in rows], axis=0)
    joined = np.zeros((len(rows), *sizes), column.dtype)
    for row, place in zip(rows, joined, strict=True):
        place[tuple(slice(size) for size in row.shape)] = row
    return joined
