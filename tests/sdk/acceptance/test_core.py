"""The core of acceptance on a machine that runs real graphs: plugins, layers beside torch, a detector's
choices, baselines and accuracy. Every call of the stand-ins fails once, and is named in a row's verdict.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from tests import every_task
from tests.engines.faults import Faults
from tests.sdk.acceptance.bundles import write_bundle, write_two_graphs
from tests.sdk.acceptance.machine import GraphWorld

import saccade
from saccade import acceptance, bundle
from saccade.acceptance import AcceptanceRecord, Request, accuracy, baselines, records
from saccade.acceptance.records import Step
from saccade.engines.tensorrt.options import BatchRange, BuildOptions, Precision, SizeRange
from saccade.errors import EngineError
from saccade.evaluation import evaluate

# Calls whose failure stops nothing: a run that cannot be recorded goes on without a CUDA graph, and a build
# without timings of earlier ones.
RECORDING = ("cudaStream", "cudaGraph", "execute_async_v3", "cuCtxPushCurrent", "set_device_memory")
TIMINGS = ("create_timing_cache", "set_timing_cache", "get_timing_cache", "serialize")
# Calls that open a plan where it was built, to read its types. A plan for other GPUs cannot be opened there:
# it is not the build that fails then, but the step that wants the types.
READ_BACK = ("deserialize_cuda_engine", "create_engine_inspector")


SIZE = SizeRange((32, 32), (32, 64), (96, 96))


@pytest.fixture(autouse=True)
def quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SACCADE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(baselines, "_SECONDS", 0.0)
    monkeypatch.setattr(baselines, "_LEAST", 1)
    monkeypatch.setattr(baselines, "_WARM_UP", 2)  # the second run is recorded, the third replayed


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_two_graphs(tmp_path_factory.mktemp("bundle") / "two").path


def request_for(path: Path, out: Path, precision: Precision = "tf32", **more: Any) -> Request:
    return Request((str(path),), out, (precision,), **{"batch": BatchRange(1, 2, 4), "again": True, **more})


def steps(record: AcceptanceRecord) -> dict[str, Step]:
    return {step.call: step for step in record.steps}


# --- what a row does -----------------------------------------------------------------------------------


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


def test_accuracy_of_other_tasks_is_skipped_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where a top-1 was published: it is that of a classifier made of texts."""
    GraphWorld().enter(monkeypatch)
    path = every_task.write("embedding", tmp_path / "towers").path
    published(path, 74.4)
    request = request_for(path, tmp_path / "records", "fp32", coco=tmp_path, imagenet=tmp_path)
    (record,) = acceptance.accept(request)
    step = steps(record)["measure accuracy"]
    assert (step.outcome, step.message) == ("skipped", "none is reproduced of models made for embedding")
    assert (record.verdict, record.data) == ("accepted", "")


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


def with_float16(path: Path, out: Path) -> Path:
    """The bundle with both graphs in float16. A detector's have no tolerances."""
    import onnx

    from saccade.conversion import copy_files, manifest_of
    from saccade.engines.precision import convert

    made = bundle.read(path)

    def fill(folder: Path) -> dict[str, Any]:
        copy_files(made, folder)
        manifest = manifest_of(made)
        for name, graph in made.graphs.items():
            file = f"graphs/{name}.fp16.onnx"
            onnx.save(convert(onnx.load(graph.files["source"]), "fp16").model, folder / file)
            manifest["graphs"][name]["files"]["fp16"] = file
            manifest["derived"][file] = {"tolerances": {"vector": 0.01} if name == "image" else {}}
        return manifest

    return bundle.write(out, fill).path


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


# --- accuracy ------------------------------------------------------------------------------------------


