"""Constants and static dimensions of graph values; shared by the rewrites of this folder."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray


def constant(value: ir.Value | None) -> NDArray[Any] | None:
    """The array behind a constant or initializer, None for anything computed."""
    return None if value is None or value.const_value is None else np.asarray(value.const_value.numpy())


def static_size(value: ir.Value | None, axis: int) -> int | None:
    """Size of one dimension where the graph fixes it."""
    if value is None or value.shape is None:
        return None
    size = value.shape[axis]
    return size if isinstance(size, int) else None


def axis_of(node: ir.Node) -> int:
    """The attribute `axis`, as written; 0 where it is left out."""
    return node.attributes["axis"].as_int() if "axis" in node.attributes else 0


def initializer(model: ir.Model, name: str, values: NDArray[Any]) -> ir.Value:
    """The initializer called `name`, made of `values` where the graph has none of that name."""
    if name not in model.graph.initializers:
        tensor = ir.tensor(values, name=name)
        model.graph.register_initializer(
            ir.Value(
                name=name,
                shape=ir.Shape(values.shape),
                type=ir.TensorType(tensor.dtype),
                const_value=tensor,
            )
        )
    return model.graph.initializers[name]
