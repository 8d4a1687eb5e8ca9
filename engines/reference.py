"""The ONNX project's reference evaluator: NumPy, operator by operator. Slow; it judges the other engines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from saccade.engines.engine import Arrays, EngineOptions, TensorSpec, check_feeds
from saccade.engines.lifetime import Closing, Owned
from saccade.errors import EngineError


class ReferenceEngine(Closing):
    """One `onnx.reference.ReferenceEvaluator`, local functions included. `options` do not apply to it."""

    def __init__(self, path: Path, options: EngineOptions) -> None:
        import onnx
        from onnx.reference import ReferenceEvaluator

        self._name = path.name
        try:
            model = onnx.load(path)
            evaluator = ReferenceEvaluator(model)
        except Exception as error:  # parsing and evaluation have no common root of errors
            raise EngineError(f"the reference engine cannot open {path}: {error}") from error
        stored = {tensor.name for tensor in model.graph.initializer}
        self.inputs = {
            value.name: tensor_spec(value) for value in model.graph.input if value.name not in stored
        }
        self.outputs = {value.name: tensor_spec(value) for value in model.graph.output}
        self._evaluator = Owned(evaluator, f"the reference engine of {path.name}")

    def run(self, feeds: Arrays) -> dict[str, NDArray[Any]]:
        """All outputs by name. Thread-safe: an evaluation keeps its values to itself."""
        evaluator = self._evaluator.get()
        check_feeds(feeds, self.inputs)
        try:
            values = evaluator.run(list(self.outputs), dict(feeds))
        except Exception as error:
            raise EngineError(f"the reference engine failed on {self._name}: {error}") from error
        return {name: np.array(value) for name, value in zip(self.outputs, values, strict=True)}

    def close(self) -> None:
        """Let go of the graph. Twice is fine."""
        self._evaluator.close()


def tensor_spec(value: Any) -> TensorSpec:
    """Free dimensions without a name get one from the tensor and the axis."""
    from onnx.helper import tensor_dtype_to_np_dtype

    tensor = value.type.tensor_type
    shape = (
        dim.dim_value if dim.HasField("dim_value") else dim.dim_param or f"{value.name}_{axis}"
        for axis, dim in enumerate(tensor.shape.dim)
    )
    return TensorSpec(value.name, np.dtype(tensor_dtype_to_np_dtype(tensor.elem_type)).name, tuple(shape))
