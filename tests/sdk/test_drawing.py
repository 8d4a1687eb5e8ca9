"""A drawing holds the picture, and a bar per class as long as its score."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageChops

import saccade
from saccade import Classification


def result(scores: list[float], *, untrained: bool = False) -> Classification:
    labels = tuple(f"class {i} with quite a long name, or several" for i in range(len(scores)))
    return Classification(labels, np.array(scores, np.float32), np.arange(len(scores)), untrained)


def bars(drawing: Image.Image, top: int) -> list[int]:
    """Lengths of the bars below `top`, in pixels, by their colours."""
    pixels = np.asarray(drawing)[top:].astype(int)
    blue = (pixels[..., 2] - pixels[..., 0]) > 30
    lengths = blue.sum(axis=1)
    starts = np.flatnonzero((lengths > 0) & (np.concatenate([[0], lengths[:-1]]) == 0))
    return [int(lengths[start : start + 40].max()) for start in starts]


def test_the_picture_is_on_top_unchanged() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8)
    drawing = saccade.draw(picture, result([0.7, 0.2, 0.1]))
    assert drawing.mode == "RGB"
    assert drawing.width == 400
    np.testing.assert_array_equal(np.asarray(drawing)[:300], picture)


def test_bars_are_as_long_as_scores() -> None:
    drawing = saccade.draw(np.zeros((300, 400, 3), np.uint8), result([0.15, 0.25, 0.6]))
    first, second, third = bars(drawing, 300)
    assert first / second == pytest.approx(0.6 / 0.25, rel=0.05)
    assert first / third == pytest.approx(0.6 / 0.15, rel=0.08)


@pytest.mark.parametrize("k", [1, 3, 5])
def test_k_classes_are_shown(k: int) -> None:
    heights = [
        saccade.draw(np.zeros((300, 400, 3), np.uint8), result([0.1] * 10), n).height for n in (k, k + 1)
    ]
    assert heights[0] < heights[1]


@pytest.mark.parametrize("size_hw", [(1, 1), (3, 2000), (2000, 3), (32, 32), (4000, 6000)])
def test_every_size_gives_a_sheet_one_can_look_at(size_hw: tuple[int, int]) -> None:
    drawing = saccade.draw(np.full((*size_hw, 3), 90, np.uint8), result([0.5, 0.5]))
    assert 320 <= drawing.width <= 1280
    assert drawing.height <= 6 * drawing.width


def test_an_untrained_result_is_marked() -> None:
    picture: Any = np.zeros((300, 400, 3), np.uint8)
    plain, marked = (saccade.draw(picture, result([0.5, 0.5], untrained=u)) for u in (False, True))
    assert marked.height > plain.height
    words = ImageChops.difference(
        marked.crop((0, plain.height - 10, 400, marked.height)),
        Image.new("RGB", (400, marked.height - plain.height + 10), (250, 250, 248)),
    )
    assert words.getbbox() is not None
