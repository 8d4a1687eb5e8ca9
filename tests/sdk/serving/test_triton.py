"""`saccade triton`: what is written, as Triton's own messages read it."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.protobuf import text_format
from tests import every_task
from tests.every_task import PROMPTS, TASKS
from tritonclient.grpc import model_config_pb2
from typer.testing import CliRunner

from saccade.batching import Limits
from saccade.bundle import Bundle
from saccade.cli import app
from saccade.engines.tensorrt import plans
from saccade.engines.tensorrt.gpu import Gpu
from saccade.engines.tensorrt.options import BatchRange, BuildOptions, SizeRange
from saccade.errors import EngineError, UsageError
from saccade.serving.triton import RepositoryOptions, write_repository

SCORES = {"json": "TYPE_STRING 1"}
BOXES = {
    "json": "TYPE_STRING 1",
    "boxes_xyxy": "TYPE_FP32 -1 4",
    "scores": "TYPE_FP32 -1",
    "indices": "TYPE_INT64 -1",
    "count": "TYPE_INT32 1",
    "size_hw": "TYPE_INT32 2",
}
MAP = {"json": "TYPE_STRING 1", "size_hw": "TYPE_INT32 2"}
OUTPUTS: dict[str, dict[str, str]] = {
    "classification": {**SCORES, "scores": "TYPE_FP32 10"},
    "zero_shot": {**SCORES, "scores": "TYPE_FP32 3"},
    "embedding": {**SCORES, "vector": "TYPE_FP32 24"},
    "detection": BOXES,
    "instance_segmentation": {**BOXES, "masks": "TYPE_BOOL -1 -1 -1"},
    "semantic_segmentation": {**MAP, "labels": "TYPE_UINT8 -1 -1"},
    "depth": {**MAP, "depth": "TYPE_FP32 -1 -1"},
}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Bundle]:
    """A bundle of each task."""
    folder = tmp_path_factory.mktemp("bundles")
    return {task: every_task.write(task, folder / task) for task in TASKS}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SACCADE_CACHE", str(tmp_path / "cache"))


def options_for(task: str, **changes: Any) -> RepositoryOptions:
    return RepositoryOptions(prompts=PROMPTS if task == "zero_shot" else (), **changes)


def config(folder: Path) -> Any:
    """config.pbtxt as Triton's own message; a field or value that it does not know is an error."""
    message = model_config_pb2.ModelConfig()
    text_format.Parse((folder / "config.pbtxt").read_text(), message)
    assert message.name == folder.name
    return message


def listed(tensors: Any) -> dict[str, str]:
    types = model_config_pb2.DataType.Name
    return {each.name: " ".join([types(each.data_type), *map(str, each.dims)]) for each in tensors}


@pytest.mark.parametrize("task", TASKS)
def test_models_take_pictures_and_ask_onnx_models(
    task: str, small: dict[str, Bundle], tmp_path: Path
) -> None:
    limits = Limits(max_rows=4, max_delay_ms=1.5, max_queue_rows=32)
    written = write_repository(
        [small[task].path], tmp_path / "out", options_for(task, limits=limits, instances=2)
    )
    *engines, model = (config(each.path) for each in written)

    assert model.backend == "python"
    assert listed(model.input) == {"image": "TYPE_STRING 1"}
    assert listed(model.output) == OUTPUTS[task]
    for each in (model, *engines):
        assert each.max_batch_size == 4
        assert each.dynamic_batching.max_queue_delay_microseconds == 1500
        assert each.dynamic_batching.default_queue_policy.max_queue_size == 32
        (group,) = each.instance_group
        assert (group.count, group.kind) == (2, group.KIND_CPU)

    asked = [name for name in small[task].graphs if (task, name) != ("embedding", "text")]
    assert [each.name for each in engines] == [f"{task}_{name}" for name in asked]
    for name, engine in zip(asked, engines, strict=True):
        assert engine.platform == "onnxruntime_onnx"
        graph = small[task].graphs[name]
        assert [each.name for each in engine.input] == [spec.name for spec in graph.inputs]
        assert [each.name for each in engine.output] == [spec.name for spec in graph.outputs]
        folder = tmp_path / "out" / engine.name / "1" / "model.onnx"
        assert (folder / "model.onnx").read_bytes() == graph.files["source"].read_bytes()
        assert (folder / f"{name}.bin").is_file()


def test_free_sizes_and_tensors_of_the_batch_alone(small: dict[str, Bundle], tmp_path: Path) -> None:
    write_repository([small["instance_segmentation"].path], tmp_path)
    engine = config(tmp_path / "instance_segmentation_model")
    assert listed(engine.input) == {"image": "TYPE_FP32 3 -1 -1", "size_hw": "TYPE_FP32 2"}
    count = next(each for each in engine.output if each.name == "count")
    assert list(count.dims) == [1]
    assert count.HasField("reshape")
    assert list(count.reshape.shape) == []