@pytest.fixture
def labelled(tmp_path: Path) -> Path:
    """Eight pictures in two folders of classes."""
    rng = np.random.default_rng(0)
    for name in ("ant", "bee"):
        (tmp_path / "val" / name).mkdir(parents=True)
        for index in range(4):
            pixels = rng.integers(0, 256, (4, 4, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / "val" / name / f"{index}.png")
    return tmp_path / "val"


def published(path: Path, top1: float) -> None:
    """Write on the card of the bundle what was published of it."""
    manifest = json.loads((path / bundle.MANIFEST).read_text())
    manifest["card"]["top1"] = top1
    (path / bundle.MANIFEST).write_text(json.dumps(manifest))


def accuracy_of(path: Path, labelled: Path) -> Any:
    with saccade.load(path, "onnxruntime") as predictor:
        return saccade.evaluation.evaluate(predictor, labelled)


@pytest.mark.parametrize(("off", "failed_call"), [(0.0, ""), (0.2, "compare accuracy")])
def test_published_accuracy_is_reproduced_by_the_plan(
    tmp_path: Path, labelled: Path, monkeypatch: pytest.MonkeyPatch, off: float, failed_call: str
) -> None:
    GraphWorld().enter(monkeypatch)
    path = write_bundle(tmp_path / "tiny").path
    expected = accuracy_of(path, labelled).top1
    published(path, expected + off)
    (record,) = acceptance.accept(request_for(path, tmp_path / "records", "fp32", imagenet=labelled))
    assert record.failed_call == failed_call, record.steps
    assert record.accuracy == {"top1": expected}


@pytest.mark.parametrize(("off", "failed_call"), [(0.0, ""), (0.3, "compare accuracy")])
def test_published_ap_is_reproduced_by_the_plan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, off: float, failed_call: str
) -> None:
    """More pictures than a detector's plan takes at once, annotated with what ONNX Runtime finds in them."""
    GraphWorld().enter(monkeypatch)
    path = every_task.write("instance_segmentation", tmp_path / "detector").path
    data = annotated(path, tmp_path / "coco")
    with saccade.load(path, "onnxruntime") as predictor:
        expected: Any = evaluate(
            predictor, data / "val2017", annotations=data / "annotations" / "instances_val2017.json"
        )
    ap = {"box_ap": expected.boxes.ap, "mask_ap": expected.masks.ap}
    assert ap["box_ap"] > 50  # in percent
    published = {"small_instance_segmentation": (ap["box_ap"] + off, ap["mask_ap"])}
    monkeypatch.setattr(accuracy, "PUBLISHED_AP", published)
    (record,) = acceptance.accept(request_for(path, tmp_path / "records", "fp32", coco=data, size=SIZE))
    assert record.failed_call == failed_call, record.steps
    assert record.accuracy == pytest.approx(ap)


def annotated(path: Path, data: Path) -> Path:
    """COCO's layout: six pictures, and what the detector at `path` finds in them as the truth."""
    rng = np.random.default_rng(0)
    (data / "val2017").mkdir(parents=True)
    (data / "annotations").mkdir()
    files = [data / "val2017" / f"{index}.png" for index in range(6)]
    for file in files:
        Image.fromarray(rng.integers(0, 256, (40, 60, 3), np.uint8)).save(file)
    with saccade.load(path, "onnxruntime") as predictor:
        results: list[Any] = predictor(files)
        names = predictor.labels
    category_ids = {name: index + 1 for index, name in enumerate(names)}
    found = [row for index, each in enumerate(results) for row in each.to_coco(index, category_ids)]
    objects = [
        {**row, "id": index + 1, "iscrowd": 0, "area": row["bbox"][2] * row["bbox"][3]}
        for index, row in enumerate(found)
    ]
    truth = {
        "images": [
            {"id": index, "file_name": file.name, "height": 40, "width": 60}
            for index, file in enumerate(files)
        ],
        "annotations": objects,
        "categories": [{"id": key, "name": name} for name, key in category_ids.items()],
    }
    (data / "annotations" / "instances_val2017.json").write_text(json.dumps(truth))
    return data


# --- every call fails once -----------------------------------------------------------------------------


