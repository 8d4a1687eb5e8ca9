"""A picture in, the predictor's own answer out: JSON or a drawing, whatever the task."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image
from tests.sdk.serving import two_towers
from tests.sdk.serving.conftest import SETTINGS, Running, serving

import saccade
from saccade.bundle import Bundle

PREDICT = "/v1/models/tiny/predict"


@pytest.fixture(scope="module")
def jpeg() -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG")
    return stream.getvalue()


@pytest.fixture(scope="module")
def client(running: Running) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=f"http://{running.http}", timeout=30) as client:
        yield client


@pytest.fixture(scope="module")
def predictor(tiny_bundle: Bundle) -> Iterator[Any]:
    with saccade.load(tiny_bundle.path, threads=1) as predictor:
        yield predictor


def test_a_raw_picture_and_a_form_get_the_predictors_answer(
    client: httpx.Client, predictor: Any, jpeg: bytes
) -> None:
    expected = predictor(jpeg).to_json(5)
    assert client.post(PREDICT, content=jpeg).json() == expected
    form = {"file": ("street.jpg", jpeg, "image/jpeg")}
    assert client.post(PREDICT, files=form).json() == expected
    three = client.post(PREDICT, files=form, data={"top": "3"})
    assert three.json() == predictor(jpeg).to_json(3) == client.post(f"{PREDICT}?top=3", content=jpeg).json()


def test_a_threshold_keeps_the_better_answers(client: httpx.Client, predictor: Any, jpeg: bytes) -> None:
    result = predictor(jpeg)
    limit = float(np.sort(result.scores)[-2])
    found = client.post(f"{PREDICT}?threshold={limit!r}", content=jpeg).json()
    assert found == result[result.scores >= limit].to_json(5)
    assert len(found["predictions"]) == 2


def test_a_drawing_is_the_sdks_to_the_pixel(client: httpx.Client, predictor: Any, jpeg: bytes) -> None:
    answer = client.post(PREDICT, content=jpeg, headers={"Accept": "image/png"})
    assert answer.headers["content-type"] == "image/png"
    drawn = np.asarray(Image.open(io.BytesIO(answer.content)))
    np.testing.assert_array_equal(drawn, np.asarray(saccade.draw(jpeg, predictor(jpeg))))


def test_many_pictures_at_once_each_get_their_own_answer(running: Running, predictor: Any) -> None:
    import asyncio

    rng = np.random.default_rng(1)
    pictures = []
    for _ in range(40):
        stream = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)).save(stream, "PNG")
        pictures.append(stream.getvalue())

    async def ask() -> list[Any]:
        async with httpx.AsyncClient(base_url=f"http://{running.http}", timeout=30) as client:
            answers = await asyncio.gather(*(client.post(PREDICT, content=each) for each in pictures))
            return [answer.json() for answer in answers]

    for answer, picture in zip(asyncio.run(ask()), pictures, strict=True):
        expected = predictor(picture).top(5)
        assert [row["index"] for row in answer["predictions"]] == expected.indices.tolist()
        # Rows that share a run may differ in the last bits: kernels depend on the batch.
        np.testing.assert_allclose(
            [row["score"] for row in answer["predictions"]], expected.scores, rtol=1e-5
        )


MISTAKES: dict[str, tuple[dict[str, Any], int, str]] = {
    "no picture": ({"content": b""}, 422, "no picture"),
    "no image": ({"content": b"hello"}, 422, "not a picture"),
    "half a form": ({"content": b"--x", "headers": {"Content-Type": "multipart/form-data"}}, 422, "form"),
    "a form with no file": ({"files": {"top": (None, "3")}}, 422, "one file"),
    "two files": ({"files": [("a", b"1"), ("b", b"2")]}, 422, ""),
    "unknown option": ({"content": b"x", "params": {"colour": "red"}}, 422, "takes top, threshold"),
    "an option of another task": ({"content": b"x", "params": {"prompts": "a dog"}}, 422, "takes top"),
    "top twice": ({"content": b"x", "params": [("top", 1), ("top", 2)]}, 422, "2 times"),
    "top of none": ({"content": b"x", "params": {"top": 0}}, 422, "top is '0'"),
    "no threshold": ({"content": b"x", "params": {"threshold": "nan"}}, 422, "0 to 1"),
    "bad timeout": ({"content": b"x", "params": {"timeout_ms": "soon"}}, 422, "milliseconds"),
    "a kind that is not made": ({"content": b"x", "headers": {"Accept": "text/html"}}, 406, "image/png"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_the_clients(name: str, client: httpx.Client) -> None:
    given, status, message = MISTAKES[name]
    answer = client.post(PREDICT, **given)
    assert answer.status_code == status, answer.text
    assert message in answer.json()["error"]


def test_a_picture_of_too_many_pixels_is_not_decoded(tiny_bundle: Bundle) -> None:
    stream = io.BytesIO()
    Image.new("RGB", (400, 300)).save(stream, "PNG")
    with serving(SETTINGS.replace(max_picture_pixels=100_000, grpc_port=None), tiny=tiny_bundle.path) as own:
        answer = httpx.post(f"http://{own.http}{PREDICT}", content=stream.getvalue())
    assert answer.status_code == 422
    assert "400x300" in answer.json()["error"]


def test_two_towers_are_two_models_and_take_their_classes_in_words(tmp_path: Path, jpeg: bytes) -> None:
    bundle = two_towers.write(tmp_path / "towers")
    words = ["a dog", "a cat", "a bicycle"]
    with (
        serving(SETTINGS.replace(grpc_port=None), clip=bundle) as own,
        saccade.load(bundle, threads=1) as predictor,
        httpx.Client(base_url=f"http://{own.http}") as client,
    ):
        found = client.post("/v1/models/clip/predict", content=jpeg, params={"prompts": words})
        assert found.json() == predictor(jpeg, words).to_json(5)  # type: ignore[call-overload]
        assert client.post("/v1/models/clip/predict", content=jpeg).status_code == 422
        named = {each["name"] for each in client.post("/v2/repository/index").json()}
        assert named == {"clip", "clip.text"}
        tokens = predictor.embed.tokenizer(words)  # type: ignore[attr-defined]
        tensor = {"name": "tokens", "datatype": "INT64", "shape": list(tokens.shape), "data": tokens.tolist()}
        answer = client.post("/v2/models/clip.text/infer", json={"inputs": [tensor]}).json()["outputs"][0]
        expected = predictor.engines["text"].run({"tokens": tokens})["embeddings"]
        np.testing.assert_array_equal(np.float32(answer["data"]).reshape(answer["shape"]), expected)
        assert client.post("/v1/models/clip.text/predict", content=jpeg).status_code == 404
        refused = client.post("/v2/repository/models/clip.text/load")
        assert (refused.status_code, "part of the bundle clip" in refused.text) == (400, True)


def test_openapi_describes_every_model_with_its_options(client: httpx.Client) -> None:
    described = client.get("/openapi.json").json()
    assert described["openapi"] == "3.1.0"
    predict = described["paths"][PREDICT]["post"]
    assert {each["name"] for each in predict["parameters"]} == {"top", "threshold", "timeout_ms"}
    for path, operations in described["paths"].items():
        for method in operations:
            # What is not there cannot be forgotten or unloaded: the server says so in its own words.
            name = "none" if "shared" in path or "unload" in path else "tiny"
            called = client.request(method, path.replace("{name}", name))
            assert called.status_code in (200, 404, 422), (path, called.text)
            assert called.status_code != 404 or called.json()["error"] != "Not Found", path
    assert json.dumps(described)
