"""Masks: pasted as mmdet pastes them, written as pycocotools writes them, and small until looked at."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from pycocotools import mask as coco
from tests import parity

from saccade import UsageError
from saccade.results.masks import Masks, Part, paste

RNG = np.random.default_rng(0)


def boxes(count: int, size_hw: tuple[int, int]) -> NDArray[np.float32]:
    """Boxes of all sizes, some of them partly outside."""
    height, width = size_hw
    centres, sizes = RNG.random((count, 2)) * (width, height), RNG.random((count, 2)) * (width, height)
    return np.concatenate([centres - sizes / 2, centres + sizes / 2], axis=1).astype(np.float32)


def test_pasting_is_mmdets() -> None:
    reference = parity.load("detection", "mask_paste")
    size_hw = tuple(reference.config["image_hw"])
    maps, where = reference.arrays["masks"], reference.arrays["boxes"]
    expected = np.unpackbits(reference.arrays["binary"], axis=-1)[..., : size_hw[1]].astype(bool)
    pasted = np.asarray(Masks.from_maps(maps, where, (size_hw[0], size_hw[1])))
    # One value of the reference lies within 1e-4 of the threshold.
    assert np.count_nonzero(pasted != expected) <= reference.spec["margins"]["pixels_within_1e4_of_half"]
    for row, soft in enumerate(reference.arrays["soft"]):
        whole = paste(maps[row], tuple(where[row].tolist()), (0, size_hw[0]), (0, size_hw[1]))
        np.testing.assert_allclose(whole[::2, ::2], soft, rtol=0, atol=1e-5)


def test_only_the_pixels_of_the_box_are_computed_and_no_others_are_set() -> None:
    size_hw = (61, 83)
    where, maps = boxes(40, size_hw), RNG.random((40, 28, 28), dtype=np.float32)
    rows = torch.arange(size_hw[0]) + 0.5
    columns = torch.arange(size_hw[1]) + 0.5
    for row, pasted in enumerate(Masks.from_maps(maps, where, size_hw)):
        left, top, right, bottom = where[row].tolist()
        down = (rows - top) / (bottom - top) * 2 - 1
        across = (columns - left) / (right - left) * 2 - 1
        grid = torch.stack(torch.meshgrid(across, down, indexing="xy"), dim=-1)[None]
        values = torch.from_numpy(maps[row])[None, None]
        soft = torch.nn.functional.grid_sample(values, grid, align_corners=False)[0, 0].numpy()
        sure = np.abs(soft - 0.5) > 1e-5
        np.testing.assert_array_equal(pasted[sure], (soft >= 0.5)[sure])


@pytest.mark.parametrize("enlarged", [1, 7])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_runs_are_those_of_pycocotools(share: float, enlarged: int) -> None:
    for _ in range(20):
        small = RNG.random(RNG.integers(1, 30, 2)) < share
        pixels = np.kron(small, np.ones((enlarged, enlarged), bool))
        expected = coco.encode(np.asfortranarray(pixels.astype(np.uint8)))
        assert Masks.from_array(pixels[None]).to_coco(0) == {
            "size": list(expected["size"]),
            "counts": expected["counts"].decode(),
        }


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of pycocotools
def test_runs_of_pasted_masks_too() -> None:
    masks = Masks.from_maps(RNG.random((30, 28, 28), dtype=np.float32), boxes(30, (300, 200)), (300, 200))
    for row, pixels in enumerate(masks):
        runs: Any = masks.to_coco(row)
        np.testing.assert_array_equal(coco.decode(runs).astype(bool), pixels)


def test_an_array_survives() -> None:
    pixels = RNG.random((5, 20, 30)) < 0.2
    pixels[1] = False
    masks = Masks.from_array(pixels)
    np.testing.assert_array_equal(np.asarray(masks), pixels)
    assert masks.areas().tolist() == pixels.sum(axis=(1, 2)).tolist()
    assert masks[-1].tolist() == pixels[-1].tolist()


def test_a_mask_of_several_parts_is_their_union() -> None:
    pixels = RNG.random((2, 20, 30)) < 0.1
    first, second = (part for (part,) in Masks.from_array(pixels).parts)
    np.testing.assert_array_equal(Masks(((first, second),), (20, 30))[0], pixels[0] | pixels[1])


def test_a_hundred_masks_of_a_large_picture_stay_small() -> None:
    maps = np.ones((100, 28, 28), np.float32)
    masks = Masks.from_maps(maps, np.tile(np.float32([0, 0, 4000, 3000]), (100, 1)), (3000, 4000))
    held = sum(part.values.nbytes + sys.getsizeof(part) for parts in masks.parts for part in parts)
    assert held < 2**20
    assert masks.shape == (100, 3000, 4000)
    assert masks[3].mean() > 0.99  # all but the corners, where both axes fade


@pytest.mark.parametrize(
    "box", [(-50.0, -50.0, -10.0, -10.0), (100.0, 5.0, 120.0, 9.0), (3.2, 3.2, 3.4, 3.4)]
)
def test_a_box_beside_the_picture_or_between_pixels_has_no_pixels(box: Any) -> None:
    masks = Masks(((Part(np.ones((28, 28), np.float32), box),),), (20, 30))
    assert not masks[0].any()
    assert (
        masks.to_coco(0)["counts"] == coco.encode(np.zeros((20, 30), np.uint8, order="F"))["counts"].decode()
    )


@pytest.mark.parametrize("pixels", [np.zeros((3, 4), bool), np.zeros((1, 3, 4), np.uint8)])
def test_an_array_of_another_kind_is_refused(pixels: Any) -> None:
    with pytest.raises(UsageError, match="bool"):
        Masks.from_array(pixels)
