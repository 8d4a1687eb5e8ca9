"""The readiness report, from files alone. `test_tensorrt_parser.py` holds it to NVIDIA's parser."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from saccade.engines.readiness import check
from saccade.engines.tensorrt.binding import Creator, Parser, bind
from saccade.engines.tensorrt.checks import CHECKS, REMARKS_ONLY
from saccade.engines.tensorrt.operators import operator_table
from saccade.errors import EngineError
from saccade.models.operators import DOMAIN, OPERATORS, OPSET

HEAD = '<ir_version: 9, opset_import: ["" : 20, "a" : 1, "b" : 1]>\n'


def model(text: str) -> onnx.ModelProto:
    return onnx.parser.parse_model(HEAD + text)


def test_the_table_is_whole() -> None:
    table = operator_table()
    assert len(table.types) == 159
    assert len(table.unsupported) == 42
    assert not table.unsupported & table.types.keys()


def test_every_restriction_of_a_supported_operator_is_checked() -> None:
    table = operator_table()
    written = {name for name in table.restrictions if name in table.types}
    assert written == CHECKS.keys() | REMARKS_ONLY


def test_a_supported_graph_is_ok() -> None:
    report = check(
        model(
            """g (float[B,3,8,8] x) => (float[B,4] y) <float[4,3,1,1] w = {1,2,3,4,5,6,7,8,9,10,11,12},
            int64[2] axes = {2,3}> { c = Conv(x, w) r = Relu(c) y = ReduceMean<keepdims=0>(r, axes) }"""
        )
    )
    assert report.ok
    assert [row.op_type for row in report.rows] == ["Conv", "Relu", "ReduceMean"]


REFUSED = {
    "unsupported operator": (
        "g (int32[4] x) => (int32[4] y) { y = BitwiseNot(x) }",
        "unsupported",
        "does not support",
    ),
    "operator newer than the table": (
        "g (float[4] x) => (float[4] y) { y = SwiGLU(x, x) }",
        "unknown",
        "not in the operator table",
    ),
    "type": ("g (int32[4] x) => (int32[4] y) { y = Relu(x) }", "restricted", "type INT32"),
    "type of an input other than the first": (
        "g (bool[4] c, uint8[4] x) => (uint8[4] y) { y = Where(c, x, x) }",
        "restricted",
        "type UINT8",
    ),
    "cubic resize": (
        "g (float[1,3,8,8] x) => (float[1,3,16,16] y) <float[4] s = {1,1,2,2}> "
        '{ y = Resize<mode="cubic">(x,,s) }',
        "restricted",
        "mode is 'cubic'",
    ),
    "antialiased resize": (
        "g (float[1,3,8,8] x) => (float[1,3,4,4] y) <float[4] s = {1,1,0.5,0.5}> "
        '{ y = Resize<mode="linear", antialias=1>(x,,s) }',
        "restricted",
        "antialias is 1",
    ),
    "coordinate mode": (
        "g (float[1,3,8,8] x) => (float[1,3,16,16] y) "
        "<float[4] s = {1,1,2,2}, float[8] r = {0,0,0,0,1,1,1,1}> "
        '{ y = Resize<coordinate_transformation_mode="tf_crop_and_resize">(x,r,s) }',
        "restricted",
        "tf_crop_and_resize",
    ),
    "K too large": (
        "g (float[B,5000] x) => (float[B,k] y, int64[B,k] i) <int64[1] k = {3840}> { y, i = TopK(x, k) }",
        "restricted",
        "K is 3840",
    ),
    "K at run time": (
        "g (float[B,5000] x, int64[1] k) => (float[B,n] y, int64[B,n] i) { y, i = TopK(x, k) }",
        "unknown",
        "not known here",
    ),
    "unsorted TopK": (
        "g (float[B,50] x) => (float[B,k] y, int64[B,k] i) <int64[1] k = {5}> "
        "{ y, i = TopK<sorted=0>(x, k) }",
        "restricted",
        "sorted is 0",
    ),
    "MaxPool indices": (
        "g (float[1,3,8,8] x) => (float[1,3,4,4] y, int64[1,3,4,4] i) "
        "{ y, i = MaxPool<kernel_shape=[2,2], strides=[2,2]>(x) }",
        "restricted",
        "only the first output",
    ),
    "dilated MaxPool": (
        "g (float[1,3,8,8] x) => (float[1,3,6,6] y) { y = MaxPool<kernel_shape=[2,2], dilations=[2,2]>(x) }",
        "restricted",
        "dilations [2, 2]",
    ),
    "LayerNormalization's mean": (
        "g (float[2,2] x) => (float[2,2] y, float[2,1] m) <float[2] s = {1,1}> "
        "{ y, m = LayerNormalization(x, s) }",
        "restricted",
        "only the first output",
    ),
    "axes fed at run time": (
        "g (float[2,5] x, int64[1] a) => (float[2,1] y) { y = ReduceSum(x, a) }",
        "restricted",
        "axes must be an initializer",
    ),
    "axes computed": (
        "g (float[2,5] x) => (float[2,1] y) <int64[1] one = {1}, int64[1] zero = {0}> "
        "{ a = Add(one, zero) y = ReduceSum(x, a) }",
        "restricted",
        "axes must be an initializer",
    ),
    "squeezed axes fed": (
        "g (float[2,1] x, int64[1] a) => (float[2] y) { y = Squeeze(x, a) }",
        "restricted",
        "is a graph input",
    ),
    "ScatterND with a reduction": (
        "g (float[4] x, float[2] u) => (float[4] y) <int64[2,1] i = {0,1}> "
        '{ y = ScatterND<reduction="add">(x, i, u) }',
        "restricted",
        "reduction is 'add'",
    ),
    "zero point": (
        "g (float[4] x) => (int8[4] y) <float s = {0.1}, int8 z = {3}> { y = QuantizeLinear(x, s, z) }",
        "restricted",
        "zero point must be 0",
    ),
    "operator of another domain with ONNX's name": (
        "g (float[4] x) => (float[4] y) { y = b.Relu(x) }",
        "restricted",
        "ignores the domain",
    ),
    "neither function nor plugin": (
        "g (float[4] x) => (float[4] y) { y = a.Nothing(x) }",
        "unsupported",
        "no built-in operator, local function or registered plugin",
    ),
}


@pytest.mark.parametrize(("text", "verdict", "reason"), REFUSED.values(), ids=REFUSED.keys())
def test_a_refused_node_is_named_with_its_reason(text: str, verdict: str, reason: str) -> None:
    report = check(model(text))
    assert not report.ok
    row = report.refused[-1]
    assert row.verdict == verdict
    assert reason in row.reason
    assert row.node in "\n".join(report.text())


ACCEPTED = {
    "axes through Identity": (
        "g (float[2,5] x) => (float[2,1] y) <int64[1] one = {1}> { a = Identity(one) y = ReduceSum(x, a) }"
    ),
    "axes from a Constant": (
        "g (float[2,5] x) => (float[2,1] y) { a = Constant<value_ints=[1]>() y = ReduceSum(x, a) }"
    ),
    "largest K": (
        "g (float[B,5000] x) => (float[B,k] y, int64[B,k] i) <int64[1] k = {3839}> { y, i = TopK(x, k) }"
    ),
    "float64 runs as float32": "g (double[4] x) => (double[4] y) { y = Relu(x) }",
    "UINT8 into Cast": "g (uint8[4] x) => (float[4] y) { y = Cast<to=1>(x) }",
    "zero point 0": (
        "g (float[4] x) => (int8[4] y) <float s = {0.1}, int8 z = {0}> { y = QuantizeLinear(x, s, z) }"
    ),
}


@pytest.mark.parametrize("text", ACCEPTED.values(), ids=ACCEPTED.keys())
def test_a_restriction_that_holds_refuses_nothing(text: str) -> None:
    report = check(model(text))
    assert report.ok, list(report.text())


def test_nodes_inside_branches_are_checked() -> None:
    report = check(
        model(
            """g (int32[4] x, bool c) => (int32[4] y) { y = If(c)
            <then_branch = t () => (int32[4] p) { p = BitwiseNot(x) },
             else_branch = e () => (int32[4] q) { q = Abs(x) }> }"""
        )
    )
    (row,) = report.refused
    assert (row.op_type, row.where) == ("BitwiseNot", "If #0.then_branch")


def test_nodes_inside_functions_are_checked_with_the_types_of_the_call() -> None:
    text = """g (float[4] f, int32[4] i) => (float[4] y, int32[4] z) {{ y = a.F({first}) z = a.F({second}) }}
        <domain: "a", opset_import: ["" : 20]> F (x) => (r) {{ r = Relu(x) }}"""
    assert check(model(text.format(first="f", second="f"))).ok
    (row,) = check(model(text.format(first="f", second="i"))).refused
    assert (row.op_type, row.where, row.reason[:10]) == ("Relu", "a::F", "type INT32")


def test_a_functions_attributes_and_constants_reach_its_body() -> None:
    body = """<domain: "a", opset_import: ["" : 20]>
        F <keep> (x, axes) => (y) { y = ReduceSum<keepdims: int = @keep>(x, axes) }"""
    given = "g (float[2,5] x) => (float[2,1] y) <int64[1] one = {1}> { y = a.F<keep=1>(x, one) }" + body
    fed = "g (float[2,5] x, int64[1] one) => (float[2,1] y) { y = a.F<keep=1>(x, one) }" + body
    assert check(model(given)).ok
    assert check(model(fed)).refused[0].where == "a::F"


def test_every_saccade_operator_is_inside_the_table() -> None:
    """The bodies alone, with inputs of free size: whatever a model feeds them."""
    for operator in OPERATORS.values():
        function = onnx.parser.parse_function(operator.body)
        types = {"qkv_pad": 1, "kv_pad": 1, "position_bias": 3, "scores": 3}
        inputs = [
            helper.make_tensor_value_info(
                name, onnx.TensorProto.FLOAT, [f"{name}{i}" for i in range(types.get(name, 4))]
            )
            for name in operator.inputs
        ]
        attributes = {name: 0.5 if "threshold" in name else 1 for name in operator.attributes}
        node = helper.make_node(operator.name, operator.inputs, ["y"], domain=DOMAIN, **attributes)
        graph = helper.make_graph([node], "g", inputs, [helper.make_empty_tensor_value_info("y")])
        imports = [helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, 1)]
        report = check(helper.make_model(graph, functions=[function], opset_imports=imports))
        # The K of its TopK is an attribute made a list: known only once the body is folded.
        undecided = ["TopK"] if operator.name == "BatchedNMS" else []
        assert [row.op_type for row in report.refused] == undecided, list(report.text())


@pytest.mark.parametrize(("opset", "ok"), [(8, False), (9, True), (24, True), (25, False)])
def test_opsets_outside_the_documented_range_are_a_problem(opset: int, ok: bool) -> None:
    relu = onnx.parser.parse_model(
        f'<ir_version: 10, opset_import: ["" : {opset}]> g (float[4] x) => (float[4] y) {{ y = Relu(x) }}'
    )
    report = check(relu)
    assert report.ok is ok
    assert bool(report.problems) is not ok


def test_names_that_tensorrt_confuses_are_a_problem() -> None:
    report = check(
        model(
            """g (float[4] x) => (float[4] y) { y = b.F(x) }
            <domain: "a", opset_import: ["" : 20]> F (x) => (y) { y = Relu(x) }
            <domain: "b", opset_import: ["" : 20]> F (x) => (y) { y = Sin(x) }
            <domain: "b", opset_import: ["" : 20]> Gelu (x) => (y) { y = Sin(x) }"""
        )
    )
    twice, shadowed = report.problems
    assert "'F' is defined 2 times (domains a, b)" in twice
    assert "b::Gelu has the name of an ONNX operator" in shadowed


def test_a_function_that_calls_itself_ends() -> None:
    recursive = model(
        """g (float[4] x) => (float[4] y) { y = a.F(x) }
        <domain: "a", opset_import: ["" : 20, "a" : 1]> F (x) => (y) { y = a.F(x) }"""
    )
    assert check(recursive).refused[0].reason == "a local function that calls itself cannot be inlined"


IMPORTERS, FUNCTION = frozenset({"Relu"}), frozenset({"Op"})
OP, NAMED = Creator("Op"), Creator("Op", "1", "ns")

BINDINGS = [
    # op_type, node attributes, functions, creators, override flag -> kind
    ("Op", {}, FUNCTION, {NAMED}, False, "function"),
    ("Op", {}, FUNCTION, {OP}, False, "function"),
    ("Op", {}, FUNCTION, {OP}, True, "plugin"),
    ("Op", {}, FUNCTION, {NAMED}, True, "function"),
    ("Op", {"plugin_namespace": "ns"}, FUNCTION, {NAMED}, False, "plugin"),
    ("Op", {"plugin_namespace": "ns"}, FUNCTION, {OP}, False, "function"),
    ("Op", {"plugin_namespace": "ns"}, FUNCTION, set(), False, "function"),
    ("Op", {"plugin_namespace": "ns", "plugin_version": "2"}, FUNCTION, {NAMED}, False, "function"),
    ("Op", {}, set(), {OP}, False, "plugin"),
    ("Op", {}, set(), {NAMED}, False, "plugin"),
    ("Op", {}, set(), {NAMED}, True, "plugin"),
    ("Op", {"plugin_namespace": "other"}, set(), {NAMED}, False, "plugin"),
    ("Op", {"plugin_namespace": "ns"}, set(), {OP}, False, "error"),
    ("Op", {}, set(), {Creator("Op", "2", "ns")}, False, "error"),
    ("Op", {}, set(), set(), False, "error"),
    ("Relu", {}, frozenset({"Relu"}), {Creator("Relu")}, False, "builtin"),
    ("Relu", {}, frozenset(), {Creator("Relu")}, True, "plugin"),
    ("Relu", {"plugin_namespace": "ns"}, frozenset(), {Creator("Relu", "1", "ns")}, False, "plugin"),
]


@pytest.mark.parametrize(("op_type", "attributes", "functions", "creators", "override", "kind"), BINDINGS)
def test_binding_order(
    op_type: str,
    attributes: dict[str, str],
    functions: frozenset[str],
    creators: set[Creator],
    override: bool,
    kind: str,
) -> None:
    node = helper.make_node(op_type, ["x"], ["y"], domain="ns", **attributes)
    assert bind(node, Parser(IMPORTERS, functions, creators, override)).kind == kind


def test_a_registered_plugin_takes_the_node() -> None:
    text = """g (float[4] x) => (float[4] y) { y = a.F<plugin_namespace = "a">(x) }
        <domain: "a", opset_import: ["" : 20]> F <plugin_namespace> (x) => (y) { y = BitwiseNot(x) }"""
    assert not check(model(text)).ok
    report = check(model(text), creators={Creator("F", "1", "a")})
    assert [(row.verdict, row.reason) for row in report.rows] == [
        ("plugin or function", "plugin a::F version 1 is registered")
    ]


def test_json_holds_every_row() -> None:
    report = check(model("g (float[4] x) => (float[4] y) { y = Relu(x) }"))
    data = json.loads(json.dumps(report.to_json()))
    assert data["ok"] is True
    assert data["counts"] == {"supported": 1}
    assert data["rows"][0]["op_type"] == "Relu"


def test_a_file_is_read_without_its_weights(tmp_path: Path) -> None:
    weight = numpy_helper.from_array(np.ones((64, 64), np.float32), "w")
    axes = numpy_helper.from_array(np.array([1]), "axes")
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["m"]),
        helper.make_node("ReduceSum", ["m", "axes"], ["y"]),
    ]
    values = [
        helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, s)
        for n, s in (("x", ["b", 64]), ("y", ["b", 1]))
    ]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], [weight, axes])
    path = tmp_path / "model.onnx"
    source = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)])
    onnx.save(source, path, save_as_external_data=True, location="w.bin", size_threshold=1024)
    (tmp_path / "w.bin").unlink()
    assert check(path).ok


def test_a_file_that_is_no_graph_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"\x08junk")
    with pytest.raises(EngineError, match="cannot be read as an ONNX file"):
        check(path)
