"""Scale one factor of a product instead of both."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from saccade.engines.passes.constants import constant, initializer


def scale_one_factor(model: ir.Model) -> int:
    """MatMul(Mul(a, s), Mul(b, t)) with scalars s, t -> MatMul(Mul(a, s * t), b). Returns the number changed.

    PyTorch's exporter scales queries and keys by the fourth root of head_dim each. ONNX Runtime and OpenVINO
    fold either form into the product; TensorRT has a layer less to fuse.
    """
    changed = 0
    for product in model.graph:
        if product.op_type != "MatMul":
            continue
        left, right = (_scaled(value) for value in product.inputs)
        if left is None or right is None:
            continue
        (query, of_query), (key, of_key) = left, right
        scale = initializer(model, f"{product.outputs[0].name}_scale", np.asarray(of_query * of_key))
        multiply = ir.node("Mul", [query, scale], name=f"{product.outputs[0].name}_scaled")
        multiply.metadata_props.update(product.metadata_props)  # the module it comes from
        assert product.inputs[0] is not None
        multiply.outputs[0].shape, multiply.outputs[0].type = product.inputs[0].shape, product.inputs[0].type
        model.graph.insert_before(product, [multiply])
        product.replace_input_with(0, multiply.outputs[0])
        product.replace_input_with(1, key)
        changed += 1
    return changed


def _scaled(value: ir.Value | None) -> tuple[ir.Value, NDArray[Any]] | None:
    """What a Mul by a scalar multiplies, and the scalar."""
    multiply = None if value is None else value.producer()
    if multiply is None or multiply.op_type != "Mul":
        return None
    source, scalar = multiply.inputs[0], constant(multiply.inputs[1])
    if source is None or scalar is None or scalar.size != 1 or scalar.ndim > 1:
        return None
    return source, scalar.reshape(())
