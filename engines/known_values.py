"""What is known of the tensors of a graph or a function's body: types, shapes, small constants."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

import onnx
from onnx import helper, numpy_helper

from saccade.engines.tensorrt.operators import Call, Value

# Constants above this many elements are weights: no restriction reads their values.
_SMALL = 1024


def without_weights(model: onnx.ModelProto, folder: Path | None) -> onnx.ModelProto:
    """A copy whose large initializers keep type and shape only; small ones are read from `folder`."""
    slim = onnx.ModelProto()
    slim.ir_version = model.ir_version
    slim.opset_import.extend(model.opset_import)
    slim.functions.extend(model.functions)
    graph = slim.graph
    graph.name = model.graph.name
    for name in ("node", "input", "output", "value_info"):
        getattr(graph, name).extend(getattr(model.graph, name))
    graph.initializer.extend(_slim(tensor, folder) for tensor in model.graph.initializer)
    return slim


def _slim(tensor: onnx.TensorProto, folder: Path | None) -> onnx.TensorProto:
    external = tensor.data_location == onnx.TensorProto.EXTERNAL
    if _elements(tensor.dims) > _SMALL or (external and folder is None):
        bare = onnx.TensorProto(name=tensor.name, dims=tensor.dims, data_type=tensor.data_type)
        bare.data_location = onnx.TensorProto.EXTERNAL
        return bare
    if not external:
        return tensor
    loaded = onnx.TensorProto()
    loaded.CopyFrom(tensor)
    onnx.external_data_helper.load_external_data_for_tensor(loaded, str(folder))
    loaded.data_location = onnx.TensorProto.DEFAULT
    del loaded.external_data[:]
    return loaded


def infer(model: onnx.ModelProto) -> tuple[onnx.ModelProto, str]:
    """`model` with inferred types and shapes, and why that failed (then as it came), or ""."""
    try:
        return onnx.shape_inference.infer_shapes(model, data_prop=True), ""
    except Exception as error:  # InferenceError, ValueError and checker errors share no root
        return model, str(error).strip().splitlines()[0]


# --- values --------------------------------------------------------------------------------------------


def values_of(graph: onnx.GraphProto) -> dict[str, Value]:
    """What is known of every tensor of an inferred graph."""
    values = {info.name: _typed(info) for info in (*graph.value_info, *graph.output)}
    values |= {info.name: dataclasses.replace(_typed(info), fed=True) for info in graph.input}
    values |= {tensor.name: _constant(tensor) for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" and (tensor := _tensor(node)):
            values[node.output[0]] = _constant(tensor)
        elif node.op_type == "Identity" and values.get(node.input[0], Value()).fixed:
            values[node.output[0]] = values[node.input[0]]
    return values


def _typed(info: onnx.ValueInfoProto) -> Value:
    tensor = info.type.tensor_type
    if not info.type.HasField("tensor_type") or not tensor.elem_type:
        return Value()
    dims = [d.dim_value if d.HasField("dim_value") else None for d in tensor.shape.dim]
    return Value(dtype=tensor.elem_type, shape=tuple(dims) if tensor.HasField("shape") else None)


def _constant(tensor: onnx.TensorProto) -> Value:
    known = tensor.data_location != onnx.TensorProto.EXTERNAL and _elements(tensor.dims) <= _SMALL
    return Value(
        dtype=tensor.data_type,
        shape=tuple(tensor.dims),
        constant=numpy_helper.to_array(tensor) if known else None,
        fixed=True,
    )


def _tensor(node: onnx.NodeProto) -> onnx.TensorProto | None:
    """The tensor of a Constant node, whichever attribute holds it; None for strings and sparse tensors."""
    read: dict[str, Callable[[onnx.AttributeProto], onnx.TensorProto]] = {
        "value": lambda a: a.t,
        "value_int": lambda a: helper.make_tensor("", onnx.TensorProto.INT64, (), [a.i]),
        "value_ints": lambda a: helper.make_tensor("", onnx.TensorProto.INT64, (len(a.ints),), a.ints),
        "value_float": lambda a: helper.make_tensor("", onnx.TensorProto.FLOAT, (), [a.f]),
        "value_floats": lambda a: helper.make_tensor("", onnx.TensorProto.FLOAT, (len(a.floats),), a.floats),
    }
    return next((read[a.name](a) for a in node.attribute if a.name in read and not a.ref_attr_name), None)


def _elements(dims: Collection[int]) -> int:
    count = 1
    for size in dims:
        count *= size
    return count


# --- function bodies -----------------------------------------------------------------------------------


def inlined(
    function: onnx.FunctionProto, call: Call, given: Mapping[str, Value], model: onnx.ModelProto
) -> onnx.ModelProto:
    """The body of `function` as a model: attributes filled in, inputs typed as this call gives them."""
    attributes = {a.name: a for a in (*function.attribute_proto, *call.node.attribute)}
    graph = onnx.GraphProto(name=function.name)
    graph.node.extend(_filled(node, attributes) for node in function.node)
    graph.value_info.extend(function.value_info)
    for name, value in given.items():
        if value.fixed:
            graph.initializer.append(_as_initializer(name, value))
        else:
            graph.input.append(_as_input(name, value))
    graph.output.extend(onnx.ValueInfoProto(name=name) for name in function.output)
    body = onnx.ModelProto(ir_version=model.ir_version, graph=graph)
    body.opset_import.extend(function.opset_import)
    body.functions.extend(model.functions)
    return body


def _filled(node: onnx.NodeProto, attributes: Mapping[str, onnx.AttributeProto]) -> onnx.NodeProto:
    """`node` with references to the function's attributes replaced; an absent optional one is dropped."""
    filled = onnx.NodeProto()
    filled.CopyFrom(node)
    del filled.attribute[:]
    for attribute in node.attribute:
        if attribute.ref_attr_name and attribute.ref_attr_name not in attributes:
            continue
        entry = filled.attribute.add()
        entry.CopyFrom(attributes[attribute.ref_attr_name] if attribute.ref_attr_name else attribute)
        entry.name = attribute.name
        if entry.type == onnx.AttributeProto.GRAPH:
            nodes = [_filled(inner, attributes) for inner in entry.g.node]
            del entry.g.node[:]
            entry.g.node.extend(nodes)
    return filled


def _as_initializer(name: str, value: Value) -> onnx.TensorProto:
    if value.constant is not None:
        return numpy_helper.from_array(value.constant, name)
    dims = [size or 0 for size in value.shape or ()]
    tensor = onnx.TensorProto(name=name, dims=dims, data_type=value.dtype or 0)
    tensor.data_location = onnx.TensorProto.EXTERNAL
    return tensor


def _as_input(name: str, value: Value) -> onnx.ValueInfoProto:
    info = onnx.ValueInfoProto(name=name)
    if value.dtype is not None:
        info.type.tensor_type.elem_type = value.dtype
    if value.shape is not None:
        info.type.tensor_type.shape.SetInParent()
    for size in value.shape or ():
        dim = info.type.tensor_type.shape.dim.add()
        if size is not None:
            dim.dim_value = size
    return info
