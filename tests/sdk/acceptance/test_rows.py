"""Rows of acceptance on a machine that runs real graphs: plugins, layers beside torch, a detector's
choices, baselines, every task and every precision.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tests import every_task
from tests.sdk.acceptance.bundles import with_float16, write_bundle
from tests.sdk.acceptance.machine import GraphWorld
from tests.sdk.acceptance.rows import SIZE, request_for, steps

import saccade
from saccade import acceptance, bundle
from saccade.acceptance import records
from saccade.engines.tensorrt.options import BatchRange, BuildOptions, Precision

pytestmark = pytest.mark.usefixtures("quick")


@pytest.mark.parametrize("precision", ["fp32", "tf32", "fp16"])
def test_function_and_plugin_are_compared_layer_by_layer(
    two: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: Precision
) -> None:
    """In tf32 and fp16 the second graph's answers are choices, which must be there and be numbers."""
    GraphWorld().enter(monkeypatch)
    path = shutil.copytree(two, tmp_path / "two")
    if precision == "fp16":
        path = with_float16(path, tmp_path / "low")
    (record,) = acceptance.accept(request_for(path, tmp_path / "records", precision))
    assert record.verdict == "accepted", record.steps
    found = steps(record)
    for binding in ("function", "plugin"):
        for call in ("build", "inspect", "run", "layers", "time"):
            assert found[f"{call} {binding}"].outcome == "passed"
        assert found[f"layers {binding}"].message.startswith("2 layers, at most 0.")
    assert set(record.plan_sha256) == {
        f"{b}/{g}" for b in ("function", "plugin") for g in ("image", "choices")
    }
    assert record.plan_sha256["function/image"] != record.plan_sha256["plugin/image"]
    assert record.plugin_speedup == round(record.latency_ms["function"] / record.latency_ms["plugin"], 4)
    assert found["time torch.compile"].outcome == "skipped"


