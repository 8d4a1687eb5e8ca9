"""A bundle with an image and a text graph, made of a few matrices: zero-shot without training anything."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx

from saccade import bundle
from saccade.models.card import Card, Preprocessing, Texts

_WIDTH, _CONTEXT, _VOCABULARY = 8, 12, 600
CARD = Card(
    name="towers",
    family="test",
    task="zero_shot",
    preprocessing=Preprocessing(input_size_hw=(32, 32), resize_hw=(32, 32)),
    texts=Texts(vocabulary=_VOCABULARY, context=_CONTEXT, scale=10.0),
)
_GRAPHS = {
    "image": f"""<ir_version: 9, opset_import: ["": 20]>
        image (float[batch, 3, 32, 32] image) => (float[batch, {_WIDTH}] embeddings) {{
            pooled = AveragePool <kernel_shape = [16, 16], strides = [16, 16]> (image)
            flat = Flatten <axis = 1> (pooled)
            embeddings = MatMul (flat, matrix)
        }}""",
    "text": f"""<ir_version: 9, opset_import: ["": 20]>
        text (int64[batch, {_CONTEXT}] tokens) => (float[batch, {_WIDTH}] embeddings) {{
            rows = Gather <axis = 0> (matrix, tokens)
            embeddings = ReduceMean <keepdims = 0> (rows, axis)
        }}""",
}


def write(out: Path) -> Path:
    """The bundle's folder."""

    def fill(folder: Path) -> dict[str, Any]:
        (folder / "graphs").mkdir()
        for name, shape in (("image", (12, _WIDTH)), ("text", (_VOCABULARY, _WIDTH))):
            model = onnx.parser.parse_model(_GRAPHS[name])
            matrix = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
            model.graph.initializer.append(onnx.numpy_helper.from_array(matrix, "matrix"))
            if name == "text":
                axis = onnx.numpy_helper.from_array(np.array([1], np.int64), "axis")
                model.graph.initializer.append(axis)
            onnx.save(model, folder / "graphs" / f"{name}.onnx")
        inputs = {"image": ("image", "float32", [3, 32, 32]), "text": ("tokens", "int64", [_CONTEXT])}
        return {
            "name": CARD.name,
            "task": CARD.task,
            "card": CARD.to_json(),
            "graphs": {
                name: {
                    "inputs": [{"name": tensor, "dtype": dtype, "shape": ["batch", *shape]}],
                    "outputs": [{"name": "embeddings", "dtype": "float32", "shape": ["batch", _WIDTH]}],
                    "files": {"source": f"graphs/{name}.onnx"},
                    "sample": None,
                }
                for name, (tensor, dtype, shape) in inputs.items()
            },
            "derived": {},
            "untrained": False,
            "provenance": {},
        }

    bundle.write(out, fill)
    return out
