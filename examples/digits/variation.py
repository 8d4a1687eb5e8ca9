"""More digits and places to learn from than there are: glyphs bent, photographs recoloured; training only."""

from __future__ import annotations

import numpy as np
from scipy.ndimage import map_coordinates, zoom

from digits.scenes import Pixels

_LINEAR = 0.07  # standard deviation of turn, shear and stretch
_BEND_CELLS = 0.3  # standard deviation of where the knots go
_KNOTS = 4  # a side; between them the glyph bends smoothly
_WEIGHT = 0.25  # strokes swell or shrink by brightness ** e**w, w at most this


def bent(glyph: Pixels, rng: np.random.Generator) -> Pixels:
    """Another hand's `glyph` (n, n) uint8: turned, sheared, stretched, bent, of another pen."""
    side = len(glyph)
    knots = rng.normal(0, _BEND_CELLS, (2, _KNOTS, _KNOTS))
    field = np.stack([zoom(knot, side / _KNOTS, order=2) for knot in knots])
    cells = np.indices(glyph.shape) - (side - 1) / 2
    moved = np.tensordot(np.eye(2) + rng.normal(0, _LINEAR, (2, 2)), cells, 1) + field + (side - 1) / 2
    values = map_coordinates(glyph / 255, moved, order=2).clip(0, 1) ** np.exp(rng.uniform(-_WEIGHT, _WEIGHT))
    return np.rint(255 * values).astype(np.uint8)


def recoloured(photo: Pixels, rng: np.random.Generator) -> Pixels:
    """`photo` (H, W, 3) with its colours exchanged, upside down half of the time."""
    photo = photo[..., rng.permutation(3)]
    return photo[::-1] if rng.random() < 0.5 else photo