class Rows:
    """Repeats one row on machines of which one call fails."""

    def __init__(self, request: Request, patch: pytest.MonkeyPatch) -> None:
        self._request = request
        self._patch = patch

    def run(self, faults: Faults) -> tuple[AcceptanceRecord, list[tuple[int, str]]]:
        """The row, and how many calls there had been when each of its steps began."""
        begun: list[tuple[int, str]] = []
        GraphWorld(faults).enter(self._patch)

        def note(step: str) -> None:
            begun.append((len(faults.calls), step.partition(": ")[2]))

        (record,) = acceptance.accept(self._request, progress=note)
        return record, begun

    def calls(self) -> Iterator[tuple[int, str, str]]:
        """Number and name of each call of a row in which nothing fails, and the step that makes it."""
        counting = Faults()
        record, begun = self.run(counting)
        assert record.verdict == "accepted", record.steps
        for at, name in enumerate(counting.calls):
            yield at, name, next((step for first, step in reversed(begun) if first <= at), "")

    def check(self, at: int, name: str, step: str, *, raises: bool) -> bool:
        """One call fails. Whether its step failed with it."""
        faults = Faults(at, raises)
        if not step:  # before there are rows: looking for the driver
            with pytest.raises(EngineError):
                self.run(faults)
            return True
        record, _ = self.run(faults)
        assert faults.struck == name
        if record.verdict == "accepted":
            unread = READ_BACK if step.startswith("layers") else ()
            assert name.startswith((*RECORDING, *TIMINGS, *unread)), (name, step)
            return False
        if record.failed_call == step:
            words = steps(record)[step].message
            known = (name, "nullptr", "refuses the profile", "no NVIDIA driver", "CUDA")
            assert any(each in words for each in known), (name, words)
        else:
            assert (name in READ_BACK, record.failed_call) == (True, step.replace("build", "inspect")), name
        return True


def first(rows: Rows, *kinds: str) -> Iterator[tuple[int, str, str]]:
    """Of each kind of call the first in each step that begins with one of `kinds`."""
    seen: set[tuple[str, str]] = set()
    for at, name, step in list(rows.calls()):
        if step.startswith(kinds) and (name, step) not in seen:
            seen.add((name, step))
            yield at, name, step


def test_what_fails_before_there_are_rows_is_our_error(
    two: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = Rows(request_for(two, tmp_path / "records"), monkeypatch)
    names = [name for _, name, step in rows.calls() if not step]
    assert names[0] == "cuInit"
    for at, name in enumerate(names):
        rows.check(at, name, "", raises=False)


# Running and timing open plans with the same calls: test_accept.py has each of them fail.
FAST = ("build plugin", "layers function")


def test_every_kind_of_call_fails_once(two: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = Rows(request_for(two, tmp_path / "records"), monkeypatch)
    fatal = {step for at, name, step in first(rows, *FAST) if rows.check(at, name, step, raises=False)}
    assert fatal == set(FAST)


@pytest.mark.slow
@pytest.mark.parametrize("raises", [False, True])
def test_every_kind_of_call_fails_once_in_each_step(
    two: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, raises: bool
) -> None:
    """By its API's sign of failure, or by what the bindings raise."""
    rows = Rows(request_for(two, tmp_path / "records"), monkeypatch)
    fatal = {step for at, name, step in first(rows, "") if step and rows.check(at, name, step, raises=raises)}
    calls = ("build", "run", "layers", "time")
    assert fatal == {f"{call} {binding}" for call in calls for binding in ("function", "plugin")}


def test_every_kind_of_call_fails_once_while_accuracy_is_measured(
    tmp_path: Path, labelled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_bundle(tmp_path / "tiny").path
    published(path, accuracy_of(path, labelled).top1)
    rows = Rows(request_for(path, tmp_path / "records", "fp32", imagenet=labelled), monkeypatch)
    ours = {name: at for at, name, step in reversed(list(rows.calls())) if step == "measure accuracy"}
    assert {"deserialize_cuda_engine", "cudaMemcpyAsync", "cuInit", "execute_async_v3"} <= set(ours)
    for name, at in ours.items():
        rows.check(at, name, "measure accuracy", raises=False)


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
