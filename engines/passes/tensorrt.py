"""The form of a detector that NVIDIA's parser and builder take without plugins."""

from __future__ import annotations

import onnx

from saccade.engines.passes import inline
from saccade.engines.passes.matrix_nms import use_matrix_nms
from saccade.engines.passes.separable_regions import use_separable_regions
from saccade.models.operators import BATCHED_NMS, DOMAIN

NAMES = ("use_matrix_nms", "use_separable_regions", *inline.NAMES)


def differs(model: onnx.ModelProto) -> bool:
    """Whether `model` has operators that `for_tensorrt` writes otherwise."""
    operators = {(node.domain, node.op_type) for node in model.graph.node}
    return bool(operators & {("", "RoiAlign"), (DOMAIN, BATCHED_NMS.name)})


def for_tensorrt(model: onnx.ModelProto) -> onnx.ModelProto:
    """`model` in standard operators, without RoiAlign and NonMaxSuppression; the same answers.

    Products are float16 where the graph has that type: every GPU that TensorRT builds for takes those.
    """
    is_half = any(tensor.data_type == onnx.TensorProto.FLOAT16 for tensor in model.graph.initializer)
    product = onnx.TensorProto.FLOAT16 if is_half else onnx.TensorProto.FLOAT
    return inline.inline(use_separable_regions(use_matrix_nms(model, product)))
