"""Objects on a picture: what is not theirs stays as it was, and every label can be read."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import saccade
from saccade import Detections
from saccade.drawing.labels import place
from saccade.results.masks import Masks


def found(
    boxes: Any, size_hw: tuple[int, int], *, masks: bool = False, untrained: bool = False
) -> Detections:
    """Objects of falling score, one class each."""
    columns = np.array(boxes, np.float32).reshape(-1, 4)
    count = len(columns)
    maps = np.ones((count, 28, 28), np.float32)
    return Detections(
        columns,
        np.linspace(0.9, 0.3, count).astype(np.float32),
        tuple(f"class {row}" for row in range(count)),
        np.arange(count),
        size_hw,
        Masks.from_maps(maps, columns, size_hw) if masks else None,
        untrained,
    )


def changed(picture: NDArray[np.uint8], result: Detections, **options: Any) -> NDArray[np.bool_]:
    drawing = np.asarray(saccade.draw(picture, result, **options))
    assert drawing.shape == picture.shape
    return (drawing != picture).any(axis=2)


GREY = np.full((600, 800, 3), 90, np.uint8)


def test_without_objects_the_picture_is_unchanged() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (600, 800, 3), dtype=np.uint8)
    drawing = saccade.draw(picture, found([], (600, 800)))
    assert drawing.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(drawing), picture)


def test_a_box_is_outlined_and_empty_inside() -> None:
    touched = changed(GREY, found([[300, 200, 500, 400]], (600, 800)))
    assert touched[210:390, [300, 499]].all()
    assert touched[[200, 399], 310:490].all()
    assert not touched[210:390, 310:490].any()
    assert not touched[:, :290].any()


def test_a_mask_is_translucent() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (600, 800, 3), dtype=np.uint8)
    result = found([[300, 200, 500, 400]], (600, 800), masks=True)
    drawing = np.asarray(saccade.draw(picture, result))
    inside, before = drawing[230:370, 330:470].astype(float), picture[230:370, 330:470].astype(float)
    assert (inside != before).any(axis=2).mean() > 0.95
    for channel in range(3):
        assert np.corrcoef(inside[..., channel].ravel(), before[..., channel].ravel())[0, 1] > 0.99


def test_the_colour_of_a_class_does_not_depend_on_the_picture() -> None:
    result = found([[10, 100, 200, 300], [300, 100, 500, 300]], (600, 800))
    both, second = (np.asarray(saccade.draw(GREY, each)) for each in (result, result[1:]))
    np.testing.assert_array_equal(both[150:250, 300], second[150:250, 300])
    assert (both[150:250, 10] != both[150:250, 300]).any()


def test_top_draws_the_best() -> None:
    result = found([[10, 100, 200, 300], [300, 100, 500, 300]], (600, 800))
    assert not changed(GREY, result, top=1)[:, 250:].any()
    assert changed(GREY, result)[:, 250:].any()


def test_labels_stay_clear_of_each_other_where_there_is_room() -> None:
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, [700, 500], (25, 2))
    boxes: list[Any] = np.concatenate([corners, corners + rng.uniform(40, 100, (25, 2))], axis=1).tolist()
    placed: list[Any] = []
    for box in boxes:
        placed.append(place((70, 18), box, placed, boxes, (800, 600)))
    for left, top, right, bottom in placed:
        assert 0 <= left < right <= 800
        assert 0 <= top < bottom <= 600
    hidden = [
        min(a[2], b[2]) > max(a[0], b[0]) and min(a[3], b[3]) > max(a[1], b[1])
        for a, b in combinations(placed, 2)
    ]
    assert sum(hidden) == 0


@pytest.mark.parametrize("size_hw", [(1, 1), (3, 20_000), (20_000, 3), (32, 32), (3000, 4000)])
def test_every_size_can_be_drawn(size_hw: tuple[int, int]) -> None:
    height, width = size_hw
    whole = [[0, 0, width, height], [width * 0.4, height * 0.4, width * 0.6, height * 0.6]]
    drawing = saccade.draw(np.full((*size_hw, 3), 90, np.uint8), found(whole, size_hw, masks=True))
    assert 480 <= max(drawing.size) <= 2560


def test_boxes_beyond_the_border_are_drawn_at_it() -> None:
    touched = changed(GREY, found([[-50, -50, 900, 700]], (600, 800)))
    assert touched[100:500, 0].all()
    assert touched[100:500, 799].all()


def test_an_untrained_result_is_marked() -> None:
    assert changed(GREY, found([], (600, 800), untrained=True))[-20:, -100:].any()
