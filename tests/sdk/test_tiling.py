"""Tiles cover the picture, and what they saw of one object is one object: objects at every position."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from itertools import pairwise, product

import numpy as np
import pytest
from numpy.typing import NDArray

from saccade import UsageError
from saccade.results.detections import Detections
from saccade.results.masks import Masks
from saccade.tiling import Tile, merge, tiles

SIZE_HW = (150, 210)
SIZE, OVERLAP = 80, 24
LABELS = ("cat", "dog")
Truth = tuple[int, int, int, int, int]  # left, top, right, bottom, class


def seen(
    tile: Tile, truth: Sequence[Truth], jitter: float = 0.0, rng: np.random.Generator | None = None
) -> Detections:
    """What a faultless detector finds in a tile: the visible part of every object, an ellipse as its mask.

    jitter: how far its boxes are off, in pixels; it does not see what is narrower than four times that.
    """
    rng = rng or np.random.default_rng(0)
    rows = [(box, outline(box)[tile.window]) for box in truth]
    rows = [(box, mask) for box, mask in rows if mask.any() and narrowest(mask) >= 4 * jitter]
    boxes = np.array([around(mask) for _, mask in rows], np.float32).reshape(-1, 4)
    boxes += rng.uniform(-jitter, jitter, boxes.shape).astype(np.float32)
    height, width = tile.bottom - tile.top, tile.right - tile.left
    return Detections(
        boxes.clip(0, [width, height, width, height]).astype(np.float32),
        rng.uniform(0.5, 1, len(rows)).astype(np.float32),
        tuple(LABELS[box[4]] for box, _ in rows),
        np.array([box[4] for box, _ in rows], np.int64),
        (height, width),
        Masks.from_array(np.array([mask for _, mask in rows], bool).reshape(-1, height, width)),
    )


@cache
def outline(truth: Truth) -> NDArray[np.bool_]:
    left, top, right, bottom, _ = truth
    rows, columns = np.mgrid[: SIZE_HW[0], : SIZE_HW[1]] + 0.5
    down = (2 * rows - top - bottom) / (bottom - top)
    across = (2 * columns - left - right) / (right - left)
    return np.asarray(down**2 + across**2 <= 1, bool)


def around(mask: NDArray[np.bool_]) -> tuple[int, int, int, int]:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def narrowest(mask: NDArray[np.bool_]) -> int:
    left, top, right, bottom = around(mask)
    return min(right - left, bottom - top)


def tiled(truth: Sequence[Truth], jitter: float = 0.0, seed: int = 0) -> Detections:
    rng = np.random.default_rng(seed)
    parts = [(tile, seen(tile, truth, jitter, rng)) for tile in tiles(SIZE_HW, SIZE, OVERLAP)]
    return merge(parts, SIZE_HW)


def overlap(one: NDArray[np.float32], other: Sequence[float]) -> float:
    """Intersection over union of two boxes."""
    corners = np.array([one, other], np.float64)
    common = np.maximum(corners[:, 2:].min(0) - corners[:, :2].max(0), 0).prod()
    return float(common / ((corners[:, 2:] - corners[:, :2]).prod(axis=1).sum() - common))


def check(found: Detections, truth: Sequence[Truth], least: float) -> None:
    """One detection for each object, of its class, and none besides."""
    assert sorted(found.indices.tolist()) == sorted(box[4] for box in truth), found.boxes_xyxy
    for box in truth:
        likeness = [
            overlap(row, box[:4]) if index == box[4] else 0.0
            for row, index in zip(found.boxes_xyxy, found.indices.tolist(), strict=True)
        ]
        assert max(likeness) >= least, (box, found.boxes_xyxy)


@pytest.mark.parametrize(
    ("size_hw", "size", "share"),
    [((150, 210), 80, 24), ((80, 80), 80, 1), ((50, 300), 64, 63), ((1, 1), 32, 8), ((1000, 70), 99, 33)],
)
def test_tiles_cover_the_picture_and_overlap(size_hw: tuple[int, int], size: int, share: int) -> None:
    covered = np.zeros(size_hw, int)
    for tile in tiles(size_hw, size, share):
        window = covered[tile.window]
        assert window.shape == (min(size, size_hw[0]), min(size, size_hw[1]))
        window += 1
    assert covered.min() >= 1
    for axis in ("top", "left"):
        starts = sorted({getattr(tile, axis) for tile in tiles(size_hw, size, share)})
        assert all(size - (after - before) >= share for before, after in pairwise(starts))


@pytest.mark.parametrize(("size", "share"), [(64, 64), (64, 0), (64, -1), (0, 0)])
def test_an_overlap_that_cannot_work_is_refused(size: int, share: int) -> None:
    with pytest.raises(UsageError, match="the overlap is less than the size"):
        tiles((100, 100), size, share)


@pytest.mark.parametrize("side", [9, 20, 60, 100], ids=lambda side: f"{side}px")
def test_an_object_anywhere_is_one_object(side: int) -> None:
    """Smaller than the overlap, larger than it, larger than a tile."""
    height, width = SIZE_HW
    for left, top in product(range(0, width - side, 9), range(0, height - side, 17)):
        truth = (left, top, left + side, top + side, 0)
        found = tiled([truth])
        check(found, [truth], 1.0 if side <= OVERLAP else 0.97)
        assert found.masks is not None
        np.testing.assert_array_equal(found.masks[0], outline(truth))


@pytest.mark.parametrize("seed", range(4))
def test_boxes_that_are_a_little_off_are_joined_too(seed: int) -> None:
    height, width = SIZE_HW
    rng = np.random.default_rng(seed)
    for _ in range(30):
        across, down = rng.integers(20, 90, 2)
        left, top = int(rng.integers(0, width - across)), int(rng.integers(0, height - down))
        truth = (left, top, left + int(across), top + int(down), 0)
        check(tiled([truth], jitter=1.0, seed=seed), [truth], 0.75)


def test_neighbours_of_one_class_stay_apart_at_every_position() -> None:
    for left in range(0, SIZE_HW[1] - 62, 5):
        truth = [(left, 30, left + 30, 62, 0), (left + 32, 32, left + 62, 60, 0)]
        check(tiled(truth), truth, 0.95)


def test_an_object_in_front_of_a_larger_one_stays_apart() -> None:
    for left in range(0, SIZE_HW[1] - 60, 5):
        truth = [(left, 40, left + 60, 100, 0), (left + 20, 55, left + 44, 80, 0)]
        check(tiled(truth), truth, 0.95)


def test_objects_of_two_classes_at_one_place_stay_apart() -> None:
    for left in range(0, SIZE_HW[1] - 60, 5):
        truth = [(left, 40, left + 60, 100, 0), (left + 1, 41, left + 61, 99, 1)]
        check(tiled(truth), truth, 0.9)


def test_a_piece_taken_for_another_class_gives_way_to_the_whole() -> None:
    whole, half = (60, 20, 90, 60), (60, 20, 80, 60)  # the first tile ends at 80, the second begins at 56
    first, second = tiles((80, 136), 80, 24)
    columns = {"masks": None, "size_hw": (80, 80)}
    cut = Detections(
        np.array([half], np.float32), np.array([0.9], np.float32), ("dog",), np.array([1]), **columns
    )
    moved = np.array([whole], np.float32) - np.array([56, 0, 56, 0], np.float32)
    seen_whole = Detections(moved, np.array([0.6], np.float32), ("cat",), np.array([0]), **columns)
    found = merge([(first, cut), (second, seen_whole)], (80, 136))
    assert found.labels == ("cat",)
    np.testing.assert_array_equal(found.boxes_xyxy, [whole])
    assert merge([(first, cut), (second, seen_whole[:0])], (80, 136)).labels == ("dog",)


def test_a_piece_that_two_tiles_take_for_another_class_gives_way_too() -> None:
    """Its lower end is all that the two lower tiles see of the object, and both see a dog."""
    upper, *lower = Tile(20, 0, 100, 80), Tile(0, 56, 80, 136), Tile(40, 56, 120, 136)
    whole, end = (45, 40, 75, 76), (45, 56, 75, 76)

    def single(tile: Tile, box: tuple[int, ...], index: int) -> tuple[Tile, Detections]:
        corner = np.array([tile.left, tile.top] * 2, np.float32)
        score = np.array([0.9], np.float32)
        boxes = np.array([box], np.float32) - corner
        return tile, Detections(boxes, score, (LABELS[index],), np.array([index]), (80, 80))

    pieces = [single(tile, end, 1) for tile in lower]
    assert merge([single(upper, whole, 0), *pieces], (136, 120)).labels == ("cat",)
    assert merge(pieces, (136, 120)).labels == ("dog",)
    # A dog that some tile sees whole is there, whatever stands in front of it.
    dog = single(Tile(30, 40, 110, 120), end, 1)
    assert sorted(merge([single(upper, whole, 0), *pieces, dog], (136, 120)).labels) == ["cat", "dog"]


def test_detections_of_one_tile_are_left_as_they_are() -> None:
    truth = [(10, 10, 40, 40, 0), (12, 12, 42, 42, 0)]
    tile = Tile(0, 0, SIZE_HW[1], SIZE_HW[0])
    found = merge([(tile, seen(tile, truth))], SIZE_HW)
    assert len(found) == 2
    assert found.scores[0] >= found.scores[1]


def test_nothing_found_is_nothing() -> None:
    found = tiled([])
    assert len(found) == 0
    assert found.boxes_xyxy.shape == (0, 4)
    assert found.masks is not None
    assert found.masks.shape == (0, *SIZE_HW)
