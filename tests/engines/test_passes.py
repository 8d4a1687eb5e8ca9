"""Each rewrite on the graph it is for and on one it must leave alone, with the numbers compared."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import helper, parser

from saccade.engines.passes.channel_scales import fold_channel_scales
from saccade.engines.passes.inline import inline
from saccade.engines.passes.key_transposes import join_key_transposes
from saccade.engines.passes.one_scale import scale_one_factor
from saccade.engines.passes.pad_channels import pad_channels
from saccade.engines.passes.pad_rows import drop_unused_pad_rows
from saccade.engines.passes.split_qkv import split_qkv
from saccade.engines.passes.window_bias import share_window_bias
from saccade.models.operators import DOMAIN, OPERATORS, OPSET, PLUGIN_ATTRIBUTES, VERSION

HEADER = '<ir_version: 9, opset_import: ["" : 20]>\n'

PAD_USED = """g (float[N, 4, 2] x) => (float[N, 3, 2] y)
  <float[1, 1, 2] row = {7.0, 8.0}, int64[3] index = {0, 4, 2}, int64[3] lead = {1, 1, 2}>
  { batch = Shape <start = 0, end = 1> (x)
    rest = Constant <value_ints = [1, 2]> ()
    shape = Concat <axis = 0> (batch, rest)
    rows = Expand (row, shape)
    grid = Concat <axis = 1> (x, rows)
    y = Gather <axis = 1> (grid, index) }"""
PAD_UNUSED = PAD_USED.replace("{0, 4, 2}", "{0, 3, 2}")
PAD_NEGATIVE = PAD_USED.replace("{0, 4, 2}", "{0, -1, 2}")
PAD_OTHER_AXIS = """g (float[N, 4, 3] x, float[N, 4, 1] row) => (float[N, 4, 3] y)
  <int64[3] index = {0, 3, 2}>
  { grid = Concat <axis = 2> (x, row)
    y = Gather <axis = 2> (grid, index) }"""
BIAS_EQUAL = """g (float[N, 2, 1, 1, 2] x) => (float[N, 2, 1, 1, 2] y)
  <float[2, 1, 1, 2] bias = {1.0, 2.0, 1.0, 2.0}>
  { sum = Add (x, bias)
    y = Softmax <axis = -1> (sum) }"""
BIAS_ZERO = BIAS_EQUAL.replace("{1.0, 2.0, 1.0, 2.0}", "{0.0, 0.0, 0.0, 0.0}")
BIAS_VARIED = BIAS_EQUAL.replace("{1.0, 2.0, 1.0, 2.0}", "{1.0, 2.0, 1.0, 3.0}")
BIAS_WIDENS = BIAS_ZERO.replace("[N, 2, 1, 1, 2] x", "[N, 1, 1, 1, 2] x")
BIAS_EQUAL_WIDENS = BIAS_EQUAL.replace("[N, 2, 1, 1, 2] x", "[N, 1, 1, 1, 2] x")
BIAS_LAST = """g (float[N, 1, 1, 2] x) => (float[N, 1, 1, 2] y) <float[1, 1, 1, 2] bias = {0.0, 0.0}>
  { y = Add (x, bias) }"""

QKV = """g (float[N, 2, 12] x) => (float[N, 2, 2, 2] y)
  <int64[5] shape = {-1, 2, 3, 2, 2}, int64[1] a = {0}, int64[1] b = {1}, int64[1] c = {2}, int64[1] d = {3}>
  { view = Reshape (x, shape)
    unbound = Transpose <perm = [2, 0, 3, 1, 4]> (view)
    q_slice = Slice (unbound, a, b, a)
    q = Squeeze (q_slice, a)
    k_slice = Slice (unbound, b, c, a)
    k = Squeeze (k_slice, a)
    v_slice = Slice (unbound, c, d, a)
    v = Squeeze (v_slice, a)
    product = Mul (q, k)
    y = Add (product, v) }"""
QKV_OTHER_ORDER = QKV.replace("[2, 0, 3, 1, 4]", "[2, 0, 1, 3, 4]")
QKV_TWO_TOGETHER = QKV.replace("(unbound, c, d, a)", "(unbound, b, c, a)")
KEYS = """g (float[N, 3, 4, 5] x) => (float[N, 3, 5, 4] y)
  <int64[1] infer = {-1}, int64[1] least = {-9223372036854775808}, int64[1] two = {-2},
   int64[1] most = {9223372036854775807}>
  { shape = Shape (x)
    lead = Slice (shape, least, two)
    rows = Slice (shape, two, infer)
    columns = Slice (shape, infer, most)
    flat_shape = Concat <axis = 0> (infer, rows, columns)
    flat = Reshape (x, flat_shape)
    swapped = Transpose <perm = [0, 2, 1]> (flat)
    back_shape = Concat <axis = 0> (lead, columns, rows)
    back = Reshape (swapped, back_shape)
    y = Relu (back) }"""
KEYS_NOT_SWAPPED = KEYS.replace("(lead, columns, rows)", "(lead, rows, columns)").replace(
    "3, 5, 4", "3, 4, 5"
)
KEYS_OTHER_ROWS = KEYS.replace("(infer, rows, columns)", "(infer, columns, rows)")
SCALES = """g (float[N, 2, 3] a, float[N, 3, 4] b) => (float[N, 2, 4] y)
  <float[1] s = {0.5}, float t = {0.25}>
  { left = Mul (a, s)
    right = Mul (b, t)
    y = MatMul (left, right) }"""
SCALE_PER_COLUMN = SCALES.replace("float[1] s = {0.5}", "float[3] s = {0.5, 1.0, 2.0}")
# Three channels between convolutions, of which the second adds to the first.
MAPS = """g (float[N, 2, 3, 3] x) => (float[N, 2, 3, 3] y)
  <float[3, 2, 1, 1] a = {1.0, 2.0, -3.0, 4.0, 5.0, -6.0}, float[3] b = {1.0, -2.0, 3.0},
   float[3, 3, 1, 1] c = {1.0, 2.0, 3.0, -1.0, 2.0, 1.0, 0.5, 4.0, -2.0},
   float[2, 3, 1, 1] d = {1.0, -1.0, 2.0, 3.0, 0.5, 1.0}>
  { first = Conv (x, a, b)
    gate = Sigmoid (first)
    second = Mul (first, gate)
    inner = Conv (second, c)
    third = Add (inner, first)
    y = Conv (third, d) }"""
MAPS_READ_WHOLE = MAPS.replace("third = Add (inner, first)", "third = Softmax <axis = 1> (inner)")
MAPS_GIVEN = MAPS.replace("(float[N, 2, 3, 3] y)", "(float[N, 2, 3, 3] y, float[N, 3, 3, 3] third)")
MAPS_WHOLE_BLOCKS = """g (float[N, 2, 3, 3] x) => (float[N, 2, 3, 3] y)
  <float[8, 2, 1, 1] a = {0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 0.0, 1.0, 2.0, 3.0, 4.0, 5.0},
   float[2, 8, 1, 1] d = {0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 0.0, 1.0, 2.0, 3.0, 4.0, 5.0}>
  { first = Conv (x, a)
    y = Conv (first, d) }"""
MAPS_GROUPED = """g (float[N, 2, 3, 3] x) => (float[N, 2, 3, 3] y)
  <float[4, 1, 1, 1] a = {1.0, 2.0, 3.0, 4.0}, float[2, 4, 1, 1] d = {0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0}>
  { first = Conv <group = 2> (x, a)
    y = Conv (first, d) }"""

# Powers of two: scaled before or after, the same bits.
SCALED = """g (float[N, 2, 3, 3] x) => (float[N, 2, 3, 3] y)
  <float[2, 1, 1, 3] a = {1.0, 2.0, -3.0, 4.0, 5.0, -6.0},
   float[2] b = {1.0, -2.0}, float[2, 1, 1] s = {0.5, 4.0}>
  { maps = Conv <group = 2, pads = [0, 1, 0, 1]> (x, a, b)
    scaled = Mul (s, maps)
    y = Max (scaled, x) }"""
SCALED_IN_PLACE = SCALED.replace("[2, 1, 1] s = {0.5, 4.0}", "[1, 1, 3] s = {0.5, 4.0, 2.0}")
SCALED_READ_TWICE = SCALED.replace("Max (scaled, x)", "Max (scaled, maps)")


def _answer(model: onnx.ModelProto, feeds: Mapping[str, Any]) -> Any:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, dict(feeds))[0]


@pytest.mark.parametrize(
    ("rewrite", "text", "changes"),
    [
        (drop_unused_pad_rows, PAD_UNUSED, 1),
        (drop_unused_pad_rows, PAD_USED, 0),
        (drop_unused_pad_rows, PAD_NEGATIVE, 0),
        (drop_unused_pad_rows, PAD_OTHER_AXIS, 0),
        (fold_channel_scales, SCALED, 1),
        (fold_channel_scales, SCALED_IN_PLACE, 0),
        (fold_channel_scales, SCALED_READ_TWICE, 0),
        (pad_channels, MAPS, 1),
        (pad_channels, MAPS_READ_WHOLE, 1),  # the maps before the inner convolution
        (pad_channels, MAPS_GIVEN, 0),
        (pad_channels, MAPS_WHOLE_BLOCKS, 0),
        (pad_channels, MAPS_GROUPED, 0),
        (split_qkv, QKV, 1),
        (split_qkv, QKV_OTHER_ORDER, 0),
        (split_qkv, QKV_TWO_TOGETHER, 0),
        (join_key_transposes, KEYS, 1),
        (join_key_transposes, KEYS_NOT_SWAPPED, 0),
        (join_key_transposes, KEYS_OTHER_ROWS, 0),
        (scale_one_factor, SCALES, 1),
        (scale_one_factor, SCALE_PER_COLUMN, 0),
        (share_window_bias, BIAS_EQUAL, 1),
        (share_window_bias, BIAS_ZERO, 1),
        (share_window_bias, BIAS_VARIED, 0),
        (share_window_bias, BIAS_WIDENS, 0),
        (share_window_bias, BIAS_EQUAL_WIDENS, 0),
        (share_window_bias, BIAS_LAST, 0),
    ],
)
def test_rewrite(rewrite: Callable[[ir.Model], int], text: str, changes: int) -> None:
    model = onnx.shape_inference.infer_shapes(parser.parse_model(HEADER + text))
    rng = np.random.default_rng(0)
    feeds = {
        value.name: rng.standard_normal(
            [d.dim_value or 3 for d in value.type.tensor_type.shape.dim], dtype=np.float32
        )
        for value in model.graph.input
    }
    rewritten = ir.from_proto(model)
    assert rewrite(rewritten) == changes
    after = ir.to_proto(rewritten)
    onnx.checker.check_model(after, full_check=True)
    np.testing.assert_array_equal(_answer(after, feeds), _answer(model, feeds))


def test_padded_weights_come_in_the_order_of_the_search() -> None:
    """So that another export of the same model has the same bytes."""
    model = ir.from_proto(onnx.shape_inference.infer_shapes(parser.parse_model(HEADER + MAPS)))
    pad_channels(model)
    padded = [name for name in model.graph.initializers if "padded" in name]
    assert padded == ["a_out_padded", "b_out_padded", "c_out_padded", "d_in_padded", "c_out_padded_in_padded"]


def test_whole_windows_leave_four_gathers() -> None:
    """Inlined for whole windows: one gather for each of q, k, v and the result, nothing computed."""
    name, shapes = "ShiftedWindowAttention", [(2, 7, 7, 48), (48,), (1, 49, 49)]
    attributes = {"heads": 1, "window": 7, "shift": 0, **PLUGIN_ATTRIBUTES}
    node = helper.make_node(name, OPERATORS[name].inputs, ["y"], domain=DOMAIN, **attributes)
    rng = np.random.default_rng(0)
    values = [rng.standard_normal(shape, dtype=np.float32) for shape in shapes]
    free = helper.make_tensor_value_info("qkv", onnx.TensorProto.FLOAT, ["N", 7, 7, 48])
    constants = [
        onnx.numpy_helper.from_array(value, label)
        for value, label in zip(values[1:], OPERATORS[name].inputs[1:], strict=True)
    ]
    result = helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["N", 7, 7, 16])
    model = helper.make_model(
        helper.make_graph([node], "one", [free], [result], constants),
        opset_imports=[helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, VERSION)],
        functions=[parser.parse_function(OPERATORS[name].body)],
        ir_version=9,
    )
    inlined = inline(model)
    assert not inlined.functions
    kinds = Counter(n.op_type for n in inlined.graph.node)
    assert kinds["Gather"] == 4
    assert kinds.keys().isdisjoint({"Range", "Where", "Mod", "Concat", "Expand", "Split"})
    np.testing.assert_allclose(
        _answer(inlined, {"qkv": values[0]}), _answer(model, {"qkv": values[0]}), rtol=1e-5, atol=1e-6
    )
