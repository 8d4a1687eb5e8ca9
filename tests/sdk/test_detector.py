"""Detectors: boxes and masks in the picture's own pixels, however it was resized, batched or tiled."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from tests.blobs import CARD, KEPT, LABELS, Blob, BlobEngine, detector, picture

import saccade
from saccade import BundleError, Detections, Detector, EngineError, InputError, InstanceSegmenter, UsageError
from saccade.engines.engine import Arrays, TensorSpec
from saccade.predictors.predictor import Predictor

TWO: tuple[Blob, ...] = ((4, 8, 44, 30, 0), (50, 20, 80, 60, 2))


def check(found: Detections, blobs: Sequence[Blob], within_px: float) -> None:
    """Every blob is found, and nothing else."""
    assert sorted(found.indices.tolist()) == sorted(blob[4] for blob in blobs)
    for blob in blobs:
        distance = np.abs(found.boxes_xyxy - blob[:4]).max(axis=1)
        distance[found.indices != blob[4]] = np.inf
        assert distance.min() <= within_px, (blob, found.boxes_xyxy)


def test_boxes_and_masks_of_a_picture() -> None:
    found = detector()(picture((64, 96), TWO))
    check(found, TWO, 0)
    assert found.labels == ("blue", "red")
    assert found.scores.tolist() == sorted(found.scores.tolist(), reverse=True)
    assert found.masks is not None
    for blob, mask in zip((TWO[1], TWO[0]), found.masks, strict=True):
        expected = np.zeros((64, 96), bool)
        expected[blob[1] : blob[3], blob[0] : blob[2]] = True
        # Interpolation between a mask's own border and nothing rounds its corners.
        assert np.count_nonzero(mask != expected) <= 4


@pytest.mark.parametrize("size_hw", [(128, 192), (32, 48), (480, 640), (300, 97), (64, 96)])
def test_answers_are_in_the_pixels_of_the_picture(size_hw: tuple[int, int]) -> None:
    height, width = size_hw
    blobs = [(width // 8, height // 8, width // 2, height // 2, 1)]
    found = detector()(picture(size_hw, blobs))
    check(found, blobs, 1 + max(size_hw) / 96)
    assert found.size_hw == size_hw
    assert found.masks is not None
    assert found.masks.shape == (1, *size_hw)


def test_an_answer_does_not_depend_on_its_companions() -> None:
    pictures = [
        picture(size, [(5, 5, size[1] // 2, 25, n % 3)]) for n, size in enumerate([(64, 96), (96, 64)] * 3)
    ]
    engine = BlobEngine()
    together = detector(engine)(pictures)
    assert engine.batches == [3, 3]
    for image, found in zip(pictures, together, strict=True):
        alone = detector()(image)
        np.testing.assert_array_equal(alone.boxes_xyxy, found.boxes_xyxy)
        assert alone.labels == found.labels


def test_nothing_found_is_an_empty_result() -> None:
    found = detector()(np.zeros((64, 96, 3), np.uint8))
    assert len(found) == 0
    assert found.to_json() == {"size_hw": [64, 96], "detections": []}
    assert found.summary() == "nothing found"


def test_more_objects_than_the_graph_gives_are_cut_off() -> None:
    blobs = [(8 * n, 8 * (n % 5), 8 * n + 5, 8 * (n % 5) + 5, n % 3) for n in range(11)]
    assert len(detector()(picture((64, 96), blobs))) == KEPT


@pytest.mark.parametrize("size_hw", [(1, 1), (3, 20_000), (20_000, 3), (7, 5)])
def test_pictures_of_extreme_shapes(size_hw: tuple[int, int]) -> None:
    found = detector()(np.full((*size_hw, 3), (255, 0, 0), np.uint8))
    np.testing.assert_allclose(found.boxes_xyxy, [[0, 0, size_hw[1], size_hw[0]]], rtol=1e-6)
    assert found.masks is not None
    assert found.masks.shape == (1, *size_hw)


class TestTiles:
    SIZE_HW = (200, 330)
    BLOBS: tuple[Blob, ...] = (
        (3, 5, 40, 30, 0),
        (90, 80, 105, 95, 1),
        (130, 20, 320, 40, 2),
        (60, 120, 75, 199, 0),
    )

    def test_what_is_too_small_at_once_is_found_in_tiles(self) -> None:
        image = picture(self.SIZE_HW, self.BLOBS)
        found = detector()(image, tile=(96, 24))
        check(found, self.BLOBS, 2)
        assert found.size_hw == self.SIZE_HW
        assert found.masks is not None
        covered = np.asarray(found.masks).any(axis=0)
        assert np.count_nonzero(covered != image.any(axis=2)) < 0.02 * covered.size

    def test_lists_files_streams_and_coroutines_take_tiles(self, tmp_path: Path) -> None:
        image = picture(self.SIZE_HW, self.BLOBS)
        Image.fromarray(image).save(tmp_path / "large.png")
        detect = detector()
        answers = [
            detect([image], tile=(96, 24))[0],
            detect(tmp_path / "large.png", tile=(96, 24)),
            next(iter(detect.stream(tmp_path, tile=(96, 24))))[1],
            asyncio.run(detect.acall(image, tile=(96, 24))),
            asyncio.run(detect.acall([image], tile=(96, 24)))[0],
        ]
        for found in answers:
            check(found, self.BLOBS, 2)

    def test_tiles_are_run_in_batches(self) -> None:
        engine = BlobEngine()
        detector(engine)(picture((400, 400), ()), tile=(100, 20))
        assert engine.batches == [8, 8, 8, 1]

    def test_a_tile_that_cannot_be_is_refused(self) -> None:
        with pytest.raises(UsageError, match="overlap"):
            detector()(picture((64, 96), ()), tile=(64, 64))


def test_a_stream_keeps_the_order() -> None:
    pictures = [picture((64, 96), [(4 * n, 8, 4 * n + 20, 30, n % 3)]) for n in range(7)]
    results = [found for _, found in detector().stream(pictures, batch_size=3, progress=False)]
    assert [each.boxes_xyxy[0, 0] for each in results] == [4.0 * n for n in range(7)]


def test_boxes_only() -> None:
    card = dataclasses.replace(CARD, task="detection")
    found = Detector({"model": BlobEngine(masks=False)}, card)(picture((64, 96), TWO))
    check(found, TWO, 0)
    assert found.masks is None


def test_a_graph_of_one_size_takes_pictures_of_any() -> None:
    """As of a plain vision transformer, whose position table fixes the size: all are padded to it."""
    engine = BlobEngine()
    engine.inputs["image"] = TensorSpec("image", "float32", ("batch", 3, 96, 96))
    square = dataclasses.replace(
        CARD.preprocessing, input_size_hw=(96, 96), resize_hw=(96, 96), pad_multiple=96
    )
    detect = detector(engine, dataclasses.replace(CARD, preprocessing=square))
    for found, image in zip(
        detect([picture((64, 96), TWO), picture((96, 50), TWO[:1])]), (TWO, TWO[:1]), strict=True
    ):
        check(found, image, 0)
    assert engine.batches == [2]
    with pytest.raises(BundleError, match="the graph takes"):
        detector(engine)


class Broken(BlobEngine):
    """Gives what no sound engine gives."""

    def __init__(self, output: str, value: float) -> None:
        super().__init__()
        self.broken = output, value

    def run(self, feeds: Arrays) -> dict[str, NDArray[Any]]:
        outputs = super().run(feeds)
        outputs[self.broken[0]][..., 0] = self.broken[1]
        return outputs


@pytest.mark.parametrize("output", ["boxes", "scores", "masks"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite_are_refused(output: str, value: float) -> None:
    with pytest.raises(EngineError, match=f"blobs gave {output} of blobs that are not finite"):
        detector(Broken(output, value))(picture((64, 96), TWO))


@pytest.mark.parametrize("value", [3, -1])
def test_a_class_without_a_label_is_refused(value: int) -> None:
    with pytest.raises(EngineError, match="its card has 3 labels"):
        detector(Broken("labels", value))(picture((64, 96), TWO))


def test_a_graph_without_masks_outlines_nothing() -> None:
    with pytest.raises(BundleError, match="gives no masks: export it again"):
        InstanceSegmenter({"model": BlobEngine(masks=False)}, CARD)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"boxes": None}, "lacks boxes"),
        ({"boxes": ("batch", 4)}, "'boxes' has the shape"),
        ({"scores": None, "count": None}, "lacks scores, count"),
    ],
)
def test_a_graph_of_another_kind_is_refused(change: dict[str, Any], message: str) -> None:
    engine = BlobEngine()
    for name, shape in change.items():
        if shape is None:
            del engine.outputs[name]
        else:
            engine.outputs[name] = TensorSpec(name, "float32", shape)
    with pytest.raises(BundleError, match=message):
        detector(engine)


def test_a_picture_that_cannot_be_read_is_named() -> None:
    with pytest.raises(InputError, match="picture 1 of 2"):
        detector()([picture((64, 96), ()), np.zeros((4, 4), np.uint8)])


def test_it_is_a_predictor_that_says_what_it_is() -> None:
    with detector() as detect:
        assert isinstance(detect, Predictor)
        assert isinstance(detect, saccade.Detector)
        assert repr(detect) == "InstanceSegmenter(blobs, 3 classes, blobs)"
        assert detect.labels == LABELS


def test_without_labels_classes_have_numbers() -> None:
    found = detector(card=dataclasses.replace(CARD, labels=()))(picture((64, 96), TWO))
    assert found.labels == ("2", "0")
