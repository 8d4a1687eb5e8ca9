"""Bundles for acceptance: of the network that the stand-in for TensorRT knows, and of graphs with a
semantic-token layer, a detector's answers among them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, parser
from onnx.reference import ReferenceEvaluator
from tests import tiny
from tests.engines.fake_tensorrt import IMAGE, logits

from saccade import bundle
from saccade.bundle import Bundle
from saccade.conversion import copy_files, manifest_of
from saccade.engines.precision import convert
from saccade.models.operators import TOKEN_ATTENTION


def write_bundle(
    out: Path, *, name: str = "tiny", factor: float = 3.0, shape: Sequence[int | str] = ("batch", *IMAGE)
) -> Bundle:
    """The network that the stand-in runs, as a bundle. factor: 3, or the sample is not what it gives."""
    nodes = [
        helper.make_node("Flatten", ["image"], ["flat"]),
        helper.make_node("Slice", ["flat", "start", "end", "axis"], ["first"]),
        helper.make_node("Mul", ["first", "three"], ["logits"]),
    ]
    numbers = {"start": [0], "end": [10], "axis": [1]}
    constants = [onnx.numpy_helper.from_array(np.array(v), name) for name, v in numbers.items()]
    constants.append(onnx.numpy_helper.from_array(np.float32(factor), "three"))
    given = helper.make_tensor_value_info("image", TensorProto.FLOAT, list(shape))
    made = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 10])
    graph = helper.make_graph(nodes, "tiny", [given], [made], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    image = np.random.default_rng(0).standard_normal((2, *IMAGE)).astype(np.float32)
    arrays = {"input:image": image, "output:logits": logits(image), "tolerance:logits": np.float32(1e-6)}

    def fill(folder: Path) -> dict[str, Any]:
        (folder / "graphs").mkdir()
        onnx.save(model, folder / "graphs" / "model.onnx")
        np.savez(folder / "conformance.npz", **arrays)  # type: ignore[arg-type]
        tensors = {
            "inputs": [{"name": "image", "dtype": "float32", "shape": list(shape)}],
            "outputs": [{"name": "logits", "dtype": "float32", "shape": ["batch", 10]}],
        }
        entry = {**tensors, "files": {"source": "graphs/model.onnx"}, "sample": "conformance.npz"}
        card = tiny.with_preprocessing(input_size_hw=(4, 4), resize_hw=(4, 4))
        return {
            "name": name,
            "task": "classification",
            "card": card.to_json(),
            "graphs": {"model": entry},
            "untrained": False,
        }

    return bundle.write(out, fill)


# A TokenAttention node between standard operators, the weights of which are initializers.
_VECTOR = """<ir_version: 9, opset_import: ["": 20, "saccade": 1]>
vector (float[batch, 4, 4, 8] image) => (float[batch, 5] vector) {
    kv = Concat <axis = -1> (image, image)
    attended = saccade.TokenAttention
        <heads = 2, plugin_namespace = "saccade", plugin_version = "1", aot = 1> (image, kv)
    mapped = MatMul (attended, matrix)
    vector = ReduceMean <keepdims = 0> (mapped, grid)
}
"""
# The same beside a detector's answers: two boxes, the first of which counts.
_CHOICES = """<ir_version: 9, opset_import: ["": 20, "saccade": 1]>
choices (float[batch, 4, 4, 8] image)
    => (float[batch, 2, 4] boxes, float[batch, 2] scores, int64[batch, 2] labels, int64[batch] count) {
    kv = Concat <axis = -1> (image, image)
    attended = saccade.TokenAttention
        <heads = 2, plugin_namespace = "saccade", plugin_version = "1", aot = 1> (image, kv)
    mapped = MatMul (attended, matrix)
    mean = ReduceMean <keepdims = 0> (mapped, grid)
    row = ReduceMean <keepdims = 1> (mean, last)
    boxes_flat = Mul (row, edges)
    boxes = Reshape (boxes_flat, box_shape)
    squared = Mul (row, row)
    scores_flat = Mul (squared, certain)
    scores = Add (scores_flat, half)
    zeros = Mul (scores, none)
    labels = Cast <to = 7> (zeros)
    counted = ReduceMean <keepdims = 0> (zeros, last)
    ones = Add (counted, one)
    count = Cast <to = 7> (ones)
}
"""
CONSTANTS: Mapping[str, Any] = {
    "grid": np.array([1, 2]),
    "last": np.array([1]),
    "edges": np.arange(8, dtype=np.float32)[None],
    "box_shape": np.array([-1, 2, 4]),
    "certain": np.array([[1e-3, 0.0]], np.float32),
    "half": np.array([[0.5, 0.0]], np.float32),
    "none": np.float32(0),
    "one": np.float32(1),
}


def attending(text: str) -> onnx.ModelProto:
    """A graph of the above, with its weights and the definition of its node."""
    model = parser.parse_model(text)
    model.functions.append(parser.parse_function(TOKEN_ATTENTION.body))
    matrix = np.random.default_rng(5).standard_normal((8, 5)).astype(np.float32)
    read = {name for node in model.graph.node for name in node.input}
    for name, values in {"matrix": matrix, **CONSTANTS}.items():
        if name in read:
            model.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(values), name))
    for index, node in enumerate(model.graph.node):
        node.name = f"{node.op_type}_{index}"
    return model


def write_two_graphs(out: Path) -> Bundle:
    """Both graphs, each with a sample of two pictures."""
    image = np.random.default_rng(0).standard_normal((2, 4, 4, 8)).astype(np.float32)
    models = {"image": attending(_VECTOR), "choices": attending(_CHOICES)}

    def fill(folder: Path) -> dict[str, Any]:
        (folder / "graphs").mkdir()
        graphs = {}
        for name, model in models.items():
            onnx.save(model, folder / "graphs" / f"{name}.onnx")
            answers = ReferenceEvaluator(model).run(None, {"image": image})
            outputs = dict(zip([value.name for value in model.graph.output], answers, strict=True))
            arrays = {f"output:{key}": values for key, values in outputs.items()}
            arrays |= {f"tolerance:{key}": np.float32(1e-4) for key in outputs}
            np.savez(folder / f"conformance.{name}.npz", **{"input:image": image, **arrays})  # type: ignore[arg-type]
            graphs[name] = {
                "inputs": [_tensor(value) for value in model.graph.input],
                "outputs": [_tensor(value) for value in model.graph.output],
                "files": {"source": f"graphs/{name}.onnx"},
                "sample": f"conformance.{name}.npz",
            }
        return {
            "name": "two",
            "task": "classification",
            "card": tiny.CARD.to_json(),
            "graphs": graphs,
            "untrained": False,
        }

    return bundle.write(out, fill)


def with_float16(path: Path, out: Path) -> Path:
    """The bundle with both graphs in float16. A detector's have no tolerances."""
    made = bundle.read(path)

    def fill(folder: Path) -> dict[str, Any]:
        copy_files(made, folder)
        manifest = manifest_of(made)
        for name, graph in made.graphs.items():
            file = f"graphs/{name}.fp16.onnx"
            onnx.save(convert(onnx.load(graph.files["source"]), "fp16").model, folder / file)
            manifest["graphs"][name]["files"]["fp16"] = file
            manifest["derived"][file] = {"tolerances": {"vector": 0.01} if name == "image" else {}}
        return manifest

    return bundle.write(out, fill).path


def _tensor(value: onnx.ValueInfoProto) -> dict[str, Any]:
    kind = value.type.tensor_type
    dtype = helper.tensor_dtype_to_np_dtype(kind.elem_type)
    shape = [size.dim_param or size.dim_value for size in kind.shape.dim]
    return {"name": value.name, "dtype": dtype.name, "shape": shape}
