"""Preprocessing equals what the models were trained with: torchvision, timm, OpenCV, mmdet, to the bit."""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import timm.data
import torch
from PIL import Image
from torchvision import transforms
from torchvision.transforms import InterpolationMode

from saccade import opencv_resize
from saccade.errors import InputError
from saccade.models.card import Preprocessing
from saccade.preprocess import batches, resized_size

DATA = Path(__file__).resolve().parents[1] / "data" / "detection"
MODES = {"pillow-bilinear": InterpolationMode.BILINEAR, "pillow-bicubic": InterpolationMode.BICUBIC}
# Odd, tiny, flat, tall, already right, smaller than the crop.
SIZES_HW = [
    (1, 1),
    (3, 500),
    (500, 3),
    (17, 23),
    (36, 36),
    (36, 91),
    (64, 36),
    (97, 131),
    (333, 77),
    (480, 641),
]
CARD = Preprocessing(input_size_hw=(32, 32), resize_hw=(36, 36))


def picture(size_hw: tuple[int, int]) -> Any:
    """Noise and a gradient: every filter tap and every rounding shows."""
    rng = np.random.default_rng(size_hw[0] * 1009 + size_hw[1])
    noise = rng.integers(0, 256, (*size_hw, 3), dtype=np.uint8)
    noise[: size_hw[0] // 2] = np.linspace(0, 255, size_hw[1]).astype(np.uint8)[:, None]
    return noise


def torchvision_reference(card: Preprocessing) -> transforms.Compose:
    target = card.resize_hw[0] if card.resize == "shorter" else card.resize_hw
    return transforms.Compose(
        [
            transforms.Resize(target, MODES[card.resampler]),
            transforms.CenterCrop(card.input_size_hw),
            transforms.ToTensor(),
            transforms.Normalize(card.mean_rgb, card.std_rgb),
        ]
    )


def one(pixels: Any, card: Preprocessing) -> np.ndarray[Any, np.dtype[np.float32]]:
    """The input (3, H, W) that one picture becomes."""
    (batch,) = batches([pixels], card)
    return batch.image[0]


@pytest.mark.parametrize("size_hw", SIZES_HW)
@pytest.mark.parametrize("resampler", MODES)
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"resize": "stretch", "resize_hw": (40, 34)},
        {"input_size_hw": (41, 29), "resize_hw": (37, 37)},
        {"input_size_hw": (64, 51), "resize_hw": (33, 33), "mean_rgb": (0.5, 0.4, 0.3)},
        {"input_size_hw": (36, 36), "mean_rgb": (0.0, 0.0, 0.0), "std_rgb": (1.0, 1.0, 1.0)},
    ],
    ids=["crop", "stretch", "taller than resized", "larger than resized", "unscaled"],
)
def test_equals_torchvision_to_the_bit(
    size_hw: tuple[int, int], resampler: Any, changes: dict[str, Any]
) -> None:
    card = dataclasses.replace(CARD, resampler=resampler, **changes)
    pixels = picture(size_hw)
    expected = torchvision_reference(card)(Image.fromarray(pixels)).numpy()
    actual = one(pixels, card)
    assert actual.dtype == np.float32
    assert actual.flags.c_contiguous
    np.testing.assert_array_equal(actual.view(np.uint32), expected.view(np.uint32))