def test_the_warm_up_is_the_conformance_sample(small: dict[str, Bundle], tmp_path: Path) -> None:
    write_repository([small["detection"].path], tmp_path)
    engine = config(tmp_path / "detection_model")
    (request,) = engine.model_warmup
    assert request.batch_size == 1
    sample = np.load(small["detection"].path / "conformance.model.npz")
    for name, tensor in request.inputs.items():
        row = sample[f"input:{name}"][0]
        assert list(tensor.dims) == list(row.shape)
        content = (tmp_path / engine.name / "warmup" / tensor.input_data_file).read_bytes()
        np.testing.assert_array_equal(np.frombuffer(content, np.float32).reshape(row.shape), row)


def test_labels_serve_tritons_classification_extension(small: dict[str, Bundle], tmp_path: Path) -> None:
    write_repository([small["classification"].path], tmp_path)
    (scores,) = (each for each in config(tmp_path / "classification").output if each.name == "scores")
    lines = (tmp_path / "classification" / scores.label_filename).read_text().splitlines()
    assert tuple(lines) == small["classification"].card.labels


def publish_plan(bundle: Bundle, capability: str, **changes: Any) -> bytes:
    """Put a plan into the bundle, as a build does; its content is no engine."""
    options = BuildOptions(
        **{"batch": BatchRange(1, 2, 6), "size": SizeRange((32, 32), (64, 64), (96, 96)), **changes}
    )
    graph = bundle.graphs["model"]
    content = f"plan for {capability} {options}".encode()
    record = plans.Record(
        bundle=bundle.name,
        graph="model",
        files={"graphs/model.onnx": bundle.files["graphs/model.onnx"]["sha256"]},
        options=options,
        version="10.16.1.11",
        gpu=Gpu(f"GPU {capability}", capability, "13.1"),
        binding="function",
        inputs=graph.inputs,
        outputs=graph.outputs,
        layers=1,
        working_types={},
        engine_types=None,
        device_bytes=None,
        plan_sha256=hashlib.sha256(content).hexdigest(),
        plan_bytes=len(content),
        parse_seconds=0.0,
        build_seconds=0.0,
        wall_seconds=0.0,
        peak_memory_mib=0,
        built="2026-01-01T00:00:00+00:00",
        saccade="0.1.0",
        log=(),
    )
    staging = bundle.path / "engines" / ".staging"
    staging.mkdir(parents=True)
    (staging / plans.PLAN).write_bytes(content)
    plans.publish(staging, record, bundle.path / "engines")
    return content


def test_a_plan_is_taken_where_there_is_one(tmp_path: Path) -> None:
    bundle = every_task.write("detection", tmp_path / "bundle")
    content = publish_plan(bundle, "86")
    written = write_repository([bundle.path], tmp_path / "out", RepositoryOptions(limits=Limits(max_rows=16)))
    assert [each.backend for each in written] == ["tensorrt", "python"]
    engine = config(written[0].path)
    assert engine.platform == "tensorrt_plan"
    assert engine.max_batch_size == 6  # what the plan serves
    assert engine.instance_group[0].kind == engine.instance_group[0].KIND_GPU
    assert engine.default_model_filename == "model.plan"
    assert (written[0].path / "1" / "model.plan").read_bytes() == content
    assert engine.parameters["tensorrt_version"].string_value == "10.16.1.11"
    assert len(engine.model_warmup) == 1


def test_plans_for_several_gpus_are_told_apart(tmp_path: Path) -> None:
    bundle = every_task.write("detection", tmp_path / "bundle")
    contents = {"8.6": publish_plan(bundle, "86"), "9.0": publish_plan(bundle, "90")}
    large = SizeRange((64, 64), (64, 64), (96, 96))
    contents["12.0"] = publish_plan(bundle, "120", size=large, batch=BatchRange(1, 1, 2))
    (engine, _) = write_repository([bundle.path], tmp_path / "out", RepositoryOptions(engine="tensorrt"))
    message = config(engine.path)
    assert message.max_batch_size == 2
    assert not message.model_warmup  # the sample's picture is smaller than one of the plans takes
    found = {key: (engine.path / "1" / name).read_bytes() for key, name in message.cc_model_filenames.items()}
    assert found == contents


