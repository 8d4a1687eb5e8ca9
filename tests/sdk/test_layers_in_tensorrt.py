"""`saccade verify --layers` with TensorRT on one side: a stand-in that runs real graphs in its place."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from tests.engines.faults import Faults
from tests.sdk.acceptance.bundles import with_float16, write_two_graphs
from tests.sdk.acceptance.machine import GraphWorld
from typer.testing import CliRunner

from saccade import bundle
from saccade.builds import graph_file
from saccade.cli import app
from saccade.engines import layers
from saccade.engines.layers import in_plans
from saccade.engines.passes.outputs import with_outputs, with_types
from saccade.engines.tensorrt import flavours
from saccade.engines.tensorrt.gpu import find_gpu
from saccade.engines.tensorrt.options import BuildOptions
from saccade.engines.tensorrt.temporary import run_once
from saccade.errors import EngineError, MissingDependency, UsageError
from saccade.verification import verify_layers


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where notes and timings go, and everything temporary."""
    monkeypatch.setenv("SACCADE_CACHE", str(tmp_path / "cache"))
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    return tmp_path


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_two_graphs(tmp_path_factory.mktemp("bundle") / "two").path


@pytest.fixture(scope="module")
def low(two: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return with_float16(two, tmp_path_factory.mktemp("low") / "low")


def left(cache: Path) -> list[Path]:
    """What a run left behind, but for timings."""
    found = [*(cache / "temporary").rglob("*"), *(cache / "cache" / "plans").rglob("*")]
    return [path for path in found if path.is_file()]


def louder(tensor: str) -> Callable[[onnx.ModelProto], onnx.ModelProto]:
    """The builder makes the node that gives `tensor` give 1 % too much, wherever it is read."""

    def miscompile(model: onnx.ModelProto) -> onnx.ModelProto:
        wrong = onnx.ModelProto()
        wrong.CopyFrom(model)
        nodes = list(wrong.graph.node)
        at = next((i for i, node in enumerate(nodes) if tensor in node.output), None)
        if at is None:
            return wrong
        place = list(nodes[at].output).index(tensor)
        nodes[at].output[place] = "right"
        typed = onnx.shape_inference.infer_shapes(model).graph
        kinds = {value.name: value.type.tensor_type.elem_type for value in (*typed.value_info, *typed.output)}
        kind = helper.tensor_dtype_to_np_dtype(kinds[tensor])
        wrong.graph.initializer.append(numpy_helper.from_array(np.array(1.01, kind), "louder"))
        nodes.insert(at + 1, helper.make_node("Mul", ["right", "louder"], [tensor]))
        del wrong.graph.node[:]
        wrong.graph.node.extend(nodes)
        return wrong

    return miscompile


@pytest.mark.parametrize(
    ("precision", "engines", "yardstick"),
    [
        ("fp32", ["tensorrt"], "reference float64"),
        ("fp32", ["onnxruntime", "tensorrt"], "tensorrt fp32"),
        ("tf32", ["tensorrt"], "onnxruntime fp32"),
        ("fp16", ["tensorrt"], "onnxruntime fp32"),
        ("fp16", ["tensorrt", "tensorrt"], "tensorrt fp32"),
    ],
)
def test_what_agrees_is_said_to_agree(
    low: Path,
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    precision: str,
    engines: list[str],
    yardstick: str,
) -> None:
    marked: set[str] = set()
    GraphWorld().enter(monkeypatch).spoil = lambda plan, name, values: (marked.add(name), values)[1]
    said: list[str] = []
    report = verify_layers(low, engines, precision=precision, progress=said.append)
    assert report.agrees, report.starts
    assert (report.tested, report.yardstick) == (f"{engines[0]} {precision}", yardstick)
    assert [row.node for row in report.layers["image"]] == [
        "Concat_0",
        "TokenAttention_1",
        "MatMul_2",
        "ReduceMean_3",
    ]
    own = {row.node: row.own for rows in report.layers.values() for row in rows}
    assert own["TokenAttention_1"] is not None
    assert {"attended@shown", "scores@shown"} <= marked or engines[0] != "tensorrt"
    assert all(name.endswith("@shown") for name in marked), "integers are no outputs"
    assert any(re.match(r"building a plan with \d+ outputs", step) for step in said)
    assert left(cache) == []


def test_the_demo_has_all_its_semantic_token_layers(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    GraphWorld().enter(monkeypatch)
    report = verify_layers("digits-stvit", ["tensorrt", "onnxruntime"])
    assert report.agrees, report.starts
    source = onnx.load(bundle.read(report.path).graphs["model"].files["source"])
    tokens = {node.name for node in source.graph.node if node.domain == "saccade"}
    own = {row.node: row.own for row in report.layers["model"]}
    assert tokens
    assert all(own[name] is not None for name in tokens)


@pytest.mark.parametrize("tensor", ["attended", "mapped"])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_planted_fault_is_named_and_nothing_behind_it(
    low: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, precision: str, tensor: str
) -> None:
    GraphWorld().enter(monkeypatch).miscompile = louder(tensor)
    arguments = ["verify", str(low), "--layers", "--engine", "tensorrt", "--engine", "onnxruntime"]
    said = CliRunner().invoke(app, [*arguments, "--precision", precision, "--json"])
    assert said.exit_code == 7, said.output
    report = json.loads(said.stdout)
    assert report["starts"].keys() == {"image", "choices"}
    for rows in report["layers"].values():
        assert [row["tensor"] for row in rows if not row["agrees"]] == [tensor]
    last = report["layers"]["image"][-1]
    assert last["error"] > last["limit"], "the error goes on, but it starts elsewhere"


def test_groups_give_the_same_answer(low: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where all results do not fit at once there are several plans."""
    GraphWorld().enter(monkeypatch).miscompile = louder("mapped")
    monkeypatch.setattr(layers, "PIECE", 1)
    said: list[str] = []
    report = verify_layers(low, ["tensorrt", "onnxruntime"], progress=said.append)
    assert {start.tensor for start in report.starts.values()} == {"mapped"}
    assert sum(step.startswith("building a plan") for step in said) >= 4
    assert left(cache) == []


@pytest.mark.parametrize("call", ["parse_from_file", "build_serialized_network", "deserialize_cuda_engine"])
def test_a_plan_that_is_refused_leaves_nothing(
    two: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    counting = Faults()
    GraphWorld(counting).enter(monkeypatch)
    verify_layers(two, ["tensorrt", "onnxruntime"])
    at = max(index for index, name in enumerate(counting.calls) if name == call)
    GraphWorld(Faults(at, False)).enter(monkeypatch)
    with pytest.raises(EngineError, match=f"injected into {call}"):
        verify_layers(two, ["tensorrt", "onnxruntime"])
    assert left(cache) == []


def test_a_machine_without_a_gpu_says_what_to_do(two: Path) -> None:
    if find_gpu() is not None:
        pytest.skip("there is a GPU here")
    for engines in (["tensorrt"], ["onnxruntime", "tensorrt_rtx"]):
        with pytest.raises(EngineError, match=r"no NVIDIA driver .* elsewhere use engine='onnxruntime'"):
            verify_layers(two, engines)


@pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx_bindings") is None,
    reason="NVIDIA's builder is not installed: pip install 'saccade[tensorrt-rtx]'",
)
def test_nvidias_builder_takes_every_result_as_an_output(cache: Path) -> None:
    """The demo's form for TensorRT. Without a GPU the plan is built, and refused when it is to be opened."""
    if find_gpu() is not None:
        pytest.skip("there is a GPU here")
    demo = bundle.read(bundle.resolve("digits-stvit"))
    options = BuildOptions(flavour="tensorrt_rtx", target="sm86")
    model = with_types(onnx.load(graph_file(demo.graphs["model"], options)))
    shown = in_plans(model, options, "the demo's layers").shown()
    assert len(shown) > 400
    phases: list[str] = []
    with pytest.raises(EngineError, match="no NVIDIA driver"):
        run_once(
            with_outputs(model, sorted(shown)),
            bundle.sample_of(demo, "model").inputs,
            options,
            "the demo's layers",
            say=lambda phase, fraction: phases.append(phase),
        )
    assert phases, "the builder was at work"
    assert left(cache) == []


def test_a_machine_without_tensorrt_says_what_to_do(two: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    GraphWorld().enter(monkeypatch)
    monkeypatch.setattr(flavours, "is_installed", lambda chosen: False)
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(MissingDependency, match=r"pip install 'saccade\[tensorrt\]'"):
        verify_layers(two, ["tensorrt"])


def test_what_builds_no_plans_cannot_be_asked(two: Path) -> None:
    with pytest.raises(UsageError, match="tensorrt_lean runs plans and builds none"):
        verify_layers(two, ["tensorrt_lean"])
