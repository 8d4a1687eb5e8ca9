"""What `saccade triton` writes, in NVIDIA's own server: the predictor's answers, to the bit."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import tritonclient.http
from numpy.typing import NDArray
from tests import every_task, triton_server
from tests.every_task import PROMPTS, TASKS
from tritonclient.utils import InferenceServerException

import saccade
from saccade.bundle import Bundle
from saccade.serving.triton import RepositoryOptions, write_repository

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Bundle]:
    """A bundle of each task."""
    folder = tmp_path_factory.mktemp("bundles")
    return {task: every_task.write(task, folder / task) for task in TASKS}


def options_for(task: str, **changes: Any) -> RepositoryOptions:
    return RepositoryOptions(prompts=PROMPTS if task == "zero_shot" else (), **changes)


# Stands in for the ONNX Runtime backend, with the files where it finds them: the wheel has Python's only.
ONNX_MODEL = """
from pathlib import Path
import onnxruntime
import triton_python_backend_utils as server

class TritonPythonModel:
    def initialize(self, args):
        folder = Path(args["model_repository"]) / args["model_version"]
        self.session = onnxruntime.InferenceSession(
            folder / "model.onnx" / "model.onnx", providers=["CPUExecutionProvider"]
        )

    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        names = [each.name for each in self.session.get_inputs()]
        feeds = {name: server.get_input_tensor_by_name(request, name).as_numpy() for name in names}
        wanted = request.requested_output_names()
        outputs = self.session.run(wanted, feeds)
        return server.InferenceResponse([server.Tensor(*pair) for pair in zip(wanted, outputs)])
"""
FORMS = {"inside": "python", "asked": "onnxruntime"}


@pytest.fixture(scope="module")
def server(
    small: dict[str, Bundle], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tritonclient.http.InferenceServerClient]:
    """A client of a server with every task in both forms."""
    folder = tmp_path_factory.mktemp("triton")
    for form, engine in FORMS.items():
        for task, bundle in small.items():
            write_repository(
                [f"{form}_{task}={bundle.path}"], folder / "models", options_for(task, engine=engine)
            )
    for path in folder.glob("models/asked_*/config.pbtxt"):
        text = path.read_text()
        if "onnxruntime_onnx" in text:
            path.write_text(text.replace('platform: "onnxruntime_onnx"', 'backend: "python"'))
            (path.parent / "1" / "model.py").write_text(ONNX_MODEL)
    with (
        triton_server.serving(folder / "models", folder / "log") as address,
        tritonclient.http.InferenceServerClient(address, concurrency=8, network_timeout=60) as client,
    ):
        yield client


def request(files: list[bytes]) -> Any:
    tensor = tritonclient.http.InferInput("image", [len(files), 1], "BYTES")
    return tensor.set_data_from_numpy(np.array(files, np.object_).reshape(-1, 1))


def expected(task: str, result: Any) -> dict[str, NDArray[Any]]:
    """What the outputs for one picture must be, from the predictor's result."""
    if task in ("classification", "zero_shot"):
        return {"scores": result.scores}
    if task == "embedding":
        return {"vector": result.vectors[0]}
    if task == "depth":
        return {"depth": result.depth, "size_hw": np.int32(result.depth.shape)}
    if task == "semantic_segmentation":
        return {"labels": result.labels, "size_hw": np.int32(result.labels.shape)}
    boxes = {name: getattr(result, name) for name in ("boxes_xyxy", "scores", "indices")}
    masks = {"masks": np.asarray(result.masks)} if task == "instance_segmentation" else {}
    return {**boxes, **masks, "count": np.int32([len(result)]), "size_hw": np.int32(result.size_hw)}


def check(task: str, answer: Any, results: list[Any]) -> None:
    """Every output is the predictor's to the bit; beyond the end of the smaller results there are zeros."""
    texts = answer.as_numpy("json").reshape(-1)
    assert [json.loads(each) for each in texts] == [each.to_json() for each in results]
    for row, result in enumerate(results):
        for name, values in expected(task, result).items():
            given = answer.as_numpy(name)[row]
            assert given.dtype == values.dtype, name
            inside = tuple(slice(size) for size in values.shape)
            np.testing.assert_array_equal(given[inside], values, strict=True, err_msg=name)
            rest = given.copy()
            rest[inside] = 0
            assert not rest.any(), name


def predictor(task: str, bundle: Bundle) -> Any:
    loaded: Any = saccade.load(bundle.path, "onnxruntime", threads=1)
    return loaded.with_classes(PROMPTS) if task == "zero_shot" else loaded


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("form", FORMS)
def test_the_server_answers_as_the_predictor(
    form: str, task: str, small: dict[str, Bundle], server: tritonclient.http.InferenceServerClient
) -> None:
    files = every_task.pictures()
    with predictor(task, small[task]) as predict:
        for file in files:
            check(task, server.infer(f"{form}_{task}", [request([file])]), predict([file]))
        check(task, server.infer(f"{form}_{task}", [request(files)]), predict(files))


@pytest.mark.parametrize("form", FORMS)
def test_a_bad_picture_fails_alone(
    form: str, small: dict[str, Bundle], server: tritonclient.http.InferenceServerClient
) -> None:
    model = f"{form}_classification"
    good = every_task.pictures()[0]
    waiting = [server.async_infer(model, [request([file])]) for file in [good, b"no picture", good] * 4]
    with predictor("classification", small["classification"]) as predict:
        scores = predict(good).scores
    for index, each in enumerate(waiting):
        if index % 3 == 1:
            with pytest.raises(InferenceServerException, match="not a picture in a format that Pillow reads"):
                each.get_result()
        else:
            # Neighbours share a run, whose size may change the last bits.
            np.testing.assert_allclose(each.get_result().as_numpy("scores")[0], scores, rtol=1e-5, atol=1e-7)


def test_the_server_ranks_labels(
    small: dict[str, Bundle], server: tritonclient.http.InferenceServerClient
) -> None:
    file = every_task.pictures()[0]
    best = tritonclient.http.InferRequestedOutput("scores", class_count=2)
    answer = server.infer("inside_classification", [request([file])], outputs=[best]).as_numpy("scores")[0]
    with predictor("classification", small["classification"]) as predict:
        top = predict(file).top(2)
    assert [text.decode().split(":")[1:] for text in answer] == [[str(p.index), p.label] for p in top]