def test_plans_of_other_libraries_and_precisions_are_left(tmp_path: Path) -> None:
    bundle = every_task.write("detection", tmp_path / "bundle")
    publish_plan(bundle, "86", flavour="tensorrt_rtx")
    publish_plan(bundle, "86", precision="tf32")
    with pytest.raises(
        UsageError, match=r"has no fp32 plan for TensorRT: saccade build \S+ --flavour tensorrt "
    ):
        write_repository([bundle.path], tmp_path / "out", RepositoryOptions(engine="tensorrt"))
    assert not (tmp_path / "out").exists()
    (engine, _) = write_repository([bundle.path], tmp_path / "out")
    assert engine.backend == "onnxruntime"


def test_names_and_versions(small: dict[str, Bundle], tmp_path: Path) -> None:
    path, out = small["classification"].path, tmp_path / "out"
    first = write_repository([f"one={path}", f"two={path}"], out)
    assert [each.path.name for each in first] == ["one_model", "one", "two_model", "two"]
    with pytest.raises(UsageError, match="one_model exists already: --force"):
        write_repository([f"one={path}"], out)
    again = write_repository([f"one={path}"], out, force=True)
    assert {each.version for each in again} == {2}
    assert [folder.name for folder in (out / "one").iterdir() if folder.is_dir()] == ["2"]
    assert (out / "two" / "1" / "model.py").is_file()
    assert sorted(each.name for each in out.iterdir()) == ["one", "one_model", "two", "two_model"]


@pytest.mark.parametrize(
    ("models", "message"),
    [
        ((), "give at least one"),
        (("../up={}",), "cannot name a model"),
        (("a b={}",), "cannot name a model"),
        (("a={}", "a={}"), "two bundles are called 'a'"),
        (("a={}", "a_model={}"), "two models would be called 'a_model'"),
        (("a={}", "nowhere"), "there is no bundle 'nowhere'"),
    ],
)
def test_refusals_leave_nothing(
    models: tuple[str, ...], message: str, small: dict[str, Bundle], tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        write_repository([each.format(small["classification"].path) for each in models], tmp_path / "out")
    assert list(tmp_path.glob("*out*")) == []


def test_a_file_is_no_repository(small: dict[str, Bundle], tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    with pytest.raises(UsageError, match="out is a file: name a folder"):
        write_repository([str(small["classification"].path)], tmp_path / "out")
    assert (tmp_path / "out").read_text() == "mine"


def test_classes_are_for_zero_shot(small: dict[str, Bundle], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--prompt 'a dog'"):
        write_repository([small["zero_shot"].path], tmp_path / "out")
    with pytest.raises(UsageError, match="made for depth"):
        write_repository([small["depth"].path], tmp_path / "out", RepositoryOptions(prompts=PROMPTS))


def test_the_command(small: dict[str, Bundle], tmp_path: Path) -> None:
    arguments = [f"zoo={small['zero_shot'].path}", str(tmp_path / "out"), "--json", "--engine", "python"]
    ran = CliRunner().invoke(app, ["triton", *arguments, *(f"--prompt={each}" for each in PROMPTS)])
    assert ran.exit_code == 0, ran.output
    (model,) = json.loads(ran.stdout)
    assert model == {"model": "zoo", "path": str(tmp_path / "out" / "zoo"), "backend": "python", "version": 1}
    assert (tmp_path / "out" / "zoo" / "1" / "bundle" / "bundle.json").is_file()


def test_devices_and_threads(small: dict[str, Bundle], tmp_path: Path) -> None:
    options = RepositoryOptions(engine="onnxruntime", device="cuda", threads=3)
    engine, model = (
        config(each.path) for each in write_repository([small["depth"].path], tmp_path / "a", options)
    )
    assert engine.instance_group[0].kind == engine.instance_group[0].KIND_GPU
    assert model.instance_group[0].kind == model.instance_group[0].KIND_CPU  # it only asks
    assert engine.parameters["intra_op_thread_count"].string_value == "3"
    (inside,) = write_repository(
        [small["depth"].path], tmp_path / "b", RepositoryOptions(engine="python", device="cuda")
    )
    message = config(inside.path)
    assert message.instance_group[0].kind == message.instance_group[0].KIND_GPU


def test_plans_that_nobody_trusts_are_not_handed_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = every_task.write("detection", tmp_path / "bundle")
    publish_plan(bundle, "86")
    monkeypatch.setenv("SACCADE_CACHE", str(tmp_path / "of somebody else"))
    with pytest.raises(EngineError, match="a plan is code"):
        write_repository([bundle.path], tmp_path / "out")
    assert sorted(each.name for each in tmp_path.iterdir()) == ["bundle", "cache"]


@pytest.mark.parametrize(
    "options", [{"engine": "tensorflow"}, {"device": "cuda:1"}, {"instances": 0}, {"threads": 0}]
)
def test_options_that_cannot_be(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        RepositoryOptions(**options)
