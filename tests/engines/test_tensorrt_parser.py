"""NVIDIA's parser and builder as a judge, and the readiness report held to them."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from saccade.engines import readiness
from saccade.engines.tensorrt.binding import Creator, Parser, bind
from saccade.engines.tensorrt.parser import BatchRange, ShapeRange, judge
from saccade.errors import EngineError, MissingDependency, UsageError
from saccade.models.operators import DOMAIN, OPERATORS, OPSET, PLUGIN_ATTRIBUTES

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx_bindings") is None,
    reason="NVIDIA's parser is not installed: pip install 'saccade[tensorrt-rtx]'",
)
HEAD = '<ir_version: 9, opset_import: ["" : 20, "a" : 1, "b" : 1]>\n'
CONV = """g (float[batch,3,8,8] x) => (float[batch,4,8,8] y) <float[4,3,1,1] w = {1,2,3,4,5,6,7,8,9,10,11,12}>
    { c = Conv(x, w) y = Relu(c) }"""


def write(folder: Path, text: str) -> Path:
    path = folder / "model.onnx"
    onnx.save(onnx.parser.parse_model(HEAD + text), path)
    return path


def test_a_plain_net_parses_and_builds(tmp_path: Path) -> None:
    verdict = judge(write(tmp_path, CONV), profile=BatchRange(1, 2, 4), compute_capabilities=("80", "120"))
    assert verdict.ok
    assert verdict.errors == ()
    assert verdict.layers == 2
    assert verdict.plan_bytes is not None
    assert verdict.plan_bytes > 1000
    assert verdict.compute_capabilities == ("80", "120")
    assert json.loads(json.dumps(verdict.to_json()))["built"] is True


def test_parsing_alone_builds_nothing(tmp_path: Path) -> None:
    verdict = judge(write(tmp_path, CONV), build=False)
    assert verdict.ok
    assert (verdict.parsed, verdict.built, verdict.plan_bytes) == (True, None, None)


def test_weights_beside_the_file_are_read(tmp_path: Path) -> None:
    weight = numpy_helper.from_array(np.ones((64, 64), np.float32), "w")
    node = helper.make_node("MatMul", ["x", "w"], ["y"], name="product")
    x, y = (helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, ["batch", 64]) for n in "xy")
    graph = helper.make_graph([node], "g", [x], [y], [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=9)
    path = tmp_path / "model.onnx"
    onnx.save(model, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    assert judge(path).built
    (tmp_path / "weights.bin").unlink()
    refused = judge(path)
    assert not refused.parsed
    assert "Failed to import initializer: w" in refused.errors[0].message


def operator_model(name: str) -> onnx.ModelProto:
    """One `saccade` node and its body, for an 8x8 grid of 16 channels, dynamic batch."""
    operator = OPERATORS[name]
    attributes = {"heads": 2, "window": 4, "shift": 2}
    sizes: dict[str, list[int | str]] = {
        "q": ["batch", 8, 8, 16],
        "kv": ["batch", 8, 8, 32],
        "qkv": ["batch", 8, 8, 48],
        "qkv_pad": [48],
        "kv_pad": [32],
        "position_bias": [2, 16, 16],
    }
    inputs = [helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, sizes[n]) for n in operator.inputs]
    chosen = {n: attributes[n] for n in operator.attributes}
    node = helper.make_node(
        name, operator.inputs, ["y"], name="attend", domain=DOMAIN, **chosen, **PLUGIN_ATTRIBUTES
    )
    output = helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["batch", 8, 8, 16])
    imports = [helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, 1)]
    body = onnx.parser.parse_function(operator.body)
    graph = helper.make_graph([node], "g", inputs, [output])
    return helper.make_model(graph, functions=[body], opset_imports=imports, ir_version=9)


@pytest.mark.parametrize("name", ["TokenAttention", "ShiftedWindowAttention"])
def test_the_body_of_a_saccade_node_is_inlined_and_builds_for_any_batch(tmp_path: Path, name: str) -> None:
    model = operator_model(name)
    path = tmp_path / "model.onnx"
    onnx.save(model, path)
    verdict = judge(path, profile=BatchRange(1, 4, 64))
    assert verdict.ok, verdict.errors
    assert verdict.layers > len(model.graph.node)
    assert readiness.check(model).ok


ANTIALIAS = """g (float[1,3,8,8] x) => (float[1,3,4,4] y) <float[4] s = {1,1,0.5,0.5}>
    { [shrink] y = Resize<mode="linear", antialias=1>(x,,s) }"""


def test_a_refused_node_is_named_in_nvidias_words(tmp_path: Path) -> None:
    verdict = judge(write(tmp_path, ANTIALIAS))
    assert (verdict.parsed, verdict.built, verdict.ok) == (False, None, False)
    (refusal,) = verdict.errors
    assert refusal.node == "shrink"
    assert "Antialiasing is not supported" in refusal.message


def test_a_file_that_is_no_graph_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"not a graph")
    verdict = judge(path)
    assert not verdict.parsed
    assert "Failed to parse the ONNX model" in verdict.errors[0].message


def test_a_build_that_needs_more_than_the_target_has_is_refused(tmp_path: Path) -> None:
    text = "g (float[batch,4] x, float[4,4] w) => (float[batch,4] y) { y = MatMul(x, w) }"
    verdict = judge(write(tmp_path, text), compute_capabilities=("75",))
    assert (verdict.parsed, verdict.built) == (True, False)
    assert verdict.errors


def test_free_picture_sizes_take_a_profile(tmp_path: Path) -> None:
    path = write(tmp_path, "g (float[batch,3,h,w] x) => (float[batch,3,h,w] y) { y = Relu(x) }")
    with pytest.raises(UsageError, match=r"input 'x' \(batch, 3, h, w\) has dynamic dimensions"):
        judge(path)
    shapes = ShapeRange((1, 3, 8, 8), (1, 3, 16, 16), (2, 3, 32, 32))
    assert judge(path, profile={"x": shapes}).built


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"compute_capabilities": ("90",)}, "builds for sm75, sm80, sm86"),
        ({"profile": BatchRange(8, 4, 2)}, "batch 8,4,2: write least"),
    ],
)
def test_a_request_that_does_not_fit_says_so(
    tmp_path: Path, request_: dict[str, object], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        judge(write(tmp_path, CONV), **request_)  # type: ignore[arg-type]


def test_a_missing_file_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is no file"):
        judge(tmp_path / "model.onnx")


def test_without_tensorrt_the_error_has_the_install_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingDependency, match=r"pip install 'saccade\[tensorrt-rtx\]'"):
        judge(write(tmp_path, CONV))


def test_a_child_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"not done within 0\.01 s"):
        judge(write(tmp_path, CONV), timeout_s=0.01)


def test_a_child_that_holds_too_much_memory_is_ended(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="over the limit of 4"):
        judge(write(tmp_path, CONV), memory_limit_mib=4)


def test_a_library_that_aborts_leaves_us_running_with_its_last_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The child finds a library that dies as NVIDIA's can; ours, which looks only for the name, does not."""
    (tmp_path / "tensorrt_rtx_libs.py").write_text(
        "import os, sys\nprint('plugin is null', file=sys.stderr, flush=True)\nos.abort()\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(EngineError, match=r"ended with signal SIGABRT(.|\n)*plugin is null"):
        judge(write(tmp_path, CONV))


# --- the readiness report against the parser ------------------------------------------------------------

# Graphs as in test_readiness.py, and what the real parser says of them.
AGREED = {
    "conv": (CONV, True),
    "antialias": (ANTIALIAS, False),
    "unsupported": ("g (int32[4] x) => (int32[4] y) { y = BitwiseNot(x) }", False),
    "type": ("g (int32[4] x) => (int32[4] y) { y = Relu(x) }", False),
    "uint8": ("g (uint8[4] x) => (uint8[4] y) { y = Add(x, x) }", False),
    "uint8 cast": ("g (uint8[4] x) => (float[4] y) { y = Cast<to=1>(x) }", True),
    "bfloat16 HardSwish": ("g (bfloat16[4] x) => (bfloat16[4] y) { y = HardSwish(x) }", False),
    "indices": (
        "g (float[1,3,8,8] x) => (float[1,3,4,4] y, int64[1,3,4,4] i) "
        "{ y, i = MaxPool<kernel_shape=[2,2], strides=[2,2]>(x) }",
        False,
    ),
    "axes computed": (
        "g (float[2,5] x) => (float[2,1] y) <int64[1] one = {1}, int64[1] zero = {0}> "
        "{ a = Add(one, zero) y = ReduceSum(x, a) }",
        False,
    ),
    "axes through Identity": (
        "g (float[2,5] x) => (float[2,1] y) <int64[1] one = {1}> { a = Identity(one) y = ReduceSum(x, a) }",
        True,
    ),
    "axes fed to Squeeze": (
        "g (float[2,1] x, int64[1] a) => (float[2] y) { y = Squeeze(x, a) }",
        False,
    ),
    "ScatterND with a reduction": (
        "g (float[4] x, float[2] u) => (float[4] y) <int64[2,1] i = {0,1}> "
        '{ y = ScatterND<reduction="add">(x, i, u) }',
        False,
    ),
    "branch": (
        "g (int32[4] x, bool c) => (int32[4] y) { y = If(c)<then_branch = t () => (int32[4] p) "
        "{ p = BitwiseNot(x) }, else_branch = e () => (int32[4] q) { q = Abs(x) }> }",
        False,
    ),
    "function": (
        "g (float[4] x) => (float[4] y) { y = a.F(x) } "
        '<domain: "a", opset_import: ["" : 20]> F (x) => (y) { y = Relu(x) }',
        True,
    ),
    "function with a refused body": (
        "g (int32[4] x) => (int32[4] y) { y = a.F(x) } "
        '<domain: "a", opset_import: ["" : 20]> F (x) => (y) { y = BitwiseNot(x) }',
        False,
    ),
    "neither function nor plugin": ("g (float[4] x) => (float[4] y) { y = a.Nothing(x) }", False),
}


@pytest.mark.parametrize(("text", "parses"), AGREED.values(), ids=AGREED.keys())
def test_the_report_agrees_with_the_parser(tmp_path: Path, text: str, parses: bool) -> None:
    path = write(tmp_path, text)
    assert judge(path, build=False).parsed is parses
    assert readiness.check(path).ok is parses


def test_the_parser_runs_the_operator_whose_name_a_function_takes(tmp_path: Path) -> None:
    """Why a shared name is a problem: the body has two layers more than the operator."""
    shadowed = """g (float[4] x) => (float[4] y) { y = a.Relu(x) }
        <domain: "a", opset_import: ["" : 20]> Relu (x) => (y) { s = Sin(x) c = Cos(s) y = Add(c, c) }"""
    path = write(tmp_path, shadowed)
    assert judge(path, build=False).layers == 1
    assert not readiness.check(path).ok


BINDING_PROBE = """
import json, sys
import tensorrt_rtx_libs
import tensorrt_rtx_bindings as trt


class Creator(trt.IPluginCreatorV3One):
    def __init__(self, name, version, namespace, calls):
        trt.IPluginCreatorV3One.__init__(self)
        self.name, self.plugin_version, self.plugin_namespace = name, version, namespace
        self.field_names = trt.PluginFieldCollection([])
        self.calls = calls

    def create_plugin(self, name, fields, phase):
        self.calls.append(name)
        return None  # asked is enough: with a real one the process can abort


def binding(path, creators, override):
    logger = trt.Logger(trt.Logger.INTERNAL_ERROR)
    registry, calls = trt.get_plugin_registry(), []
    registered = [Creator(*creator, calls) for creator in creators]
    for creator in registered:
        assert registry.register_creator(creator, creator.plugin_namespace)
    builder = trt.Builder(logger)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, logger)
    if override:
        parser.set_flag(trt.OnnxParserFlag.ENABLE_PLUGIN_OVERRIDE)
    parsed = parser.parse_from_file(path)
    layer = network.get_layer(0).type if network.num_layers else None
    for creator in registered:
        registry.deregister_creator(creator)
    if not parsed and not calls:
        return "error"
    kinds = {trt.LayerType.ACTIVATION: "builtin", trt.LayerType.UNARY: "function"}
    return "plugin" if calls else kinds[layer]


cases = json.load(sys.stdin)
print(json.dumps([binding(*case) for case in cases]))
sys.stdout.flush()
import os
os._exit(0)
"""

# Every combination of: namespace asked for, body present, creator registered, flag.
BINDINGS = [
    ("Op", attributes, body, creators, override)
    for attributes in ({}, {"plugin_namespace": "ns"}, {"plugin_namespace": "other"}, {"plugin_version": "2"})
    for body in (True, False)
    for creators in ([], [Creator("Op")], [Creator("Op", "1", "ns")], [Creator("Op", "2", "ns")])
    for override in (False, True)
] + [
    ("Relu", {}, False, [Creator("Relu")], False),
    ("Relu", {}, False, [Creator("Relu")], True),
    ("Relu", {"plugin_namespace": "ns"}, False, [Creator("Relu", "1", "ns")], False),
    ("Relu", {}, True, [], False),
]


def binding_model(op_type: str, attributes: dict[str, str], body: bool) -> onnx.ModelProto:
    """One node of domain `ns`; the body, where there is one, is a single Sin."""
    node = helper.make_node(op_type, ["x"], ["y"], domain="ns", **attributes)
    x, y = (helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, [4]) for n in "xy")
    standard = helper.make_opsetid("", OPSET)
    sine = helper.make_node("Sin", ["x"], ["y"])
    function = helper.make_function("ns", op_type, ["x"], ["y"], [sine], [standard], list(attributes))
    return helper.make_model(
        helper.make_graph([node], "g", [x], [y]),
        functions=[function] if body else [],
        opset_imports=[standard, helper.make_opsetid("ns", 1)],
        ir_version=9,
    )


def test_the_binding_order_is_the_parsers(tmp_path: Path) -> None:
    """In a child: creators are registered in the process, and plugins may abort it."""
    requests, predicted = [], []
    for index, (op_type, attributes, body, creators, override) in enumerate(BINDINGS):
        model = binding_model(op_type, attributes, body)
        path = tmp_path / f"{index}.onnx"
        onnx.save(model, path)
        requests.append([str(path), [[c.name, c.version, c.namespace] for c in creators], override])
        functions = {function.name for function in model.functions}
        parser = Parser(frozenset({"Relu"}), functions, frozenset(creators), override)
        predicted.append(bind(model.graph.node[0], parser).kind)
    child = subprocess.run(
        [sys.executable, "-c", BINDING_PROBE], input=json.dumps(requests), capture_output=True, text=True
    )
    assert child.returncode == 0, child.stderr
    bound = json.loads(child.stdout.splitlines()[-1])
    assert list(zip(BINDINGS, bound, strict=True)) == list(zip(BINDINGS, predicted, strict=True))
    assert set(predicted) == {"plugin", "builtin", "function", "error"}