@pytest.mark.parametrize("size_hw", [(225, 300), (640, 427), (256, 256), (200, 150)])
@pytest.mark.parametrize(
    "card",
    [
        Preprocessing(resize_hw=(235, 235)),
        Preprocessing(resize_hw=(248, 248), mean_rgb=(0.481, 0.458, 0.408), std_rgb=(0.269, 0.261, 0.276)),
        Preprocessing(input_size_hw=(256, 256), resize_hw=(256, 256), resampler="pillow-bilinear"),
        Preprocessing(input_size_hw=(384, 384), resize="stretch", resize_hw=(384, 384)),
    ],
    ids=["imagenet", "clip", "bilinear", "stretch"],
)
def test_equals_timms_transform_to_the_bit(card: Preprocessing, size_hw: tuple[int, int]) -> None:
    transform: Any = timm.data.create_transform(
        input_size=(3, *card.input_size_hw),
        crop_pct=card.input_size_hw[0] / (card.resize_hw[0] + 0.5),  # timm rounds down
        crop_mode="squash" if card.resize == "stretch" else "center",
        interpolation=card.resampler.removeprefix("pillow-"),
        mean=card.mean_rgb,
        std=card.std_rgb,
    )
    pixels = picture(size_hw)
    expected = transform(Image.fromarray(pixels)).numpy()
    np.testing.assert_array_equal(one(pixels, card), expected)


def test_every_grey_level_is_normalised_as_torch_does_it() -> None:
    pixels = np.repeat(np.arange(256, dtype=np.uint8), 3 * 4).reshape(32, 32, 3)
    card = dataclasses.replace(CARD, resize="stretch", resize_hw=(32, 32))
    scaled = torch.from_numpy(pixels).permute(2, 0, 1).float().div(255)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (card.mean_rgb, card.std_rgb))
    np.testing.assert_array_equal(one(pixels, card), scaled.sub(mean).div(std).numpy())


def test_a_batch_is_its_pictures() -> None:
    pictures = [picture(size_hw) for size_hw in SIZES_HW]
    (batch,) = batches(pictures, CARD)
    assert batch.image.shape == (len(pictures), 3, 32, 32)
    assert batch.originals_hw == tuple(SIZES_HW)
    for pixels, row in zip(pictures, batch.image, strict=True):
        np.testing.assert_array_equal(one(pixels, CARD), row)


@pytest.mark.parametrize(("resampler", "levels"), [("pillow-bilinear", 1), ("pillow-bicubic", 2)])
def test_very_long_pictures_are_resized_in_part_almost_to_the_bit(resampler: Any, levels: int) -> None:
    # 256 x 68,266 pixels when resized: the reference still fits into memory.
    card = Preprocessing(resampler=resampler, mean_rgb=(0.0,) * 3, std_rgb=(1 / 255,) * 3)
    pixels = picture((3, 800))
    whole = Image.fromarray(pixels).resize((68266, 256), getattr(Image.Resampling, resampler[7:].upper()))
    left, top = round((68266 - 224) / 2), 16
    expected = np.asarray(whole.crop((left, top, left + 224, top + 224))).transpose(2, 0, 1)
    assert np.abs(one(pixels, card) - expected).max() <= levels + 1e-3


@pytest.mark.parametrize("resampler", ["pillow-bicubic", "pillow-bilinear", "opencv-bilinear"])
@pytest.mark.parametrize("size_hw", [(3, 20000), (20000, 3), (1, 1), (1, 60000)])
def test_extreme_shapes_work(size_hw: tuple[int, int], resampler: Any) -> None:
    pixels = np.full((*size_hw, 3), 128, np.uint8)
    made = one(pixels, Preprocessing(resampler=resampler, mean_rgb=(0.0,) * 3, std_rgb=(1.0,) * 3))
    assert made.shape == (3, 224, 224)
    np.testing.assert_array_equal(made, np.float32(128) / np.float32(255))


def opencv_sizes() -> list[tuple[int, int, int, int]]:
    rng = np.random.default_rng(5)
    fixed = [(64, 48, 32, 24), (64, 48, 32, 48), (7, 9, 7, 9), (1, 1, 9, 5), (1, 40, 20, 1), (63, 65, 31, 32)]
    larger = [(427, 640, 800, 1199), (1080, 720, 224, 149), (600, 801, 300, 400), (512, 512, 256, 256)]
    return [*fixed, *larger, *map(tuple, rng.integers(1, 140, (120, 4)).tolist())]


