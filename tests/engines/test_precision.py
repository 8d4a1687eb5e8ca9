"""Conversion to fp16 and bf16: types, casts and float32 islands, and the emulation that judges them."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper

from saccade.engines.islands import OPSET
from saccade.engines.passes.coordinates import coordinate_sources
from saccade.engines.passes.rounding import emulate
from saccade.engines.precision import PRECISIONS, convert
from saccade.engines.scratch import opened
from saccade.errors import ExportError, UsageError
from saccade.models.operators import OPERATORS

LOW = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}
NUMPY = {"fp16": np.float16, "bf16": ml_dtypes.bfloat16}

Array = NDArray[Any]


def graph(text: str, *, functions: tuple[str, ...] = (), **constants: Any) -> onnx.ModelProto:
    """The graph in ONNX's text form, `constants` as initializers, nodes named by what they give."""
    domains = ', "saccade" : 1' if functions else ""
    made = onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["" : 20{domains}]>\n{text}')
    for name, values in constants.items():
        made.graph.initializer.append(numpy_helper.from_array(np.asarray(values), name))
    for node in made.graph.node:
        node.name = node.output[0]
    made.functions.extend(onnx.parser.parse_function(OPERATORS[name].body) for name in functions)
    return onnx.shape_inference.infer_shapes(made, strict_mode=True)


def random(*shape: int, scale: float = 1.0) -> Array:
    return (np.random.default_rng(5).standard_normal(shape) * scale).astype(np.float32)


def run(model: onnx.ModelProto, **feeds: Array) -> dict[str, Array]:
    with opened(model) as engine:
        return engine.run(feeds)


def emulated(model: onnx.ModelProto, precision: str, **feeds: Array) -> dict[str, Array]:
    return run(emulate(convert(model, precision).model, OPSET), **feeds)


def types(model: onnx.ModelProto) -> dict[str, int]:
    """Element type of every tensor that the file or ONNX's own inference knows."""
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True)
    values = (*inferred.graph.input, *inferred.graph.output, *inferred.graph.value_info)
    return {value.name: value.type.tensor_type.elem_type for value in values}


BLOCK = graph(
    """block (float[batch, 6, 8] x) => (float[batch, 6, 8] y) {
        normal = LayerNormalization <axis = -1> (x, gain, offset)
        wide = MatMul (normal, up)
        bent = Gelu (wide)
        narrow = MatMul (bent, down)
        y = Add (x, narrow)
    }""",
    gain=random(8),
    offset=random(8),
    up=random(8, 16),
    down=random(16, 8),
)

ATTENTION = graph(
    """heads (float[batch, 6, 8] q, float[batch, 8, 6] k, float[batch, 6, 8] v) => (float[batch, 6, 8] y) {
        products = MatMul (q, k)
        scaled = Mul (products, scale)
        biased = Add (scaled, bias)
        weights = Softmax <axis = -1> (biased)
        y = MatMul (weights, v)
    }""",
    scale=np.float32(0.35),
    bias=random(6, 6),
)

WINDOWS = graph(
    """windows (float[batch, 7, 6, 24] qkv) => (float[batch, 7, 6, 8] y) {
        attended = saccade.ShiftedWindowAttention <heads = 2, window = 4, shift = 2> (qkv, pad, bias)
        y = Relu (attended)
    }""",
    functions=("ShiftedWindowAttention",),
    pad=random(24),
    bias=random(2, 16, 16),
)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_borders_stay_float32_and_what_is_between_does_not(precision: str) -> None:
    made = convert(BLOCK, precision)
    assert made.islands == {}
    assert [node.op_type for node in made.model.graph.node] == [
        "Cast",
        "LayerNormalization",
        "MatMul",
        "Gelu",
        "MatMul",
        "Add",
        "Cast",
    ]
    known = types(made.model)
    assert known["x"] == known["y"] == TensorProto.FLOAT
    assert {known[name] for name in ("normal", "wide", "bent", "narrow")} == {LOW[precision]}
    assert {tensor.data_type for tensor in made.model.graph.initializer} == {LOW[precision]}
    (norm,) = (node for node in made.model.graph.node if node.op_type == "LayerNormalization")
    assert all(a.name != "stash_type" or a.i == TensorProto.FLOAT for a in norm.attribute)


