"""A small bundle of every task, and pictures, for tests of what serves them. Weights are random."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from PIL import Image

from saccade import bundle
from saccade.bundle import Bundle
from saccade.models.card import Card, Preprocessing, Texts

FIT = Preprocessing(
    input_size_hw=(64, 64), resize="fit", resize_hw=(64, 96), resampler="opencv-bilinear", pad_multiple=32
)
CROP = Preprocessing(input_size_hw=(32, 32), resize_hw=(36, 36))
_CONTEXT, _WIDTH, _TOKENS = 8, 24, 600

_PICTURE_VECTOR = """<ir_version: 9, opset_import: ["": 20]>
vectors (float[batch, 3, 32, 32] image) => (float[batch, {width}] {output}) {{
    maps = Conv <kernel_shape = [8, 8], strides = [8, 8]> (image, kernel)
    active = Relu (maps)
    pooled = GlobalAveragePool (active)
    flat = Flatten <axis = 1> (pooled)
    {output} = Gemm (flat, matrix)
}}
"""
_TEXT_VECTOR = """<ir_version: 9, opset_import: ["": 20]>
texts (int64[batch, 8] tokens) => (float[batch, 24] embedding) {
    rows = Gather (table, tokens)
    along = Constant <value = int64[1] {1}> ()
    embedding = ReduceMean <keepdims = 0> (rows, along)
}
"""
_SEGMENTER = """<ir_version: 9, opset_import: ["": 20]>
segmenter (float[batch, 3, height, width] image) => (float[batch, 5, h, w] logits) {
    logits = Conv <kernel_shape = [4, 4], strides = [4, 4]> (image, kernel)
}
"""
_DEPTH = """<ir_version: 9, opset_import: ["": 20]>
depth (float[batch, 3, height, width] image) => (float[batch, h, w] depth) {
    map = Conv <kernel_shape = [4, 4], strides = [4, 4]> (image, kernel)
    one = Constant <value = int64[1] {1}> ()
    flat = Squeeze (map, one)
    depth = Softplus (flat)
}
"""
_DETECTOR = """<ir_version: 9, opset_import: ["": 20]>
detector (float[batch, 3, height, width] image, float[batch, 2] size_hw)
    => (float[batch, 6, 4] boxes, float[batch, 6] scores, int64[batch, 6] labels,
        int64[batch] count{masks}) {{
    pooled = GlobalAveragePool (image)
    flat = Flatten <axis = 1> (pooled)
    logits = Gemm (flat, matrix)
    scores = Sigmoid (logits)
    order = Constant <value = int64[4] {{1, 0, 1, 0}}> ()
    sides = Gather <axis = 1> (size_hw, order)
    one = Constant <value = int64[1] {{1}}> ()
    row = Unsqueeze (sides, one)
    boxes = Mul (row, corners)
    three = Constant <value = float {{3.0}}> ()
    tripled = Mul (scores, three)
    labels = Cast <to = 7> (tripled)
    half = Constant <value = float {{0.5}}> ()
    sure = Greater (scores, half)
    ones = Cast <to = 7> (sure)
    count = ReduceSum <keepdims = 0> (ones, one)
    {mask_nodes}
}}
"""
_MASKS = """last = Constant <value = int64[2] {2, 3}> ()
    tall = Unsqueeze (scores, last)
    masks = Mul (tall, pattern)"""


def _model(text: str, **shapes: tuple[int, ...]) -> onnx.ModelProto:
    model = onnx.parser.parse_model(text)
    rng = np.random.default_rng(5)
    for name, shape in shapes.items():
        values = rng.standard_normal(shape)
        if name == "corners":
            values = np.sort(rng.random((*shape[:2], 2, 2)), axis=2).reshape(shape)
        if name == "pattern":
            values = 1.5 * rng.random(shape)
        model.graph.initializer.append(onnx.numpy_helper.from_array(values.astype(np.float32), name))
    return model


def _vectors(output: str, width: int) -> onnx.ModelProto:
    text = _PICTURE_VECTOR.format(output=output, width=width)
    return _model(text, kernel=(16, 3, 8, 8), matrix=(16, width))


def _detector(masks: bool) -> onnx.ModelProto:
    shapes = {"matrix": (3, 6), "corners": (1, 6, 4)} | ({"pattern": (1, 1, 28, 28)} if masks else {})
    outputs = ", float[batch, 6, 28, 28] masks" if masks else ""
    return _model(_DETECTOR.format(masks=outputs, mask_nodes=_MASKS if masks else ""), **shapes)


def _graphs(task: str) -> dict[str, onnx.ModelProto]:
    towers = {
        "image": _vectors("embedding", _WIDTH),
        "text": _model(_TEXT_VECTOR, table=(_TOKENS, _WIDTH)),
    }
    return {
        "classification": lambda: {"model": _vectors("logits", 10)},
        "embedding": lambda: towers,
        "zero_shot": lambda: towers,
        "detection": lambda: {"model": _detector(masks=False)},
        "instance_segmentation": lambda: {"model": _detector(masks=True)},
        "semantic_segmentation": lambda: {"model": _model(_SEGMENTER, kernel=(5, 3, 4, 4))},
        "depth": lambda: {"model": _model(_DEPTH, kernel=(1, 3, 4, 4))},
    }[task]()


_LABELS = {"classification": 10, "detection": 3, "instance_segmentation": 3, "semantic_segmentation": 5}
TASKS = (*_LABELS, "depth", "embedding", "zero_shot")
PROMPTS = ("a dog", "a cat", "a blue whale")


def card(task: Any) -> Card:
    texts = Texts(_TOKENS, _CONTEXT) if task in ("embedding", "zero_shot") else None
    return Card(
        name=f"small_{task}",
        family="test",
        task=task,
        preprocessing=CROP if task == "classification" or texts else FIT,
        labels=tuple(f"class {n}" for n in range(_LABELS.get(task, 0))),
        unit="metre" if task == "depth" else "",
        texts=texts,
    )


def write(task: str, out: Path) -> Bundle:
    """A bundle of `task`, its graphs over external weights, with samples of ONNX Runtime's answers."""
    described = card(task)

    def fill(folder: Path) -> dict[str, Any]:
        (folder / "graphs").mkdir()
        graphs = {name: _write(folder, name, model) for name, model in _graphs(task).items()}
        (folder / "verify.json").write_text("{}\n")
        manifest = {"name": described.name, "task": task, "card": described.to_json(), "graphs": graphs}
        return {**manifest, "derived": {}, "untrained": False, "provenance": {}}

    return bundle.write(out, fill)


