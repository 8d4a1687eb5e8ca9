"""The demo's pictures: the same for the same seed, and nothing of the held-out part in training."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from digits import scenes


@pytest.mark.parametrize("part", ["train", "held-out"])
def test_short_set_begins_long_one(part: scenes.Part) -> None:
    short, long = scenes.render(part, 6, seed=3), scenes.render(part, 12, seed=3)
    assert np.array_equal(short.images, long.images[:6])
    assert np.array_equal(short.labels, long.labels[:6])


def test_another_seed_gives_other_pictures() -> None:
    assert not np.array_equal(scenes.render("train", 4, 0).images, scenes.render("train", 4, 1).images)


def test_every_digit_is_used_before_one_is_used_again() -> None:
    labels = scenes.held_out(2 * scenes.HELD_OUT_GLYPHS).labels
    first, second = np.split(labels, 2)
    assert np.array_equal(first, second)
    assert np.bincount(first, minlength=10).min() >= 20


def test_digits_are_split() -> None:
    train, held_out = scenes.read("train"), scenes.read("held-out")
    assert (len(train.labels), len(held_out.labels)) == (1400, scenes.HELD_OUT_GLYPHS)
    seen = {glyph.tobytes() for glyph in train.glyphs}
    assert not seen & {glyph.tobytes() for glyph in held_out.glyphs}


def test_photographs_are_split() -> None:
    for left, right in zip(
        scenes.read("train").photographs, scenes.read("held-out").photographs, strict=True
    ):
        assert left.width + right.width == 640
        assert right.width == pytest.approx(640 * scenes.HELD_OUT_PHOTO_SHARE, abs=1)
        assert right.width >= scenes.SIZE_PX


def test_digit_shows_on_the_brightest_background() -> None:
    white = Image.new("RGB", (320, 320), "white")
    glyph = scenes.read("train").glyphs[0]
    for seed in range(20):
        picture = scenes.paint(glyph, (white,), np.random.default_rng(seed)).astype(int)
        luminance = picture @ np.array([0.299, 0.587, 0.114])
        background = np.median(luminance)
        assert luminance.max() - background >= 30
        assert 0.02 < (luminance > background + 15).mean() < 0.5


def test_easiest_pictures_are_white_on_black() -> None:
    images = scenes.render("train", 8, seed=0, ease=1.0).images
    assert np.ptp(images.astype(int), axis=-1).max() == 0
    assert (images[:, :8, :8] == 0).all()
    assert images.max(axis=(1, 2, 3)).min() >= 200