@pytest.mark.parametrize("task", every_task.TASKS)
def test_every_task_is_accepted(task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two towers and free sizes among them, in another batch than the samples have."""
    GraphWorld().enter(monkeypatch)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    path = every_task.write(task, tmp_path / task).path
    request = request_for(path, tmp_path / "records", "fp32", size=SIZE, batch=BatchRange(4, 4, 4))
    (record,) = acceptance.accept(request)
    assert record.verdict == "accepted", record.steps
    detects = task in ("detection", "instance_segmentation")
    assert record.batch == ((2, 2, 2) if detects else (4, 4, 4))
    free = detects or task in ("semantic_segmentation", "depth")
    assert record.size == (tuple(SIZE) if free else None)
    compiled = steps(record)["time torch.compile"]
    assert compiled.outcome == "skipped"
    if task in ("embedding", "zero_shot"):
        assert "has graphs image, text: only one of one graph is compiled" in compiled.message


def test_auto_takes_plugins_for_the_graphs_that_gained(
    two: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the bundle is called: the demo calls itself as a model of the zoo."""
    GraphWorld().enter(monkeypatch)
    path = Path(shutil.copytree(two, tmp_path / "two"))
    (record,) = acceptance.accept(request_for(path, tmp_path / "records", "fp32"))
    gained = dataclasses.replace(record, plugin_speedup=1.25)
    records.write(gained, records.folders()[1])
    auto = BuildOptions(binding="auto", batch=BatchRange(1, 2, 4))
    assert {each.record.binding for each in saccade.build(path, auto)} == {"plugin"}
    manifest = json.loads((path / bundle.MANIFEST).read_text())
    (path / bundle.MANIFEST).write_text(json.dumps({**manifest, "name": "renamed"}))
    assert {each.record.binding for each in saccade.build(path, auto)} == {"plugin"}
    records.write(dataclasses.replace(gained, plugin_speedup=1.05), records.folders()[1])
    assert {each.record.binding for each in saccade.build(path, auto)} == {"function"}
    records.write(
        dataclasses.replace(gained, graph_sha256={"graphs/image.onnx": "a" * 64}), records.folders()[1]
    )
    assert {each.record.binding for each in saccade.build(path, auto)} == {"function"}


def only(binding: str, name: str) -> Callable[[dict[str, Any], str, NDArray[Any]], NDArray[Any]]:
    """Spoils one output of the plans of one binding a little."""

    def spoil(plan: dict[str, Any], output: str, values: NDArray[Any]) -> NDArray[Any]:
        return (
            values * np.float32(1.01)
            if output == name and bool(plan["plugins"]) == (binding == "plugin")
            else values
        )

    return spoil


@pytest.mark.parametrize("binding", ["function", "plugin"])
@pytest.mark.parametrize(
    ("output", "call", "words"),
    [
        ("vector", "run", "image: output 'vector' differs from torch by"),
        ("attended@shown", "layers", r"image: TokenAttention_1 (TokenAttention) differs from torch by 0.01"),
    ],
)
def test_a_wrong_plan_is_found_and_named(
    two: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    binding: str,
    output: str,
    call: str,
    words: str,
) -> None:
    GraphWorld().enter(monkeypatch).spoil = only(binding, output)
    (record,) = acceptance.accept(request_for(two, tmp_path / "records"))
    assert (record.verdict, record.failed_call) == ("failed", f"{call} {binding}")
    assert words in steps(record)[record.failed_call].message
    failed = [step.call for step in record.steps if step.outcome == "failed"]
    assert failed == [record.failed_call]


@pytest.mark.parametrize(("output", "value"), [("count", 0), ("boxes", np.nan)])
def test_a_detector_that_finds_nothing_or_no_numbers_is_refused(
    two: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, output: str, value: float
) -> None:
    GraphWorld().enter(monkeypatch).spoil = lambda plan, name, values: (
        np.full_like(values, value) if name == output else values
    )
    (record,) = acceptance.accept(request_for(two, tmp_path / "records"))
    assert record.failed_call == "run function"
    assert "choices: the plan finds nothing, or no numbers" in steps(record)["run function"].message


def test_a_model_with_a_form_for_tensorrt_is_built_without_plugins(
    two: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A detector's source has operators that TensorRT lacks; its other form has no nodes for plugins."""
    GraphWorld().enter(monkeypatch)
    path = Path(shutil.copytree(two, tmp_path / "two"))
    manifest = json.loads((path / bundle.MANIFEST).read_text())
    manifest["graphs"]["choices"]["files"]["tensorrt"] = "graphs/choices.onnx"
    (path / bundle.MANIFEST).write_text(json.dumps(manifest))
    (record,) = acceptance.accept(request_for(path, tmp_path / "records", "fp32"))
    assert record.verdict == "accepted", record.steps
    assert steps(record)["build plugin"].outcome == "skipped"
    assert set(record.plan_sha256) == {"function/image", "function/choices"}
    with pytest.raises(saccade.errors.UsageError, match="build it with binding function"):
        saccade.build(path, BuildOptions(binding="plugin"))


def test_older_tensorrt_takes_no_plugins(two: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = GraphWorld()
    world.version = world.trt.__version__ = "10.14.1"
    world.enter(monkeypatch)
    (record,) = acceptance.accept(request_for(two, tmp_path / "records"))
    assert record.verdict == "accepted", record.steps
    assert not any("plugin" in step.call for step in record.steps)
    assert record.plugin_speedup is None


def test_the_demo_is_accepted_beside_a_compiled_torch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a torch that takes the processor for its GPU and compiles nothing. The sample has one picture."""
    GraphWorld().enter(monkeypatch)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.nn.Module, "cuda", lambda module: module)
    monkeypatch.setattr(torch.Tensor, "cuda", lambda tensor: tensor)
    monkeypatch.setattr(torch, "compile", lambda module, dynamic: module)
    demo = shutil.copytree(bundle.resolve("digits-stvit"), tmp_path / "digits-stvit")
    (record,) = acceptance.accept(request_for(demo, tmp_path / "records", "fp32", batch=BatchRange(2, 2, 2)))
    assert record.verdict == "accepted", record.steps
    assert record.model == "digits-stvit"  # the bundle calls itself stvit_r_swin_tiny
    assert steps(record)["time torch.compile"].outcome == "passed"
    assert record.latency_ms["torch.compile"] > 0
    layers = steps(record)["layers plugin"].message
    assert int(layers.split()[0]) > 5, layers


# --- int8 ----------------------------------------------------------------------------------------------


def with_int8(path: Path, out: Path) -> Path:
    """The bundle with its graph between Q/DQ nodes of a scale that loses little."""
    import onnx

    from saccade.conversion import copy_files, manifest_of

    made = bundle.read(path)

    def fill(folder: Path) -> dict[str, Any]:
        copy_files(made, folder)
        manifest = manifest_of(made)
        model = onnx.load(made.graphs["model"].files["source"])
        nodes = list(model.graph.node)
        nodes[0].input[0] = "rounded"
        del model.graph.node[:]
        for kind, given, result in (("Quantize", "image", "steps"), ("Dequantize", "steps", "rounded")):
            model.graph.node.append(
                onnx.helper.make_node(f"{kind}Linear", [given, "scale", "zero"], [result])
            )
        model.graph.node.extend(nodes)
        for name, value in (("scale", np.float32(0.05)), ("zero", np.int8(0))):
            model.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(value), name))
        onnx.save(model, folder / "graphs" / "model.int8.onnx")
        manifest["graphs"]["model"]["files"]["int8"] = "graphs/model.int8.onnx"
        manifest["derived"]["graphs/model.int8.onnx"] = {"tolerances": {"logits": 0.2}}
        return manifest

    return bundle.write(out, fill).path


@pytest.mark.parametrize(("fuses", "failed_call"), [(True, ""), (False, "build function")])
def test_an_int8_plan_must_show_int8(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fuses: bool, failed_call: str
) -> None:
    GraphWorld().enter(monkeypatch).fuses_quantization = fuses
    path = with_int8(write_bundle(tmp_path / "tiny").path, tmp_path / "low")
    (record,) = acceptance.accept(request_for(path, tmp_path / "records", "int8"))
    assert record.failed_call == failed_call, record.steps
    if fuses:
        assert record.engine_types == {"function/model": {"FLOAT": 1, "INT8": 1}}
        assert record.verdict == "accepted"
    else:
        words = steps(record)["build function"].message
        assert "precision int8 was asked for, and the plan runs otherwise: 1 tensors in FLOAT" in words


def test_a_bundle_without_int8_says_how_to_make_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    GraphWorld().enter(monkeypatch)
    path = write_bundle(tmp_path / "tiny").path
    (record,) = acceptance.accept(request_for(path, tmp_path / "records", "int8"))
    assert record.failed_call == "convert int8"
    assert "saccade quantize" in steps(record)["convert int8"].message


# --- tf32 ----------------------------------------------------------------------------------------------


def test_tf32_is_held_to_its_own_roundoff(two: Path) -> None:
    """Factors of ten bits are no float32: what they give may be as far off as float16's products."""
    demo = bundle.read(bundle.resolve("digits-stvit"))
    strict, wide = (bundle.sample_of(demo, "model", each).tolerances["logits"] for each in ("fp32", "tf32"))
    largest = float(np.abs(bundle.sample_of(demo, "model").outputs["logits"]).max())
    assert wide >= 4 * 2.0**-11 * largest
    assert strict < wide < 0.05 * largest
    with pytest.raises(saccade.errors.BundleError, match=r"may change with rounding\. Compare it in fp32"):
        bundle.sample_of(bundle.read(two), "choices", "tf32")