# Graph, precision, and which nodes stay float32 for which reason.
ISLANDS: list[tuple[str, dict[str, Any], str, dict[str, str]]] = [
    ("h = MatMul (x, w)  y = Relu (h)", {"w": random(8, 8)}, "fp16", {}),
    ("h = Softmax (x)  y = MatMul (h, w)", {"w": random(8, 8)}, "bf16", {"h": "softmax"}),
    (
        "h = ReduceMean <keepdims = 1> (x, axes)  y = Sub (x, h)",
        {"axes": np.array([1])},
        "fp16",
        {"h": "statistics"},
    ),
    ("y = Add (x, w)", {"w": np.float32([1e5])}, "fp16", {"y": "constant outside fp16"}),
    ("y = Add (x, w)", {"w": np.float32([1e5])}, "bf16", {}),
    ("y = Add (x, w)", {"w": np.float32([3.4e38])}, "bf16", {"y": "constant outside bf16"}),
    ("y = Max (x, w)", {"w": np.float32([1e-12])}, "fp16", {"y": "constant outside fp16"}),
    ("y = Add (x, w)", {"w": np.float32([-np.inf, 1, 1, 1, 1, 1, 1, 1])}, "fp16", {}),
    ("y = HardSwish (x)", {}, "fp16", {}),
    ("y = HardSwish (x)", {}, "bf16", {"y": "HardSwish has no bf16 in TensorRT"}),
]


@pytest.mark.parametrize(("body", "constants", "precision", "islands"), ISLANDS)
def test_islands(body: str, constants: dict[str, Any], precision: str, islands: dict[str, str]) -> None:
    model = graph(f"g (float[batch, 8] x) => (float[batch, m] y) {{ {body} }}", **constants)
    made = convert(model, precision)
    assert made.islands == islands
    onnx.checker.check_model(made.model, full_check=True)
    for tensor in made.model.graph.initializer:
        values = numpy_helper.to_array(tensor).astype(np.float64)
        given = np.asarray(constants[tensor.name.partition("_")[0]])
        assert np.array_equal(np.isinf(values), np.isinf(given)), "a constant became infinite"


def test_scale_and_bias_of_a_softmax_are_float32_and_its_products_are_not() -> None:
    made = convert(ATTENTION, "fp16")
    assert made.islands == dict.fromkeys(("scaled", "biased", "weights"), "softmax")
    known = types(made.model)
    assert known["products"] == TensorProto.FLOAT16
    assert {known[name] for name in ("scaled", "biased", "weights")} == {TensorProto.FLOAT}


@pytest.mark.parametrize("precision", PRECISIONS)
def test_saccade_nodes_stay_nodes_with_a_float32_softmax_inside(precision: str) -> None:
    made = convert(WINDOWS, precision)
    assert [node.op_type for node in made.model.graph.node] == [
        "Cast",
        "ShiftedWindowAttention",
        "Relu",
        "Cast",
    ]
    inlined = types(onnx.inliner.inline_local_functions(made.model))
    (function,) = made.model.functions
    (softmax,) = (node for node in function.node if node.op_type == "Softmax")
    inside = {name: kind for name, kind in inlined.items() if softmax.output[0] in name or "logits" in name}
    assert TensorProto.FLOAT in inside.values()
    assert inlined["attended"] == LOW[precision]
    qkv = random(2, 7, 6, 24)
    expected = run(WINDOWS, qkv=qkv)["y"]
    actual = emulated(WINDOWS, precision, qkv=qkv)["y"]
    assert 0 < np.abs(actual - expected).max() < 4 * PRECISIONS[precision].roundoff * np.abs(expected).max()


