"""What is wrong with one request is that client's mistake, and nobody else's failure."""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tests import every_task
from tests.sdk.serving import two_towers
from tests.sdk.serving.conftest import Running, serving
from tests.sdk.serving.fuzz import FUZZ, JSON, from_schema

from saccade.serving.protocol import inference_pb2 as pb
from saccade.serving.protocol import inference_pb2_grpc as stubs

VOCABULARY = 600


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("bundles")
    bundles = {
        "two": two_towers.write(folder / "two"),
        "labels": every_task.write("semantic_segmentation", folder / "labels").path,
    }
    with serving(**bundles) as running:
        yield running


def tensor(name: str, kind: str, shape: list[int], value: float) -> list[dict[str, Any]]:
    return [{"name": name, "datatype": kind, "shape": shape, "data": [value] * int(np.prod(shape))}]


def ask(running: Running, model: str, inputs: list[dict[str, Any]]) -> httpx.Response:
    return httpx.post(f"http://{running.http}/v2/models/{model}/infer", json={"inputs": inputs}, timeout=30)


def tokens(value: int, rows: int = 1) -> list[dict[str, Any]]:
    return tensor("tokens", "INT64", [rows, 12], value)


@pytest.mark.parametrize("value", [-1, VOCABULARY, 10**6, -(10**6)])
def test_numbers_that_are_no_token(served: Running, value: int) -> None:
    answer = ask(served, "two.text", tokens(value))
    assert (answer.status_code, f"0 to {VOCABULARY - 1}" in answer.json()["error"]) == (422, True)


@pytest.mark.parametrize("size", [(1, 1), (7, 3)])
def test_sizes_that_the_graph_cannot_take(served: Running, size: tuple[int, int]) -> None:
    assert ask(served, "labels", tensor("image", "FP32", [1, 3, *size], 0)).status_code == 422


def test_more_rows_than_a_run_has(served: Running) -> None:
    assert ask(served, "two.text", tokens(5, rows=8)).status_code == 200
    answer = ask(served, "two.text", tokens(5, rows=9))
    assert (answer.status_code, "9 rows, and 8" in answer.json()["error"]) == (422, True)


def test_one_bad_request_fails_alone(served: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """A picture of NaN stands for whatever makes an engine fail."""
    engine = served.server.repository.model("two")[1].engines["image"]
    entered, go, run = threading.Event(), threading.Event(), engine.engine.run

    def fail(feeds: Any) -> Any:
        entered.set()
        assert go.wait(30)
        if np.isnan(feeds["image"]).any():
            raise RuntimeError("NaN")
        return run(feeds)

    monkeypatch.setattr(engine.engine, "run", fail)
    url = f"http://{served.http}/v2/models/two/infer"
    image = {"name": "image", "datatype": "FP32", "shape": [1, 3, 32, 32]}
    head = json.dumps({"inputs": [image | {"parameters": {"binary_data_size": 12288}}]}).encode()

    def post(value: float) -> int:
        body = head + np.full(3072, value, np.float32).tobytes()
        headers = {"Inference-Header-Content-Length": str(len(head))}
        return httpx.post(url, content=body, headers=headers, timeout=30).status_code

    with ThreadPoolExecutor(5) as threads:
        first = threads.submit(post, 0.0)
        assert entered.wait(30)
        others = [threads.submit(post, value) for value in (1.0, 2.0, np.nan, 3.0)]
        while engine.batcher.queued_rows < 4:
            pass
        go.set()
        assert first.result() == 200
        assert [each.result() for each in others] == [200, 200, 500, 200]


def test_an_answer_that_is_no_number_is_still_json(served: Running) -> None:
    answer = ask(served, "two", tensor("image", "FP32", [1, 3, 32, 32], 3e38))
    assert answer.status_code == 200
    assert None in answer.json()["outputs"][0]["data"]


def test_an_unknown_model_is_told_before_its_tensors_are_read(served: Running) -> None:
    answer = httpx.post(f"http://{served.http}/v2/models/other/infer", content=b"[" * 1000)
    assert (answer.status_code, "unknown model" in answer.json()["error"]) == (404, True)


def operations(running: Running) -> dict[str, Any]:
    """What is posted as JSON, by path."""
    paths = httpx.get(f"http://{running.http}/openapi.json").json()["paths"]
    posts = {path: each["post"] for path, each in paths.items() if "post" in each}
    return {path: each for path, each in posts.items() if "/predict" not in path}


@pytest.mark.parametrize("place", range(7))
def test_whatever_the_description_allows_is_no_server_error(served: Running, place: int) -> None:
    described = operations(served)
    assert len(described) == 7
    path, operation = sorted(described.items())[place]
    content = operation.get("requestBody", {}).get("content", {})
    schema = content.get("application/json", {}).get("schema", {})
    # What is unloaded would answer nobody any more.
    names = st.just("none") if "/unload" in path else st.sampled_from(["two", "two.text", "labels"])
    with httpx.Client(base_url=f"http://{served.http}", timeout=30) as client:

        @FUZZ
        @given(names, from_schema(schema) | JSON)
        def fuzz(name: str, value: Any) -> None:
            answer = client.post(path.format(name=name), content=json.dumps(value).encode())
            assert answer.status_code < 500, answer.text

        fuzz()


@pytest.mark.parametrize("model", ["two", "labels"])
def test_whatever_options_a_picture_has_is_no_server_error(served: Running, model: str) -> None:
    stream = io.BytesIO()
    Image.new("RGB", (40, 30)).save(stream, "PNG")
    path = f"/v1/models/{model}/predict"
    described = httpx.get(f"http://{served.http}/openapi.json").json()["paths"][path]["post"]
    schemas = {each["name"]: each["schema"] for each in described["parameters"]}
    values = {name: from_schema(schema).map(str) | st.text(max_size=8) for name, schema in schemas.items()}
    with httpx.Client(base_url=f"http://{served.http}", timeout=30) as client:

        @FUZZ
        @given(st.fixed_dictionaries({}, optional=values))
        def fuzz(options: dict[str, str]) -> None:
            answer = client.post(path, params=options, content=stream.getvalue())
            # A client that gives itself a millisecond is told that it is over.
            assert answer.status_code < 500 or (answer.status_code == 504 and "timeout_ms" in options)

        fuzz()


NAMES = [["n" * 300], ["image"] * 2, [f"input{n}" for n in range(300)]]


@pytest.mark.parametrize("names", NAMES, ids=["long", "twice", "many"])
def test_names_are_bounded(served: Running, names: list[str]) -> None:
    over_http = ask(served, "two", [tensor(name, "FP32", [1], 0)[0] for name in names])
    assert (over_http.status_code, len(over_http.content) < 1000) == (422, True)
    request = pb.ModelInferRequest(model_name="two")
    for name in names:
        request.inputs.add(name=name, datatype="FP32", shape=[1]).contents.fp32_contents.append(0)
    with grpc.insecure_channel(served.grpc) as channel, pytest.raises(grpc.RpcError) as refused:
        stubs.GRPCInferenceServiceStub(channel).ModelInfer(request, timeout=30)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT  # type: ignore[attr-defined]


def test_the_page_of_a_folder_is_no_model(served: Running, tmp_path: Path) -> None:
    assert httpx.get(f"http://{served.http}/v2/models/..%2f..%2fetc/ready").status_code == 404