def test_opencvs_resize_without_opencv_is_equal_to_the_bit() -> None:
    for height, width, *size_hw in opencv_sizes():
        pixels = picture((height, width))
        expected = cv2.resize(pixels, tuple(size_hw[::-1]), interpolation=cv2.INTER_LINEAR)
        for actual in (
            opencv_resize.resize_in_numpy(pixels, tuple(size_hw)),
            opencv_resize.resize(pixels, tuple(size_hw)),
        ):
            np.testing.assert_array_equal(actual, expected, err_msg=f"{height}x{width} to {size_hw}")


def test_a_part_of_opencvs_resize_is_that_part() -> None:
    pixels, rows, columns = picture((50, 70)), slice(11, 60), slice(3, 44)
    for size_hw in [(80, 60), (25, 35), (50, 70)]:
        whole = opencv_resize.resize_in_numpy(pixels, size_hw)
        part = opencv_resize.resize_in_numpy(pixels, size_hw, rows, columns)
        np.testing.assert_array_equal(part, whole[rows, columns])


def test_equals_mmdets_pipeline() -> None:
    description = json.loads((DATA / "preprocess.json").read_text())
    config, meta = description["config"], description["meta"]
    with np.load(DATA / "preprocess.npz") as arrays:
        stored = dict(arrays)
    long, short = config["scale_long_short"]
    card = Preprocessing(
        resize="fit",
        resize_hw=(short, long),
        resampler="opencv-bilinear",
        mean_rgb=tuple(config["mean_rgb"]),
        std_rgb=tuple(config["std_rgb"]),
        value_range=1.0,
        pad_multiple=config["pad_divisor"],
    )
    rgb = np.ascontiguousarray(stored["image_bgr"][..., ::-1])
    assert resized_size(rgb.shape[:2], card) == tuple(meta["img_shape"][:2])
    np.testing.assert_array_equal(
        opencv_resize.resize_in_numpy(rgb, tuple(meta["img_shape"][:2])), stored["resized_bgr"][..., ::-1]
    )
    # mmcv multiplies by a reciprocal kept in float64; a division differs in the last bit.
    np.testing.assert_allclose(one(rgb, card)[None], stored["tensor"], rtol=0, atol=1e-6)


def test_fit_pads_each_picture_alone_and_shares_a_batch_by_size() -> None:
    card = Preprocessing(resize="fit", resize_hw=(80, 133), resampler="opencv-bilinear", pad_multiple=32)
    wide, tall, narrow = picture((50, 90)), picture((90, 50)), picture((53, 91))
    first, second = batches([wide, tall, narrow], card)
    assert (first.places, second.places) == ((0, 2), (1,))
    assert (first.originals_hw, first.resized_hw) == (((50, 90), (53, 91)), ((74, 133), (77, 133)))
    assert (first.image.shape, second.image.shape) == ((2, 3, 96, 160), (1, 3, 160, 96))
    np.testing.assert_array_equal(first.image[1], one(narrow, card))
    assert not first.image[0, :, 74:].any()
    assert first.image[0, :, 73].any()
    assert batches([], card) == []


def test_every_spelling_of_a_picture_is_the_same_input(tmp_path: Path) -> None:
    pixels = picture((60, 50))
    path = tmp_path / "picture.png"
    Image.fromarray(pixels).save(path)
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "png")
    spellings = [
        pixels,
        str(path),
        path,
        content.getvalue(),
        Image.fromarray(pixels),
        pixels[:, ::-1][:, ::-1],
    ]
    (batch,) = batches(spellings, CARD)
    for row in batch.image:
        np.testing.assert_array_equal(row, batch.image[0])


def test_the_picture_that_is_wrong_is_named() -> None:
    good = picture((4, 4))
    with pytest.raises(InputError, match=r"picture 1 of 2 has dtype float32"):
        batches([good, good.astype(np.float32)], CARD)
