"""Mean IoU against counting pixel by pixel, and label maps that cannot be compared."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from PIL import Image
from typer.testing import CliRunner

import saccade
from saccade.cli import app
from saccade.errors import InputError, UsageError
from saccade.evaluation import evaluate
from saccade.evaluation.segmentation import overlap
from saccade.models.card import Card, Preprocessing

NAMES = ("red", "green", "blue", "grey")
# The logit of a colour is its channel; grey's is a constant. One cell per pixel.
GRAPH = """<ir_version: 9, opset_import: ["": 20]>
colours (float[batch, 3, height, width] image) => (float[batch, 4, height, width] logits) {
    red = Constant <value = float[1] {0.5}> ()
    zero = Constant <value = float {0.0}> ()
    ones = Mul (image, zero)
    mean = ReduceMean <keepdims = 1> (ones, axes)
    grey = Add (mean, red)
    logits = Concat <axis = 1> (image, grey)
}
"""
CARD = Card(
    "colours",
    "test",
    "semantic_segmentation",
    Preprocessing(
        input_size_hw=(24, 32),
        resize="fit",
        resize_hw=(24, 32),
        mean_rgb=(0, 0, 0),
        std_rgb=(1, 1, 1),
    ),
    labels=NAMES,
)


@pytest.fixture
def segment(tmp_path: Path) -> Any:
    model = onnx.parser.parse_model(GRAPH)
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([1]), "axes"))
    onnx.save(model, tmp_path / "colours.onnx")
    with saccade.load(tmp_path / "colours.onnx", engine="onnxruntime", card=CARD) as loaded:
        yield loaded


def answer(image: NDArray[np.uint8]) -> NDArray[np.int64]:
    """What the graph finds in a picture (24, 32, 3)."""
    values = np.concatenate([image / 255, np.full((*image.shape[:2], 1), 0.5)], axis=-1)
    return values.argmax(-1)


def write(folder: Path, name: str, image: NDArray[Any], labels: NDArray[Any]) -> None:
    for part, pixels in (("images", image), ("labels", labels)):
        path = folder / part / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)


def pictures(count: int) -> list[tuple[NDArray[np.uint8], NDArray[np.uint8]]]:
    rng = np.random.default_rng(3)
    made = []
    for _ in range(count):
        image = rng.integers(0, 256, (24, 32, 3), dtype=np.uint8)
        labels = np.where(rng.random((24, 32)) < 0.6, answer(image), rng.integers(0, 3, (24, 32)))
        labels[rng.random((24, 32)) < 0.1] = 255
        made.append((image, labels.astype(np.uint8)))
    return made


def test_mean_iou_is_what_counting_gives(segment: Any, tmp_path: Path) -> None:
    made = pictures(5)
    for index, (image, labels) in enumerate(made):
        write(tmp_path, f"{'sub/' if index % 2 else ''}{index}", image, labels)
    truth = [int(v) for _, labels in made for v in labels.ravel()]
    found = [int(v) for image, _ in made for v in answer(image).ravel()]
    pairs = [(t, f) for t, f in zip(truth, found, strict=True) if t != 255]
    ious = [
        sum(t == f == c for t, f in pairs) / sum(c in (t, f) for t, f in pairs) for c in range(len(NAMES))
    ]
    steps: list[tuple[int, int]] = []
    report = evaluate(segment, tmp_path, batch=2, progress=lambda *step: steps.append(step))
    data = report.to_json()
    assert data["pictures"] == 5
    assert [row["iou"] for row in data["classes"]] == pytest.approx([100 * iou for iou in ious])
    assert data["mean_iou"] == pytest.approx(100 * sum(ious) / 4)
    assert data["accuracy"] == pytest.approx(100 * sum(t == f for t, f in pairs) / len(pairs))
    assert steps == [(2, 5), (4, 5), (5, 5)]
    table = report.table()
    assert [row[0] for row in table.rows] == list(NAMES)
    assert "mean IoU" in table.closing


def test_right_answers_are_a_hundred_percent(segment: Any, tmp_path: Path) -> None:
    image = pictures(1)[0][0]
    write(tmp_path, "one", image, answer(image).astype(np.uint8))
    assert evaluate(segment, tmp_path).to_json()["mean_iou"] == 100


def test_palettes_sixteen_bits_and_files_that_count_from_one(segment: Any, tmp_path: Path) -> None:
    (image, labels), *_ = pictures(1)
    write(tmp_path / "grey", "one", image, labels)
    expected = evaluate(segment, tmp_path / "grey")
    write(tmp_path / "wide", "one", image, labels.astype(np.uint16))
    assert evaluate(segment, tmp_path / "wide") == expected
    write(tmp_path / "palette", "one", image, labels)
    indexed = Image.fromarray(labels, mode=None).convert("L")
    indexed.putpalette([0, 0, 0] * 256)
    indexed.save(tmp_path / "palette/labels/one.png")
    assert evaluate(segment, tmp_path / "palette") == expected
    from_one = np.where(labels == 255, 0, labels + 1).astype(np.uint8)
    write(tmp_path / "one", "one", image, from_one)
    assert evaluate(segment, tmp_path / "one", first_label=1) == expected


def test_classes_without_pixels_are_left_out_of_the_mean() -> None:
    counts = np.array([[6, 2, 0], [0, 2, 0], [0, 0, 0]])
    report = overlap(counts, ("a", "b", "c"), 1)
    assert [row.label for row in report.classes] == ["a", "b"]
    assert report.mean_iou == pytest.approx(100 * (6 / 8 + 2 / 4) / 2)
    assert report.classes[1].precision == 50
    assert overlap(np.array([[0, 3], [0, 0]]), ("a", "b"), 1).classes[0].precision is None


@pytest.mark.parametrize(
    ("labels", "error", "message"),
    [
        (np.zeros((24, 31), np.uint8), InputError, r"is \(24, 31\), its picture \(24, 32\)"),
        (np.full((24, 32), 4, np.uint8), InputError, "label 4: this model has 4 classes.*first_label"),
        (np.zeros((24, 32, 3), np.uint8), InputError, "one whole number per pixel"),
        (np.full((24, 32), 255, np.uint8), UsageError, "leave every pixel out"),
    ],
)
def test_label_maps_that_do_not_fit_are_named(
    segment: Any, tmp_path: Path, labels: NDArray[Any], error: type[Exception], message: str
) -> None:
    write(tmp_path, "one", np.zeros((24, 32, 3), np.uint8), labels)
    with pytest.raises(error, match=message):
        evaluate(segment, tmp_path)


def test_folders_that_lack_something_are_named(segment: Any, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="needs two folders: images/ and labels/"):
        evaluate(segment, tmp_path)
    write(tmp_path, "one", np.zeros((24, 32, 3), np.uint8), np.zeros((24, 32), np.uint8))
    (tmp_path / "labels/one.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"one\.png cannot be read as a label map"):
        evaluate(segment, tmp_path)
    (tmp_path / "labels/one.png").unlink()
    with pytest.raises(UsageError, match="1 of 1 pictures have no label map"):
        evaluate(segment, tmp_path)
    (tmp_path / "images/one.png").unlink()
    with pytest.raises(UsageError, match="holds no pictures"):
        evaluate(segment, tmp_path)


# --- the command line ----------------------------------------------------------------------------------


def run(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(each) for each in arguments])


def test_the_command_line_segments_and_measures(segment: Any, tmp_path: Path) -> None:
    model = onnx.load(tmp_path / "colours.onnx")
    model.metadata_props.add(key="saccade.card", value=json.dumps(CARD.to_json()))
    onnx.save(model, tmp_path / "colours.onnx")
    image, labels = pictures(1)[0]
    write(tmp_path, "one", image, labels)
    picture, graph = tmp_path / "images/one.png", tmp_path / "colours.onnx"
    told = run(
        "predict", graph, picture, "--json", "--tile", "16,8", "--top", "1", "--out", tmp_path / "drawn"
    )
    assert told.exit_code == 0, told.output
    line = json.loads(told.output)
    found = np.repeat(line["runs"]["indices"], line["runs"]["lengths"]).reshape(24, 32)
    np.testing.assert_array_equal(found, segment(image, tile=(16, 8)).labels)
    assert len(line["areas"]) == 1
    assert [path.name for path in (tmp_path / "drawn").iterdir()] == ["one.png.png"]
    measured = run("evaluate", graph, "--data", tmp_path, "--tile", "512,64", "--json")
    assert json.loads(measured.output)["mean_iou"] == evaluate(segment, tmp_path).to_json()["mean_iou"]
    shifted = run("evaluate", graph, "--data", tmp_path, "--first-label", "1")
    assert "mean IoU" in shifted.output