def test_boxes_and_what_ranks_them_stay_float32() -> None:
    model = graph(
        """detect (float[batch, 3, 8, 8] image, float[1, 4] anchor) => (int64[batch, 5] kept) {
            map = Conv <kernel_shape = [1, 1]> (image, kernel)
            flat = Reshape (map, shape)
            ordered = Transpose <perm = [0, 2, 1]> (flat)
            deltas, logits = Split <axis = 2> (ordered, sizes)
            moved = Mul (deltas, anchor)
            boxes4 = Reshape (moved, boxes_shape)
            scores3 = Sigmoid (logits)
            ranked = Transpose <perm = [0, 2, 1]> (scores3)
            kept = saccade.BatchedNMS <iou_threshold = 0.5, score_threshold = 0.1, kept = 5> (boxes4, ranked)
        }""",
        functions=("BatchedNMS",),
        kernel=random(5, 3, 1, 1),
        shape=np.array([0, 5, -1]),
        sizes=np.array([4, 1]),
        boxes_shape=np.array([0, 1, -1, 4]),
    )
    made = convert(model, "fp16")
    assert "map" not in made.islands
    assert set(made.islands.values()) == {"coordinates"}
    assert {"moved", "boxes4", "scores3", "ranked", "kept", "flat", "ordered"} <= set(made.islands)
    known = types(onnx.inliner.inline_local_functions(made.model))
    assert coordinate_sources(ir.from_proto(model).graph) == ["map"]
    assert known["map"] == TensorProto.FLOAT16
    assert known["moved"] == known["ranked"] == TensorProto.FLOAT


@pytest.mark.parametrize("precision", PRECISIONS)
def test_nodes_that_are_asked_for_stay_float32(precision: str) -> None:
    made = convert(BLOCK, precision, ["bent"])
    assert made.islands == {"bent": "measured"}
    known = types(made.model)
    assert known["bent"] == TensorProto.FLOAT
    assert known["wide"] == LOW[precision]


def test_conversion_leaves_the_graph_as_it_is() -> None:
    before = BLOCK.SerializeToString(deterministic=True)
    convert(BLOCK, "fp16")
    assert BLOCK.SerializeToString(deterministic=True) == before


def test_unknown_names_and_branches_are_refused() -> None:
    with pytest.raises(UsageError, match="choose from fp16, bf16"):
        convert(BLOCK, "fp8")
    with pytest.raises(UsageError, match="did you mean 'narrow'"):
        convert(BLOCK, "fp16", ["narow"])
    branches = graph(
        """g (float[2] x, bool c) => (float[2] y) {
            y = If (c) <
                then_branch = one () => (float[2] a) { a = Identity (x) },
                else_branch = two () => (float[2] b) { b = Neg (x) }
            >
        }"""
    )
    with pytest.raises(ExportError, match="branches"):
        convert(branches, "fp16")


# --- the emulation, against NumPy's own types ---------------------------------------------------------


@pytest.mark.parametrize("precision", PRECISIONS)
def test_every_weight_and_result_is_rounded(precision: str) -> None:
    model = graph(
        "g (float[batch, 8] x) => (float[batch, 8] y) { h = Mul (x, w)  s = Add (h, b)  y = Tanh (s) }",
        w=random(8),
        b=random(8),
    )
    x, low = random(5, 8, scale=3.0), NUMPY[precision]
    w, b = (numpy_helper.to_array(tensor) for tensor in model.graph.initializer)

    def rounded(values: Array) -> Array:
        return values.astype(low).astype(np.float32)

    h = rounded(rounded(x) * rounded(w))
    expected = rounded(np.tanh(rounded(h + rounded(b))))
    np.testing.assert_array_equal(emulated(model, precision, x=x)["y"], expected)


def test_emulation_overflows_where_the_cpu_kernels_of_onnx_runtime_do_not() -> None:
    """The reason why it is there: that runtime widens to float32 and drops the casts between neighbours."""
    model = graph(
        "g (float[batch, 1] x) => (float[batch, 1] y) { h = Mul (x, up)  y = Mul (h, down) }",
        up=np.float32([4096.0]),
        down=np.float32([1 / 4096]),
    )
    x = np.float32([[1.0], [20.0]])
    np.testing.assert_array_equal(emulated(model, "fp16", x=x)["y"], [[1.0], [np.inf]])
    np.testing.assert_array_equal(run(convert(model, "fp16").model, x=x)["y"], x)


def test_tensors_keep_their_names() -> None:
    converted = convert(BLOCK, "fp16").model
    names = {name for node in BLOCK.graph.node for name in node.output}
    for model in (converted, emulate(converted, OPSET)):
        assert names <= {name for node in model.graph.node for name in node.output}
