"""The reference engine: onnx's own evaluator, NumPy only. Slow, and right by definition."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import onnx
import onnx.reference
from numpy.typing import NDArray

from saccade.engines.engine import Arrays, EngineOptions, TensorSpec, check_feeds
from saccade.engines.lifetime import Owned
from saccade.errors import EngineError


class ReferenceEngine:
    """Evaluates a graph file node by node, local functions by their bodies; see `Engine`."""

    def __init__(self, path: Path, options: EngineOptions) -> None:
        try:
            model = onnx.load(path)
            evaluator = onnx.reference.ReferenceEvaluator(model)
        except Exception as error:
            raise EngineError(f"the reference evaluator refused {path.name}: {error}") from error
        self._evaluator = Owned(evaluator, f"the reference engine of {path.name}")
        self._name = path.name
        self.inputs: Mapping[str, TensorSpec] = _specs(model.graph.input)
        self.outputs: Mapping[str, TensorSpec] = _specs(model.graph.output)

    def run(self, feeds: Arrays) -> dict[str, NDArray[Any]]:
        """All outputs for `feeds`, by name."""
        evaluator = self._evaluator.get()
        check_feeds(feeds, self.inputs)
        try:
            results = evaluator.run(list(self.outputs), dict(feeds))
        except Exception as error:
            raise EngineError(f"the reference evaluator failed in {self._name}: {error}") from error
        return {name: np.asarray(value) for name, value in zip(self.outputs, results, strict=True)}

    def close(self) -> None:
        """Let go of the graph. Twice is fine."""
        self._evaluator.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def _specs(values: Any) -> dict[str, TensorSpec]:
    return {value.name: _spec(value) for value in values}


def _spec(value: onnx.ValueInfoProto) -> TensorSpec:
    tensor = value.type.tensor_type
    dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)).name
    return TensorSpec(value.name, dtype, tuple(d.dim_param or d.dim_value for d in tensor.shape.dim))
