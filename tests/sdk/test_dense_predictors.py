"""Segmenters and depth estimators against what SciPy and torch make of the same graphs' answers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy.ndimage import map_coordinates

import saccade
from saccade.errors import BundleError, EngineError, UsageError
from saccade.models.card import Card, Preprocessing
from saccade.preprocess import batches
from saccade.tiling import tiles

CLASSES = 5
FIT = Preprocessing(
    input_size_hw=(64, 64),
    resize="fit",
    resize_hw=(64, 192),
    resampler="opencv-bilinear",
    mean_rgb=(0.4, 0.5, 0.6),
    std_rgb=(0.25, 0.25, 0.25),
    pad_multiple=32,
)
STRETCH = Preprocessing(input_size_hw=(64, 96), resize="stretch", resize_hw=(64, 96))
# Logits depend on the place and, a little, on the whole of what is seen: tiles disagree where they overlap.
SEGMENTER = """<ir_version: 9, opset_import: ["": 20]>
segmenter (float[batch, 3, height, width] image) => (float[batch, {classes}, h, w] logits) {{
    maps = Conv <kernel_shape = [4, 4], strides = [4, 4]> (image, kernel)
    context = GlobalAveragePool (maps)
    three = Constant <value = float {{3.0}}> ()
    added = Mul (context, three)
    logits = Add (maps, added)
}}
"""
DEPTH = """<ir_version: 9, opset_import: ["": 20]>
depth (float[batch, 3, height, width] image) => (float[batch, h, w] depth) {
    map = Conv <kernel_shape = [4, 4], strides = [4, 4]> (image, kernel)
    one = Constant <value = int64[1] {1}> ()
    flat = Squeeze (map, one)
    depth = Softplus (flat)
}
"""


def kernel(outputs: int) -> NDArray[np.float32]:
    return np.random.default_rng(5).standard_normal((outputs, 3, 4, 4)).astype(np.float32)


def write(path: Path, text: str, outputs: int, value: NDArray[np.float32] | None = None) -> Path:
    model = onnx.parser.parse_model(text)
    weights = kernel(outputs) if value is None else value
    model.graph.initializer.append(onnx.numpy_helper.from_array(weights, "kernel"))
    onnx.save(model, path)
    return path


def card(task: Any = "semantic_segmentation", how: Preprocessing = FIT, **more: Any) -> Card:
    return Card("dense", "test", task, how, **more)


@pytest.fixture
def segmenter(tmp_path: Path) -> Callable[..., Any]:
    def load(how: Preprocessing = FIT, classes: int = CLASSES, **more: Any) -> saccade.SemanticSegmenter:
        path = write(tmp_path / f"{classes}.onnx", SEGMENTER.format(classes=classes), classes)
        loaded = saccade.load(path, engine="onnxruntime", card=card(how=how, **more))
        assert isinstance(loaded, saccade.SemanticSegmenter)
        return loaded

    return load


def picture(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    """Smooth blobs, so that regions are larger than a cell."""
    rng = np.random.default_rng((seed, height, width))
    coarse = torch.from_numpy(rng.uniform(0, 255, (1, 3, max(2, height // 12), max(2, width // 12))))
    smooth = F.interpolate(coarse, (height, width), mode="bilinear")[0].permute(1, 2, 0)
    return np.asarray(smooth.numpy().astype(np.uint8))


def graph_answer(image: NDArray[np.float32]) -> NDArray[np.float32]:
    """(K, h, w): the segmenter's logits of one input, by torch."""
    maps = F.conv2d(torch.from_numpy(image[None]), torch.from_numpy(kernel(CLASSES)), stride=4)
    return np.asarray((maps + 3 * maps.mean((2, 3), keepdim=True))[0].numpy())


def sampled(grid: NDArray[np.float32], size_hw: tuple[int, int], per_pixel: tuple[float, float]) -> Any:
    """(h, w) at the centres of the pixels of a picture, by SciPy in float64."""
    rows, columns = ((np.arange(n) + 0.5) * scale - 0.5 for n, scale in zip(size_hw, per_pixel, strict=True))
    places = np.stack(np.meshgrid(rows, columns, indexing="ij"))
    return map_coordinates(grid.astype(np.float64), places, order=1, mode="nearest")


SIZES = [(64, 64), (97, 131), (40, 60), (1, 1), (3, 2), (1, 90), (210, 7), (128, 640)]


@pytest.mark.parametrize("size_hw", SIZES)
@pytest.mark.parametrize("how", [FIT, STRETCH], ids=["fit", "stretch"])
def test_every_pixel_has_the_class_of_the_largest_interpolated_logit(
    segmenter: Any, how: Preprocessing, size_hw: tuple[int, int]
) -> None:
    image = picture(*size_hw)
    (batch,) = batches([image], how)
    logits = graph_answer(batch.image[0])
    per_pixel = [
        resized / side / 4 for resized, side in zip(batch.resized_hw[0], size_hw, strict=True)
    ]  # a cell is four pixels of what the graph was fed
    values = np.sort(np.stack([sampled(each, size_hw, (per_pixel[0], per_pixel[1])) for each in logits]), 0)
    order = np.argmax(np.stack([sampled(each, size_hw, (per_pixel[0], per_pixel[1])) for each in logits]), 0)
    with segmenter(how) as segment:
        result = segment(image)
    assert result.labels.shape == size_hw
    assert result.labels.dtype == np.uint8
    clear = values[-1] - values[-2] > 1e-4
    assert clear.mean() > 0.9 or clear.size < 10
    np.testing.assert_array_equal(result.labels[clear], order[clear])


