"""A small convolutional classifier as a graph and as a bundle, for tests of everything above the engines."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.inliner

from saccade import bundle
from saccade.bundle import Bundle
from saccade.models.card import Card, Preprocessing

LABELS = ("ant", "bee", "crab", "deer", "elk", "fox", "gnu", "hare", "ibis", "jay")
CARD = Card(
    name="tiny",
    family="test",
    preprocessing=Preprocessing(input_size_hw=(32, 32), resize_hw=(36, 36)),
    labels=LABELS,
)

# Sizes of a Mask R-CNN on Swin, for `config`.
DETECTOR: dict[str, Any] = {
    "backbone": {"embed_dim": 16, "depths": [1, 1, 1, 1], "num_heads": [1, 2, 2, 2]},
    "num_classes": 3,
    "channels": 16,
    "box_width": 32,
    "mask_convs": 1,
    "proposal_candidates": 60,
    "proposals": 40,
    "detections": 20,
}

# Scaled: a local function, so that every engine meets one.
GRAPH = """<ir_version: 9, opset_import: ["": 20, "test": 1]>
tiny (float[batch, 3, 32, 32] image) => (float[batch, 10] logits) {
    maps = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1], strides = [2, 2]> (image, kernel, bias)
    active = Relu (maps)
    pooled = GlobalAveragePool (active)
    flat = Flatten <axis = 1> (pooled)
    small = Gemm (flat, matrix, offset)
    logits = test.Scaled (small)
}
<domain: "test", opset_import: ["": 20]>
Scaled (x) => (y) {
    three = Constant <value = float {3.0}> ()
    y = Mul (x, three)
}
"""


def model(metadata: dict[str, str] | None = None) -> onnx.ModelProto:
    """The graph with fixed weights."""
    made = onnx.parser.parse_model(GRAPH)
    rng = np.random.default_rng(7)
    shapes = {"kernel": (64, 3, 3, 3), "bias": (64,), "matrix": (64, 10), "offset": (10,)}
    for name, shape in shapes.items():
        values = rng.standard_normal(shape).astype(np.float32) / 4
        made.graph.initializer.append(onnx.numpy_helper.from_array(values, name))
    for key, value in (metadata or {}).items():
        made.metadata_props.add(key=key, value=value)
    return made


def logits(image: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """What the graph computes, by ONNX's reference evaluator."""
    from onnx.reference import ReferenceEvaluator

    values: np.ndarray[Any, Any] = ReferenceEvaluator(model()).run(None, {"image": image})[0]
    return values


def write_graphs(folder: Path) -> dict[str, Path]:
    """The source graph over external weights, and the form without local functions that OpenVINO reads."""
    folder.mkdir(parents=True, exist_ok=True)
    forms = {"source": model(), "openvino": onnx.inliner.inline_local_functions(model())}
    paths = {variant: folder / f"{variant}.onnx" for variant in forms}
    for variant, form in forms.items():
        stored = {"save_as_external_data": True, "location": f"{variant}.bin", "size_threshold": 64}
        onnx.save(form, paths[variant], **stored)
    return paths


def write_bundle(
    out: Path,
    card: Card = CARD,
    *,
    also: Callable[[Path], None] = lambda folder: None,
    untrained: bool = False,
    **changes: Any,
) -> Bundle:
    """A whole bundle with a conformance sample. `also` writes more files; `changes` are of the manifest."""

    def fill(folder: Path) -> dict[str, Any]:
        graphs = write_graphs(folder / "graphs")
        _write_conformance(folder / "conformance.npz")
        (folder / "verify.json").write_text(json.dumps({"comparisons": []}))
        also(folder)
        manifest = {
            "name": card.name,
            "task": card.task,
            "card": card.to_json(),
            "graphs": {
                "model": {
                    "inputs": [{"name": "image", "dtype": "float32", "shape": ["batch", 3, 32, 32]}],
                    "outputs": [{"name": "logits", "dtype": "float32", "shape": ["batch", 10]}],
                    "files": {variant: f"graphs/{path.name}" for variant, path in graphs.items()},
                    "sample": "conformance.npz" if (folder / "conformance.npz").exists() else None,
                }
            },
            "derived": {},
            "untrained": untrained,
            "provenance": {"created": "2026-01-01T00:00:00+00:00"},
        }
        return manifest | changes

    return bundle.write(out, fill)


def with_preprocessing(**changes: Any) -> Card:
    return dataclasses.replace(CARD, preprocessing=dataclasses.replace(CARD.preprocessing, **changes))


def _write_conformance(path: Path) -> None:
    image = np.random.default_rng(3).standard_normal((2, 3, 32, 32)).astype(np.float32)
    arrays = {"input:image": image, "output:logits": logits(image), "tolerance:logits": np.float32(1e-4)}
    np.savez(path, **arrays)  # type: ignore[arg-type]
