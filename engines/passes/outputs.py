"""Other outputs for a graph: what a run is to show of its inside."""

from __future__ import annotations

from collections.abc import Sequence

import onnx
import onnx_ir as ir
import onnx_ir.passes.common


def with_outputs(model: onnx.ModelProto, names: Sequence[str]) -> onnx.ModelProto:
    """`model` with the tensors `names` as its outputs, and without the nodes that none of them needs.

    model: with types (`with_types`).
    """
    read = ir.from_proto(model)
    values = {value.name: value for node in read.graph for value in node.outputs}
    read.graph.outputs.clear()
    read.graph.outputs.extend(values[name] for name in names)
    onnx_ir.passes.common.RemoveUnusedNodesPass()(read)
    return ir.to_proto(read)


def computed(model: onnx.ModelProto) -> set[str]:
    """The names of all tensors that the nodes of `model` give."""
    return {name for node in model.graph.node for name in node.output if name}


def with_types(model: onnx.ModelProto) -> onnx.ModelProto:
    """`model` itself where it states the type of every tensor, else with what follows from its inputs."""
    stated = {value.name for value in (*model.graph.value_info, *model.graph.output)}
    return model if computed(model) <= stated else onnx.shape_inference.infer_shapes(model)