def test_a_list_is_answered_as_each_picture_alone(segmenter: Any) -> None:
    images = [picture(*size) for size in ((64, 64), (97, 131), (64, 64), (20, 61))]
    with segmenter() as segment:
        together = segment(images)
        for image, result in zip(images, together, strict=True):
            np.testing.assert_array_equal(result.labels, segment(image).labels)


def test_many_classes_need_two_bytes(segmenter: Any) -> None:
    with segmenter(classes=300) as segment:
        result = segment(picture(64, 80))
    assert result.labels.dtype == np.uint16
    assert result.names[299] == "299"


# --- tiles ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size_hw", [(50, 90), (64, 64), (1, 1), (5, 300)])
def test_a_tile_larger_than_the_picture_is_the_picture(segmenter: Any, size_hw: tuple[int, int]) -> None:
    image = picture(*size_hw)
    with segmenter() as segment:
        np.testing.assert_array_equal(segment(image, tile=(512, 64)).labels, segment(image).labels)


def slid(image: NDArray[np.uint8], size: int, overlap: int) -> tuple[Any, Any]:
    """mmsegmentation's slide mode: logits at full resolution, averaged over windows. Classes and margins."""
    height, width = image.shape[:2]
    total, count = np.zeros((CLASSES, height, width)), np.zeros((height, width))
    for tile in tiles((height, width), size, overlap):
        (batch,) = batches([image[tile.window]], FIT)
        cells = torch.from_numpy(graph_answer(batch.image[0])[None])
        full = F.interpolate(cells, batch.image.shape[2:], mode="bilinear")[0].numpy()
        total[:, *tile.window] += full[:, : tile.bottom - tile.top, : tile.right - tile.left]
        count[tile.window] += 1
    mean = total / count
    ordered = np.sort(mean, axis=0)
    return mean.argmax(0), ordered[-1] - ordered[-2]


@pytest.mark.parametrize("size_hw", [(64, 160), (160, 224), (150, 203)])
def test_tiles_are_averaged_as_mmsegmentation_does(segmenter: Any, size_hw: tuple[int, int]) -> None:
    """Logits are averaged before they are enlarged, there after: the same but in the rim of a tile, where
    enlarging repeats the last cell, and where a tile that was moved inside is off the others' grid."""
    image = picture(*size_hw)
    expected, margin = slid(image, 64, 32)
    with segmenter() as segment:
        tiled = segment(image, tile=(64, 32)).labels
        whole = segment(image).labels
    clear = margin > 0.1
    assert (tiled == expected)[clear].mean() > 0.985
    assert (whole == expected).mean() < 0.9, "tiles must matter"


def test_tiles_in_streams_and_coroutines(segmenter: Any) -> None:
    image = picture(100, 150)
    with segmenter() as segment:
        expected = segment(image, tile=(64, 16)).labels
        ((_, streamed),) = segment.stream([image], tile=(64, 16))
        awaited = asyncio.run(segment.acall([image], tile=(64, 16)))[0]
        np.testing.assert_array_equal(streamed.labels, expected)
        np.testing.assert_array_equal(awaited.labels, expected)
        with pytest.raises(UsageError, match=r"tile=\(64, 64\)"):
            segment(image, tile=(64, 64))


# --- refusals ------------------------------------------------------------------------------------------


def test_values_that_are_not_finite_are_an_error(tmp_path: Path) -> None:
    path = write(tmp_path / "nan.onnx", SEGMENTER.format(classes=2), 2, np.full((2, 3, 4, 4), np.nan, "f4"))
    with saccade.load(path, engine="onnxruntime", card=card()) as segment, pytest.raises(EngineError):
        segment(picture(64, 64))


@pytest.mark.parametrize(
    ("task", "how", "more", "message"),
    [
        ("semantic_segmentation", Preprocessing(), {}, "the graph takes|crops pictures"),
        ("semantic_segmentation", FIT, {"labels": ("a", "b")}, "2 labels, the graph 5 classes"),
        ("depth", FIT, {}, r"one output \(N, H, W\)"),
    ],
)
def test_graphs_and_cards_that_do_not_fit_are_refused(
    tmp_path: Path, task: str, how: Preprocessing, more: Any, message: str
) -> None:
    path = write(tmp_path / "segmenter.onnx", SEGMENTER.format(classes=CLASSES), CLASSES)
    with pytest.raises(BundleError, match=message):
        saccade.load(path, engine="onnxruntime", card=card(task, how, **more))


def test_a_depth_graph_is_no_segmenter(tmp_path: Path) -> None:
    path = write(tmp_path / "depth.onnx", DEPTH, 1)
    with pytest.raises(BundleError, match=r"one output \(N, classes, h, w\)"):
        saccade.load(path, engine="onnxruntime", card=card())


# --- depth ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size_hw", SIZES)
def test_depths_are_interpolated_at_every_pixel(tmp_path: Path, size_hw: tuple[int, int]) -> None:
    path = write(tmp_path / "depth.onnx", DEPTH, 1)
    image = picture(*size_hw)
    (batch,) = batches([image], FIT)
    cells = F.softplus(F.conv2d(torch.from_numpy(batch.image), torch.from_numpy(kernel(1)), stride=4))
    per_pixel = tuple(resized / side / 4 for resized, side in zip(batch.resized_hw[0], size_hw, strict=True))
    with saccade.load(path, engine="onnxruntime", card=card("depth", unit="metre")) as measure:
        assert isinstance(measure, saccade.DepthEstimator)
        result = measure(image)
    assert result.unit == "metre"
    assert result.depth.dtype == np.float32
    expected = sampled(cells[0, 0].numpy(), size_hw, (per_pixel[0], per_pixel[1]))
    np.testing.assert_allclose(result.depth, expected, rtol=1e-4, atol=1e-4)
