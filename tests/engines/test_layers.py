"""Layer by layer: clean graphs are clean in every pairing, and a planted fault is named."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper

from saccade.engines import layers
from saccade.engines.islands import OPSET
from saccade.engines.layers import Layer, Side, compare, in_engine, start
from saccade.engines.passes.float64 import as_float64
from saccade.engines.passes.inline import inline
from saccade.engines.passes.rounding import emulate
from saccade.engines.precision import PRECISIONS, convert
from saccade.models.operators import OPERATORS

FLOAT32 = 2.0**-24
BLOCKS = 2


def network() -> onnx.ModelProto:
    """Blocks of attention and an MLP, each with a residual sum."""
    rng = np.random.default_rng(4)
    plugin = 'plugin_namespace = "saccade", plugin_version = "1", aot = 1'
    lines, last = [], "x"
    constants: dict[str, NDArray[Any]] = {}
    for i in range(BLOCKS):
        lines += [
            f"n{i} = LayerNormalization <axis = -1> ({last}, gain, offset)",
            f"kv{i} = MatMul (n{i}, project{i})",
            f"a{i} = saccade.TokenAttention <heads = 2, {plugin}> (n{i}, kv{i})",
            f"r{i} = Add ({last}, a{i})",
            f"up{i} = MatMul (r{i}, up_weight{i})",
            f"g{i} = Gelu (up{i})",
            f"down{i} = MatMul (g{i}, down_weight{i})",
            f"{'y' if i == BLOCKS - 1 else f's{i}'} = Add (r{i}, down{i})",
        ]
        last = f"s{i}"
        shapes = {f"project{i}": (16, 32), f"up_weight{i}": (16, 32), f"down_weight{i}": (32, 16)}
        constants |= {name: rng.standard_normal(shape) / 4 for name, shape in shapes.items()}
    constants |= {"gain": np.ones(16), "offset": np.zeros(16)}
    made = onnx.parser.parse_model(
        f"""<ir_version: 9, opset_import: ["" : 20, "saccade" : 1]>
        g (float[batch, 6, 6, 16] x) => (float[batch, 6, 6, 16] y) {{
            {" ".join(lines)}
        }}"""
    )
    for name, values in constants.items():
        made.graph.initializer.append(numpy_helper.from_array(values.astype(np.float32), name))
    for node in made.graph.node:
        node.name = node.output[0]
    made.functions.append(onnx.parser.parse_function(OPERATORS["TokenAttention"].body))
    return onnx.shape_inference.infer_shapes(made, strict_mode=True)


NETWORK = network()
FEEDS = {"x": np.random.default_rng(1).standard_normal((2, 6, 6, 16)).astype(np.float32)}


def faulty(model: onnx.ModelProto, weight: str, amount: float) -> onnx.ModelProto:
    """`model` with one number of one weight changed by `amount`."""
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    tensor = next(each for each in changed.graph.initializer if each.name == weight)
    values = numpy_helper.to_array(tensor).copy()
    values[1, 2] += np.asarray(amount, values.dtype)
    tensor.CopyFrom(numpy_helper.from_array(values, weight))
    return changed


def rows(tested: Side, yardstick: Side, roundoff: float) -> list[Layer]:
    return list(compare(tested, yardstick, FEEDS, roundoff=roundoff))


def lower(precision: str, model: onnx.ModelProto = NETWORK) -> onnx.ModelProto:
    return emulate(convert(model, precision).model, OPSET)


PLAIN = in_engine(NETWORK, "onnxruntime")


@pytest.mark.parametrize(
    ("tested", "yardstick", "roundoff"),
    [
        (PLAIN, in_engine(as_float64(NETWORK), "reference"), FLOAT32),
        (in_engine(inline(NETWORK), "openvino"), PLAIN, FLOAT32),
        (in_engine(NETWORK, "reference"), in_engine(inline(NETWORK), "onnxruntime"), FLOAT32),
        (in_engine(lower("fp16"), "onnxruntime"), PLAIN, PRECISIONS["fp16"].roundoff),
        (in_engine(lower("bf16"), "onnxruntime"), PLAIN, PRECISIONS["bf16"].roundoff),
    ],
    ids=["float64", "openvino", "reference", "fp16", "bf16"],
)
def test_what_agrees_is_said_to_agree(tested: Side, yardstick: Side, roundoff: float) -> None:
    found = rows(tested, yardstick, roundoff)
    assert start(found) is None
    assert {"n0", "a1", "g0"} <= {layer.tensor for layer in found}
    assert all(layer.agrees for layer in found)
    assert sum(layer.own is not None for layer in found) >= 8 * BLOCKS - 2, "but for those inside a function"
    assert 0 < max(layer.error for layer in found) < 64 * roundoff


def test_saccade_nodes_are_layers() -> None:
    found = rows(in_engine(lower("fp16"), "onnxruntime"), PLAIN, PRECISIONS["fp16"].roundoff)
    assert [layer.node for layer in found if layer.operator == "TokenAttention"] == ["a0", "a1"]


@pytest.mark.parametrize(("weight", "node"), [("project1", "kv1"), ("down_weight0", "down0")])
def test_a_planted_fault_is_named_and_nothing_behind_it(weight: str, node: str) -> None:
    found = rows(in_engine(faulty(NETWORK, weight, 0.05), "onnxruntime"), PLAIN, FLOAT32)
    assert [layer.node for layer in found if not layer.agrees] == [node]
    piled_up = {layer.node: layer.error for layer in found}
    assert piled_up["y"] > 10 * found[0].limit, "the error goes on, but it starts elsewhere"


def test_a_fault_in_a_converted_graph_is_named() -> None:
    converted = convert(NETWORK, "fp16").model
    name = next(t.name for t in converted.graph.initializer if t.name.startswith("up_weight1"))
    side = in_engine(emulate(faulty(converted, name, 0.5), OPSET), "onnxruntime")
    found = rows(side, PLAIN, PRECISIONS["fp16"].roundoff)
    worst = start(found)
    assert worst is not None
    assert worst.node == "up1"


def test_pieces_give_the_same_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    side = in_engine(faulty(NETWORK, "project1", 0.05), "onnxruntime")
    whole = rows(side, PLAIN, FLOAT32)
    monkeypatch.setattr(layers, "PIECE", 6 * layers._UNKNOWN)
    said: list[str] = []
    pieces = list(compare(side, PLAIN, FEEDS, roundoff=FLOAT32, progress=said.append))
    assert 1 < len(said) < 6
    assert [(layer.node, layer.agrees) for layer in pieces] == [(layer.node, layer.agrees) for layer in whole]


def test_json_has_no_infinities() -> None:
    layer = Layer("n", "Add", "t", float("inf"), float("nan"), 1e-3)
    assert layer.to_json() == {
        "node": "n",
        "operator": "Add",
        "tensor": "t",
        "error": None,
        "own": None,
        "limit": 1e-3,
        "agrees": False,
    }
