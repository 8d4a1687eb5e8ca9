"""Unchanged tritonclients get what the predictor's engine gives, to the bit, whichever way they ask."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from functools import partial
from queue import Queue
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.grpc.aio
import tritonclient.http
import tritonclient.http.aio
import tritonclient.utils.shared_memory as shm
from tests.sdk.serving.conftest import SETTINGS, Running, serving
from tritonclient.utils import InferenceServerException

import saccade
from saccade.bundle import Bundle

Array = np.ndarray[Any, Any]


@pytest.fixture(scope="module")
def expected(tiny_bundle: Bundle) -> Iterator[Callable[[Array], Array]]:
    with saccade.load(tiny_bundle.path, threads=1) as predictor:
        yield lambda image: predictor.engine.run({"image": image})["logits"]


def over_http(running: Running, image: Array, binary: bool, **how: Any) -> Array:
    with tritonclient.http.InferenceServerClient(running.http) as client:
        given = tritonclient.http.InferInput("image", image.shape, "FP32")
        given.set_data_from_numpy(image, binary_data=binary)
        wanted = [tritonclient.http.InferRequestedOutput("logits", binary_data=binary)]
        answer: Array = client.infer("tiny", [given], outputs=wanted, **how).as_numpy("logits")
        return answer


def over_http_aio(running: Running, image: Array) -> Array:
    async def ask() -> Array:
        async with tritonclient.http.aio.InferenceServerClient(running.http) as client:
            given = tritonclient.http.InferInput("image", image.shape, "FP32")
            given.set_data_from_numpy(image)
            return (await client.infer("tiny", [given])).as_numpy("logits")

    return asyncio.run(ask())


def over_grpc(running: Running, image: Array) -> Array:
    with tritonclient.grpc.InferenceServerClient(running.grpc) as client:
        given = tritonclient.grpc.InferInput("image", image.shape, "FP32")
        given.set_data_from_numpy(image)
        answer: Array = client.infer("tiny", [given]).as_numpy("logits")
        return answer


def over_grpc_aio(running: Running, image: Array) -> Array:
    async def ask() -> Array:
        async with tritonclient.grpc.aio.InferenceServerClient(running.grpc) as client:
            given = tritonclient.grpc.InferInput("image", image.shape, "FP32")
            given.set_data_from_numpy(image)
            return (await client.infer("tiny", [given])).as_numpy("logits")

    return asyncio.run(ask())


def over_grpc_stream(running: Running, image: Array) -> Array:
    answers: Queue[Any] = Queue()
    with tritonclient.grpc.InferenceServerClient(running.grpc) as client:
        client.start_stream(lambda result, error: answers.put((result, error)))
        for rows in (image[:1], image):
            given = tritonclient.grpc.InferInput("image", rows.shape, "FP32")
            given.set_data_from_numpy(rows)
            client.async_stream_infer("tiny", [given])
        results = [answers.get(timeout=30) for _ in range(2)]
        client.stop_stream()
    assert [error for _, error in results] == [None, None]
    answer: Array = results[1][0].as_numpy("logits")
    return answer


WAYS: dict[str, Callable[[Running, Array], Array]] = {
    "http binary": lambda running, image: over_http(running, image, True),
    "http JSON": lambda running, image: over_http(running, image, False),
    "http gzip": lambda running, image: over_http(running, image, True, request_compression_algorithm="gzip"),
    "http deflate both ways": lambda running, image: over_http(
        running,
        image,
        True,
        request_compression_algorithm="deflate",
        response_compression_algorithm="deflate",
    ),
    "http gzip back": lambda running, image: over_http(
        running, image, False, response_compression_algorithm="gzip"
    ),
    "http.aio": over_http_aio,
    "grpc": over_grpc,
    "grpc.aio": over_grpc_aio,
    "grpc stream": over_grpc_stream,
}


@pytest.mark.parametrize("way", WAYS)
def test_raw_tensors_get_the_engines_answer_to_the_bit(
    way: str, running: Running, image: Array, expected: Callable[[Array], Array]
) -> None:
    answer = WAYS[way](running, image)
    assert answer.dtype == np.float32
    np.testing.assert_array_equal(answer, expected(image))


def pressed_over_http(running: Running, images: list[Array]) -> list[Array]:
    with tritonclient.http.InferenceServerClient(running.http, concurrency=16) as client:
        requests = []
        for image in images:
            given = tritonclient.http.InferInput("image", image.shape, "FP32")
            given.set_data_from_numpy(image)
            requests.append(client.async_infer("tiny", [given]))
        return [request.get_result(timeout=60).as_numpy("logits") for request in requests]


def pressed_over_grpc(running: Running, images: list[Array]) -> list[Array]:
    answers: Queue[Any] = Queue()

    def keep(place: int, result: Any, error: Any) -> None:
        answers.put((place, result, error))

    with tritonclient.grpc.InferenceServerClient(running.grpc) as client:
        for place, image in enumerate(images):
            given = tritonclient.grpc.InferInput("image", image.shape, "FP32")
            given.set_data_from_numpy(image)
            client.async_infer("tiny", [given], partial(keep, place))
        found = sorted((answers.get(timeout=60) for _ in images), key=lambda each: each[0])
    assert [error for *_, error in found] == [None] * len(images)
    return [result.as_numpy("logits") for _, result, _ in found]


@pytest.mark.parametrize("press", [pressed_over_http, pressed_over_grpc])
def test_many_at_once_from_one_client_get_their_own_answers(
    running: Running,
    press: Callable[[Running, list[Array]], list[Array]],
    expected: Callable[[Array], Array],
) -> None:
    """As perf_analyzer asks: no answer waits for the one before."""
    rng = np.random.default_rng(3)
    images = [rng.standard_normal((1 + tag % 3, 3, 32, 32)).astype(np.float32) for tag in range(120)]
    for image, logits in zip(images, press(running, images), strict=True):
        np.testing.assert_allclose(logits, expected(image), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("library", [tritonclient.http, tritonclient.grpc], ids=["http", "grpc"])
def test_shared_memory_both_ways(
    library: Any, running: Running, image: Array, expected: Callable[[Array], Array]
) -> None:
    wanted = expected(image)
    name = f"saccade-test-{time.time_ns()}"
    region = shm.create_shared_memory_region("own", name, image.nbytes + wanted.nbytes)
    address = running.http if library is tritonclient.http else running.grpc
    try:
        shm.set_shared_memory_region(region, [image])
        with library.InferenceServerClient(address) as client:
            client.register_system_shared_memory("own", name, image.nbytes + wanted.nbytes)
            assert "own" in str(client.get_system_shared_memory_status())
            given = library.InferInput("image", image.shape, "FP32")
            given.set_shared_memory("own", image.nbytes)
            output = library.InferRequestedOutput("logits")
            output.set_shared_memory("own", wanted.nbytes, image.nbytes)
            result = client.infer("tiny", [given], outputs=[output])
            assert result.get_output("logits") is not None
            client.unregister_system_shared_memory("own")
            with pytest.raises(InferenceServerException, match="no region"):
                client.infer("tiny", [given])
        found = shm.get_contents_as_numpy(region, np.float32, wanted.shape, image.nbytes)
        np.testing.assert_array_equal(found, wanted)
    finally:
        shm.destroy_shared_memory_region(region)


@pytest.mark.parametrize(
    "key", ["../etc/passwd", "/etc/passwd", "a/b", "..", ".", "", "//x", "x\0y", "no-such-region"]
)
def test_a_region_is_one_name_in_dev_shm(key: str, running: Running) -> None:
    with (
        tritonclient.http.InferenceServerClient(running.http) as client,
        pytest.raises(InferenceServerException) as caught,
    ):
        client.register_system_shared_memory("own", key, 16)
    assert caught.value.status() == "422"


def test_a_region_that_is_cut_short_is_an_error_and_not_the_end(running: Running, image: Array) -> None:
    name = f"saccade-test-{time.time_ns()}"
    path = f"/dev/shm/{name}"
    with open(path, "wb") as file:
        file.write(image.tobytes())
    try:
        with tritonclient.http.InferenceServerClient(running.http) as client:
            client.register_system_shared_memory("cut", name, image.nbytes)
            with open(path, "r+b") as file:
                file.truncate(100)
            given = tritonclient.http.InferInput("image", image.shape, "FP32")
            given.set_shared_memory("cut", image.nbytes)
            with pytest.raises(InferenceServerException, match="shorter"):
                client.infer("tiny", [given])
            client.unregister_system_shared_memory("cut")
            assert client.is_server_live()
    finally:
        import os

        os.unlink(path)


def test_what_the_server_says_of_itself(running: Running) -> None:
    with (
        tritonclient.http.InferenceServerClient(running.http) as http,
        tritonclient.grpc.InferenceServerClient(running.grpc) as rpc,
    ):
        assert http.is_server_live()
        assert http.is_server_ready()
        assert http.is_model_ready("tiny")
        assert rpc.is_server_live()
        assert rpc.is_server_ready()
        assert rpc.is_model_ready("tiny", "1")
        for found in (http.get_model_metadata("tiny"), rpc.get_model_metadata("tiny", as_json=True)):
            assert found["inputs"][0]["datatype"] == "FP32"
            assert [int(size) for size in found["inputs"][0]["shape"]] == [-1, 3, 32, 32]
            assert found["platform"] == "onnxruntime_onnx"
        assert http.get_server_metadata()["name"] == rpc.get_server_metadata().name == "saccade"
        assert http.get_model_config("tiny")["max_batch_size"] == 8
        assert rpc.get_model_config("tiny").config.input[0].dims == [3, 32, 32]
        before = rpc.get_inference_statistics("tiny").model_stats[0]
        over_grpc(running, np.zeros((3, 3, 32, 32), np.float32))
        after = http.get_inference_statistics("tiny")["model_stats"][0]
        assert after["inference_count"] == before.inference_count + 3
        assert after["inference_stats"]["success"]["count"] == before.inference_stats.success.count + 1
        index = http.get_model_repository_index()
        assert index == [{"name": "tiny", "version": "1", "state": "READY", "reason": ""}]
        assert rpc.get_model_repository_index().models[0].state == "READY"


MISTAKES: dict[str, tuple[str, tuple[int, ...], str, str]] = {
    "unknown model": ("nope", (1, 3, 32, 32), "FP32", "unknown model"),
    "wrong shape": ("tiny", (1, 3, 32, 31), "FP32", "has shape"),
    "no rows": ("tiny", (0, 3, 32, 32), "FP32", "has shape"),
    "wrong type": ("tiny", (1, 3, 32, 32), "FP64", "has dtype"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_the_clients(name: str, running: Running) -> None:
    model, shape, datatype, message = MISTAKES[name]
    array = np.zeros(shape, {"FP32": np.float32, "FP64": np.float64}[datatype])
    for library, address in ((tritonclient.http, running.http), (tritonclient.grpc, running.grpc)):
        with library.InferenceServerClient(address) as client:
            given = library.InferInput("image", shape, datatype)
            given.set_data_from_numpy(array)
            with pytest.raises(InferenceServerException, match=message) as caught:
                client.infer(model, [given])
        assert caught.value.status() in ("404", "422", "StatusCode.NOT_FOUND", "StatusCode.INVALID_ARGUMENT")


def test_a_clients_deadline_ends_its_wait(own_bundle: Any, image: Array) -> None:
    with serving(own=own_bundle) as running:
        _, loaded = running.server.repository.model("own")
        engine = loaded.engines["model"]
        engine.batcher._run = lambda feeds: (time.sleep(1), engine.engine.run(feeds))[1]
        with tritonclient.grpc.InferenceServerClient(running.grpc) as client:
            given = tritonclient.grpc.InferInput("image", image.shape, "FP32")
            given.set_data_from_numpy(image)
            begun = time.monotonic()
            with pytest.raises(InferenceServerException, match=r"(?i)deadline"):
                client.infer("own", [given], client_timeout=0.2)
        with tritonclient.http.InferenceServerClient(running.http) as client:
            given = tritonclient.http.InferInput("image", image.shape, "FP32")
            given.set_data_from_numpy(image)
            with pytest.raises(InferenceServerException, match="no answer within 200") as caught:
                client.infer("own", [given], timeout=200_000)
            assert caught.value.status() == "504"
        assert time.monotonic() - begun < 0.9


def test_the_settings_of_these_tests_are_safe_by_default() -> None:
    assert type(SETTINGS)().host == "127.0.0.1"
    assert not type(SETTINGS)().shared_memory
