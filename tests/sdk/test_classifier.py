"""The predictor: from pictures to classes on every engine, alone, in lists, in streams, in threads."""

from __future__ import annotations

import asyncio
import dataclasses
import io
import json
import logging
import os
import pty
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from PIL import Image
from tests import tiny

import saccade
from saccade import Classifier
from saccade.bundle import Bundle
from saccade.engines.engine import ENGINES
from saccade.errors import BundleError, ClosedError, EngineError, InputError, MissingDependency, UsageError
from saccade.preprocess import Batch, batches

ROOT = Path(__file__).resolve().parents[2]
Rgb = np.ndarray[Any, np.dtype[np.uint8]]

ONE = Batch(np.zeros((1, 3, 32, 32), np.float32), (0,), ((48, 64),), ((36, 48),))


@pytest.fixture(scope="module")
def classify(tiny_bundle: Bundle) -> Iterator[Classifier]:
    with saccade.load(tiny_bundle.path) as predictor:
        yield predictor


def pictures(count: int) -> list[Rgb]:
    rng = np.random.default_rng(1)
    return [rng.integers(0, 256, (40 + i, 90 - i, 3), dtype=np.uint8) for i in range(count)]


def expected_scores(picture: Any) -> Any:
    """By way of ONNX's reference evaluator and the textbook softmax."""
    logits = tiny.logits(batches([picture], tiny.CARD.preprocessing)[0].image)[0].astype(np.float64)
    return np.exp(logits) / np.exp(logits).sum()


@pytest.mark.parametrize("engine", [name for name, backend in ENGINES.items() if not backend.built])
def test_every_engine_gives_the_same_classes(tiny_bundle: Bundle, noise: Rgb, engine: str) -> None:
    with saccade.load(tiny_bundle.path, engine, prove=True) as predictor:
        result = predictor(noise)
        assert predictor.engine_name == engine
    assert result.labels == tiny.LABELS
    np.testing.assert_allclose(result.scores, expected_scores(noise), rtol=1e-4)
    assert result.scores.dtype == np.float32
    assert not result.untrained


def test_a_list_gives_a_list_and_a_picture_a_result(classify: Classifier) -> None:
    many = pictures(3)
    results = classify(many)
    assert [len(result) for result in results] == [10, 10, 10]
    for picture, result in zip(many, results, strict=True):
        np.testing.assert_allclose(result.scores, classify(picture).scores, rtol=1e-5)
    assert classify(tuple(many))[2].labels == tiny.LABELS
    assert classify([]) == []


def test_the_steps_can_be_called_on_their_own(classify: Classifier, noise: Rgb) -> None:
    (batch,) = classify.preprocess([noise, noise])
    assert (batch.image.shape, batch.image.dtype) == ((2, 3, 32, 32), np.float32)
    results = classify.postprocess(classify.engine.run({"image": batch.image}), batch)
    np.testing.assert_array_equal(results[1].scores, classify([noise, noise])[1].scores)


