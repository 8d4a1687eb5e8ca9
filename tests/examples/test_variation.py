"""What training makes of digits and photographs, so that it has more to learn from."""

from __future__ import annotations

import numpy as np

from digits import objects, scenes, variation

VARIED = objects.Layout((96, 128), (2, 3), (40.0, 60.0), varied=True)


def test_a_bent_digit_is_another_one_and_yet_much_the_same() -> None:
    rng = np.random.default_rng(0)
    whole = scenes.read("train")
    for glyph in whole.glyphs[:40]:
        bent = variation.bent(glyph, rng)
        assert bent.shape == glyph.shape
        assert bent.dtype == np.uint8
        assert not np.array_equal(bent, glyph)
        assert np.corrcoef(bent.ravel(), glyph.ravel())[0, 1] > 0.5


def test_bent_digits_are_nearer_to_their_own_class() -> None:
    """The mean digit that a bent one resembles most is mostly that of its class."""
    whole, rng = scenes.read("train"), np.random.default_rng(0)
    means = np.stack([whole.glyphs[whole.labels == label].mean(0).ravel() for label in range(10)])
    bent = np.stack([variation.bent(glyph, rng).ravel() for glyph in whole.glyphs[:200]])
    nearest = np.linalg.norm(bent[:, None] - means, axis=2).argmin(1)
    assert (nearest == whole.labels[:200]).mean() > 0.7


def test_a_recoloured_photograph_has_the_same_values() -> None:
    rng = np.random.default_rng(0)
    photo = rng.integers(0, 256, (4, 5, 3)).astype(np.uint8)
    made = [variation.recoloured(photo, rng) for _ in range(80)]
    assert len({each.tobytes() for each in made}) == 12  # six orders of the colours, two ways up
    for each in made:
        assert np.array_equal(np.sort(each, axis=None), np.sort(photo, axis=None))


def test_varied_scenes_are_reproducible_and_unlike_the_plain_ones() -> None:
    one, again = (objects.scene("train", 3, 0, VARIED) for _ in range(2))
    assert np.array_equal(one.image, again.image)
    plain = objects.scene("train", 3, 0, objects.Layout((96, 128), (2, 3), (40.0, 60.0)))
    assert not np.array_equal(one.image, plain.image)


def test_what_is_measured_on_is_never_varied() -> None:
    assert not objects.Layout().varied
    assert not objects.AERIAL.varied
    assert not objects.CLIP.varied