def _write(folder: Path, name: str, model: onnx.ModelProto) -> dict[str, Any]:
    path = folder / "graphs" / f"{name}.onnx"
    onnx.save(model, path, save_as_external_data=True, location=f"{name}.bin", size_threshold=64)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    inputs = {each.name: _sample(each.name) for each in session.get_inputs()}
    outputs = dict(zip([each.name for each in session.get_outputs()], session.run(None, inputs), strict=True))
    arrays: dict[str, Any] = {f"input:{key}": value for key, value in inputs.items()}
    arrays |= {f"output:{key}": value for key, value in outputs.items()}
    arrays |= {f"tolerance:{key}": np.float32(1e-4) for key in outputs}
    np.savez(folder / f"conformance.{name}.npz", **arrays)
    return {
        "inputs": [_spec(each) for each in session.get_inputs()],
        "outputs": [_spec(each) for each in session.get_outputs()],
        "files": {"source": f"graphs/{name}.onnx"},
        "sample": f"conformance.{name}.npz",
    }


def _spec(tensor: Any) -> dict[str, Any]:
    dtype = {"tensor(float)": "float32", "tensor(int64)": "int64"}[tensor.type]
    return {"name": tensor.name, "dtype": dtype, "shape": list(tensor.shape)}


def _sample(name: str) -> NDArray[Any]:
    rng = np.random.default_rng(3)
    if name == "tokens":
        return rng.integers(0, _TOKENS, (2, _CONTEXT), dtype=np.int64)
    if name == "size_hw":
        return np.float32([[30, 20], [32, 32]])
    return rng.standard_normal((2, 3, 32, 32)).astype(np.float32)


def pictures() -> list[bytes]:
    """Files of several sizes and formats; the last has no companion in its padded size."""
    rng = np.random.default_rng(0)
    files = []
    for size_hw, kind in (((48, 64), "JPEG"), ((60, 40), "PNG"), ((48, 64), "JPEG"), ((90, 31), "JPEG")):
        smooth = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
        file = io.BytesIO()
        smooth.resize(size_hw[::-1]).save(file, kind)
        files.append(file.getvalue())
    return files