def test_every_spelling_of_a_picture(classify: Classifier, noise: Rgb, tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    Image.fromarray(noise).save(path)
    expected = classify(noise).scores
    for spelling in (str(path), path, path.read_bytes(), Image.fromarray(noise)):
        np.testing.assert_array_equal(classify(spelling).scores, expected)


def test_extreme_logits_do_not_overflow(classify: Classifier) -> None:
    (result,) = classify.postprocess({"logits": np.array([[3e38] + [-3e38] * 9], np.float32)}, ONE)
    assert result.scores.tolist() == [1.0] + [0.0] * 9


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_logits_that_are_no_numbers_are_an_error(classify: Classifier, wrong: float) -> None:
    with pytest.raises(EngineError, match="not finite"):
        classify.postprocess({"logits": np.array([[wrong] + [0.0] * 9], np.float32)}, ONE)


def test_64_threads_share_one_predictor(classify: Classifier) -> None:
    many = pictures(64)
    expected = [classify(picture).scores for picture in many]
    with ThreadPoolExecutor(64) as pool:
        results = list(pool.map(classify, many * 3))
    for result, scores in zip(results, expected * 3, strict=True):
        np.testing.assert_allclose(result.scores, scores, rtol=1e-5)


def test_acall_leaves_the_event_loop_free(classify: Classifier) -> None:
    async def all_at_once() -> list[Any]:
        return await asyncio.gather(*(classify.acall(picture) for picture in pictures(5)))

    results = asyncio.run(all_at_once())
    for picture, result in zip(pictures(5), results, strict=True):
        np.testing.assert_allclose(result.scores, classify(picture).scores, rtol=1e-5)


def test_use_after_close(tiny_bundle: Bundle, noise: Rgb) -> None:
    predictor = saccade.load(tiny_bundle.path)
    predictor.close()
    predictor.close()
    with pytest.raises(ClosedError, match="load it again"):
        predictor(noise)


FORK = """
import os, sys, warnings
import numpy as np, saccade
warnings.simplefilter("ignore")  # Python 3.12 warns of forking a process with threads; that is the point
classify = saccade.load(sys.argv[1])
picture = np.zeros((9, 9, 3), np.uint8)
classify(picture)
child = os.fork()
if child == 0:
    try:
        classify(picture)
    except saccade.ClosedError as error:
        print(error, flush=True)
    os._exit(0)
os.waitpid(child, 0)
print(len(classify(picture)), flush=True)
"""


def test_use_after_fork(tiny_bundle: Bundle) -> None:
    command = [sys.executable, "-c", FORK, str(tiny_bundle.path)]
    child = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    refusal, answer = child.stdout.splitlines()
    assert "load it in the child" in refusal
    assert answer == "10"


def test_a_picture_that_cannot_be_used_is_named(classify: Classifier, tmp_path: Path, noise: Rgb) -> None:
    path = tmp_path / "cut.png"
    content = io.BytesIO()
    Image.fromarray(noise).save(content, "png")
    path.write_bytes(content.getvalue()[:200])
    with pytest.raises(InputError, match=r"cut\.png"):
        classify([noise, path])


@pytest.mark.parametrize("size_hw", [(1, 1), (3, 20000), (20000, 3)])
def test_extreme_pictures_are_classified(classify: Classifier, size_hw: tuple[int, int]) -> None:
    assert classify(np.full((*size_hw, 3), 77, np.uint8)).scores.sum() == pytest.approx(1, abs=1e-5)


# Streams


def test_stream_over_a_folder(classify: Classifier, tmp_path: Path) -> None:
    for i, picture in enumerate(pictures(5)):
        Image.fromarray(picture).save(tmp_path / f"{i}.png")
    streamed = list(classify.stream(tmp_path, batch_size=2))
    assert [path for path, _ in streamed] == [tmp_path / f"{i}.png" for i in range(5)]
    for path, result in streamed:
        np.testing.assert_allclose(result.scores, classify(path).scores, rtol=1e-5)  # type: ignore[call-overload]


def test_stream_over_an_iterator_is_lazy(classify: Classifier) -> None:
    taken = []

    def endless() -> Iterator[Rgb]:
        while True:
            taken.append(1)
            yield pictures(1)[0]

    stream = classify.stream(endless(), batch_size=3)
    for _ in range(4):
        picture, result = next(stream)
    assert len(taken) == 6
    assert len(result) == 10
    assert isinstance(picture, np.ndarray)


def test_stream_over_a_video(classify: Classifier, tmp_path: Path) -> None:
    import cv2

    path = tmp_path / "clip.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 10, (64, 48))
    for grey in (0, 128, 255):
        writer.write(np.full((48, 64, 3), grey, np.uint8))
    writer.release()
    streamed = list(classify.stream(path, batch_size=2))
    assert len(streamed) == 3
    frame: Any = streamed[1][0]
    np.testing.assert_allclose(streamed[1][1].scores, classify(frame).scores, rtol=1e-5)


def test_a_bad_stream_fails_at_the_call(classify: Classifier, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        classify.stream(tmp_path / "nowhere")
    with pytest.raises(UsageError, match="batch_size is 0"):
        classify.stream([], batch_size=0)


STREAM = """
import sys
import numpy as np, saccade
with saccade.load(sys.argv[1]) as classify:
    print(len(list(classify.stream([np.zeros((9, 9, 3), np.uint8)] * 20))))
"""


def test_off_a_terminal_a_stream_is_silent(tiny_bundle: Bundle) -> None:
    command = [sys.executable, "-c", STREAM, str(tiny_bundle.path)]
    child = subprocess.run(command, capture_output=True, text=True, check=True)
    assert (child.stdout, child.stderr) == ("20\n", "")


def test_on_a_terminal_a_stream_shows_a_bar_on_standard_error(tiny_bundle: Bundle) -> None:
    reader, terminal = pty.openpty()
    command = [sys.executable, "-c", STREAM, str(tiny_bundle.path)]
    environment = {**os.environ, "TERM": "xterm"}
    child = subprocess.run(command, stdout=subprocess.PIPE, stderr=terminal, env=environment, check=True)
    shown = os.read(reader, 1 << 16).decode()
    os.close(reader)
    os.close(terminal)
    assert child.stdout == b"20\n"
    assert "predicting" in shown
    assert "20/20" in shown


# Loading


def test_load_by_name(tiny_bundle: Bundle, empty_home: Path, noise: Rgb) -> None:
    shutil.copytree(tiny_bundle.path, empty_home / "my_tiny")
    with saccade.load("my_tiny") as predictor:
        assert len(predictor(noise)) == 10


def test_auto_says_what_it_took(tiny_bundle: Bundle, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "saccade"), saccade.load(tiny_bundle.path) as predictor:
        assert predictor.engine_name == "onnxruntime"
        assert repr(predictor) == "Classifier(tiny, 10 classes, onnxruntime)"
    assert "tiny runs on onnxruntime (cpu)" in caplog.text


@pytest.mark.parametrize("name", ["graphs/source.onnx", "graphs/source.bin", "conformance.npz"])
def test_a_changed_byte_is_found_before_anything_is_answered(
    tiny_bundle: Bundle, tmp_path: Path, name: str
) -> None:
    folder = Path(shutil.copytree(tiny_bundle.path, tmp_path / "copy"))
    content = bytearray((folder / name).read_bytes())
    content[-5] ^= 0x40
    (folder / name).write_bytes(content)
    with pytest.raises(BundleError, match="has changed"):
        saccade.load(folder)


def test_a_changed_byte_in_large_weights_is_found(tmp_path: Path, noise: Rgb) -> None:
    def add_large(folder: Path) -> None:
        (folder / "graphs" / "large.bin").write_bytes(bytes(5 * 2**20))

    made = tiny.write_bundle(tmp_path / "large", also=add_large)
    with saccade.load(made.path) as predictor:
        predictor(noise)
    with (made.path / "graphs" / "large.bin").open("r+b") as file:
        file.seek(2**20)
        file.write(b"\x01")
    with pytest.raises(BundleError, match=r"large\.bin has changed"):
        saccade.load(made.path)
    saccade.load(made.path, check=False).close()


def test_proving_finds_an_engine_that_computes_something_else(tmp_path: Path) -> None:
    def shift(folder: Path) -> None:
        with np.load(folder / "conformance.npz") as sample:
            arrays = dict(sample)
        arrays["output:logits"][1, 3] += 0.01
        np.savez(folder / "conformance.npz", **arrays)

    made = tiny.write_bundle(tmp_path / "shifted", also=shift)
    saccade.load(made.path).close()
    with pytest.raises(BundleError, match=r"'logits' differs by 0\.01, tolerance 0\.0001"):
        saccade.load(made.path, prove=True)


def test_proving_without_a_sample_is_refused(tmp_path: Path) -> None:
    made = tiny.write_bundle(tmp_path / "bare", also=lambda folder: (folder / "conformance.npz").unlink())
    with pytest.raises(BundleError, match=r"no conformance\.npz"):
        saccade.load(made.path, prove=True)


def test_an_untrained_bundle_says_so_everywhere(
    tmp_path: Path, noise: Rgb, caplog: pytest.LogCaptureFixture
) -> None:
    made = tiny.write_bundle(tmp_path / "random", untrained=True)
    with saccade.load(made.path) as predictor:
        assert predictor.untrained
        assert "UNTRAINED" in repr(predictor)
        assert predictor(noise).untrained
    assert "tiny is untrained" in caplog.text


@pytest.mark.parametrize(
    ("card", "said"),
    [
        (dataclasses.replace(tiny.CARD, labels=("one", "two")), "2 labels, the graph 10 classes"),
        (tiny.with_preprocessing(input_size_hw=(48, 32)), r"makes \(N, 3, 48, 32\)"),
    ],
)
def test_a_card_that_does_not_fit_the_graph_is_refused(tmp_path: Path, card: Any, said: str) -> None:
    with pytest.raises(BundleError, match=said):
        saccade.load(tiny.write_bundle(tmp_path / "odd", card).path)


def test_a_task_without_a_predictor_is_refused(tmp_path: Path) -> None:
    card = dataclasses.replace(tiny.CARD, task="features")
    with pytest.raises(UsageError, match="made for features; there are predictors for classification, embed"):
        saccade.load(tiny.write_bundle(tmp_path / "tower", card).path)


def test_an_onnx_file_with_its_card_inside(tmp_path: Path, noise: Rgb) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(tiny.model({"saccade.card": json.dumps(tiny.CARD.to_json())}), path)
    with saccade.load(path) as predictor:
        np.testing.assert_allclose(predictor(noise).scores, expected_scores(noise), rtol=1e-4)


def test_an_onnx_file_from_elsewhere_with_a_card(tmp_path: Path, noise: Rgb) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(tiny.model(), path)
    with pytest.raises(UsageError, match="pass card="):
        saccade.load(path)
    card_file = tmp_path / "card.json"
    card_file.write_text(json.dumps(tiny.CARD.to_json()))
    for card in (tiny.CARD, card_file, str(card_file)):
        with saccade.load(path, card=card) as predictor:
            assert predictor(noise).top(1).labels == (tiny.LABELS[int(expected_scores(noise).argmax())],)


def test_classes_without_labels_are_numbered(tmp_path: Path, noise: Rgb) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(tiny.model(), path)
    with saccade.load(path, card=dataclasses.replace(tiny.CARD, labels=())) as predictor:
        assert predictor(noise).labels == tuple("0123456789")


@pytest.mark.parametrize(
    ("name", "options", "error", "said"),
    [
        ("nowhere.onnx", {}, UsageError, "does not exist"),
        ("nowhere", {}, UsageError, "no bundle"),
        ("model.onnx", {"prove": True}, UsageError, "needs a bundle"),
        ("model.onnx", {"card": "nowhere.json"}, UsageError, r"nowhere\.json cannot be read"),
        ("model.onnx", {"engine": "tensorflow"}, UsageError, "no engine is called"),
        ("bundle", {"card": tiny.CARD}, UsageError, "brings its own card"),
        ("bundle", {"device": "tpu"}, UsageError, "write cpu"),
        ("bundle", {"engine": "openvino", "device": "cuda"}, UsageError, "CPU only"),
        ("bundle", {"device": "cuda"}, MissingDependency, "gpu"),
    ],
)
def test_what_cannot_be_loaded_says_why(
    tiny_bundle: Bundle, tmp_path: Path, name: str, options: Any, error: Any, said: str
) -> None:
    if options == {"device": "cuda"} and "CUDAExecutionProvider" in available_providers():
        pytest.skip("this ONNX Runtime is built for CUDA")
    onnx.save(tiny.model(), tmp_path / "model.onnx")
    shutil.copytree(tiny_bundle.path, tmp_path / "bundle")
    with pytest.raises(error, match=said):
        saccade.load(tmp_path / name, **options)


def available_providers() -> list[str]:
    import onnxruntime

    providers: list[str] = onnxruntime.get_available_providers()
    return providers


def test_a_prediction_loads_no_pillow_plugin_nor_rich(tiny_bundle: Bundle) -> None:
    program = (
        "import sys, numpy as np, saccade\n"
        "saccade.load(sys.argv[1])(np.zeros((9, 9, 3), np.uint8))\n"
        "print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    )
    child = subprocess.run(
        [sys.executable, "-c", program, tiny_bundle.path], capture_output=True, text=True, check=True
    )
    loaded = set(child.stdout.split())
    assert "onnxruntime" in loaded
    assert not loaded & {"torch", "onnx", "timm", "matplotlib", "rich", "typer", "cv2", "openvino", "scipy"}
