"""Shapes on which every form of an attention kernel must agree: from the models, and odd ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from saccade.engines.kernels import (
    seeded_window_attention,
    shifted_window_attention,
    token_attention,
    window_cross_attention,
)

SHIFTED = "ShiftedWindowAttention"
TOKEN = "TokenAttention"
CROSS = "WindowCrossAttention"
SEEDED = "SeededWindowAttention"

REFERENCES = {
    SHIFTED: shifted_window_attention.reference,
    TOKEN: token_attention.reference,
    CROSS: window_cross_attention.reference,
    SEEDED: seeded_window_attention.reference,
}

GENERATION = {"q_window": 3, "k_window": 14, "k_stride": 7, "k_before": 3}
REFINEMENT = {"q_window": 3, "k_window": 21, "k_stride": 7, "k_before": 7}
LOCAL = {"q_window": 3, "k_window": 3, "k_stride": 3, "k_before": 0}
RECOVERY = {"q_window": 7, "k_window": 27, "k_stride": 3, "k_before": 12}
SEEDS = {"q_window": 3, "k_window": 10, "k_stride": 4}


class Case(NamedTuple):
    """One call: the operator, its inputs' shapes and its attributes."""

    operator: str
    shapes: tuple[tuple[int, ...], ...]
    attributes: Mapping[str, int]

    @property
    def label(self) -> str:
        numbers = "-".join(str(value) for value in self.attributes.values())
        return f"{self.operator}-{'x'.join(map(str, self.shapes[0]))}-{numbers}"

    def inputs(self, seed: int = 0) -> list[NDArray[np.float32]]:
        rng = np.random.default_rng(seed)
        return [rng.standard_normal(shape, dtype=np.float32) for shape in self.shapes]

    def expected(self, inputs: list[Any]) -> NDArray[np.float64]:
        """The NumPy reference on `inputs`, in float64."""
        wide = [np.asarray(each, np.float64) for each in inputs]
        return REFERENCES[self.operator](*wide, **self.attributes)


def shifted(
    batch: int, height: int, width: int, heads: int, shift: int, dim: int = 32, window: int = 7
) -> Case:
    channels = 3 * heads * dim
    shapes = (batch, height, width, channels), (channels,), (heads, window**2, window**2)
    return Case(SHIFTED, shapes, {"heads": heads, "window": window, "shift": shift})


def token(batch: int, q_hw: tuple[int, int], k_hw: tuple[int, int], heads: int, dim: int = 32) -> Case:
    channels = heads * dim
    return Case(TOKEN, ((batch, *q_hw, channels), (batch, *k_hw, 2 * channels)), {"heads": heads})


def cross(batch: int, height: int, width: int, heads: int, mode: Mapping[str, int], dim: int = 32) -> Case:
    """A detection block of `mode` for an image grid of (height, width)."""
    image, channels = (height, width), heads * dim
    semantic = (3 * -(-height // 7), 3 * -(-width // 7))
    q_hw, k_hw = {
        id(GENERATION): (semantic, image),
        id(REFINEMENT): (semantic, image),
        id(LOCAL): (semantic, semantic),
        id(RECOVERY): (image, semantic),
    }[id(mode)]
    shapes = (batch, *q_hw, channels), (batch, *k_hw, 2 * channels), (2 * channels,)
    return Case(CROSS, shapes, {"heads": heads, **mode})


def seeded(batch: int, height: int, width: int, side: int, heads: int, dim: int = 32) -> Case:
    channels = heads * dim
    grids = (
        (batch, height, width, channels),
        (batch, height, width, 2 * channels),
        (batch, side, side, 2 * channels),
    )
    return Case(SEEDED, grids, {"heads": heads, **SEEDS})


# Small enough for Triton's interpreter, a second or less each.
SMALL = (
    shifted(1, 14, 14, heads=3, shift=3),  # Swin, stage 3, with few heads
    shifted(2, 7, 7, heads=1, shift=0),  # one window
    shifted(1, 10, 17, heads=1, shift=3, dim=16),  # padding both ways
    shifted(3, 5, 3, heads=1, shift=3),  # a grid smaller than the window, shifted
    shifted(1, 12, 12, heads=1, shift=0, window=12, dim=16),  # several tiles of queries and keys
    token(1, (6, 6), (1, 232), heads=2),  # refinement at 224
    token(2, (14, 14), (6, 6), heads=1),  # recovery at 224
    token(7, (3, 3), (3, 3), heads=2, dim=16),
    token(1, (1, 65), (5, 13), heads=1),  # one beyond a tile
    seeded(1, 6, 6, 14, heads=2),  # STViT-R at 224
    seeded(2, 6, 6, 16, heads=1, dim=16),  # at 256
    seeded(1, 5, 4, 14, heads=1),  # windows cut short
    *(
        cross(1, height, width, 1, mode, dim=16)
        for height, width in ((10, 17), (14, 14), (13, 7), (2, 3))
        for mode in (GENERATION, REFINEMENT, LOCAL, RECOVERY)
    ),
    cross(2, 7, 16, 2, RECOVERY),
)

# One program of each kind for each of as many heads as a model has.
MANY_HEADS = (
    shifted(1, 7, 14, heads=24, shift=3),
    token(1, (2, 3), (3, 3), heads=16),
    seeded(1, 3, 3, 10, heads=12),
    cross(1, 7, 7, 12, RECOVERY),
)
INTERPRETED = (*SMALL, *MANY_HEADS)

# As the models have them: STViT-R and Swin, S and B, at 224, and the detection backbone at 800x1344.
CLASSIFICATION = (
    *(shifted(1, 56, 56, heads, shift=shift) for heads in (3, 4) for shift in (0, 3)),
    *(shifted(2, 14, 14, heads, shift=0) for heads in (12, 16)),
    shifted(7, 7, 7, 24, shift=0),
    seeded(3, 6, 6, 14, heads=12),
    token(3, (6, 6), (1, 232), heads=12),
    token(2, (6, 6), (6, 6), heads=16),
    token(5, (14, 14), (6, 6), heads=12),
)
DETECTION = (
    shifted(1, 200, 336, heads=3, shift=3),
    shifted(1, 25, 42, heads=24, shift=3),
    *(cross(1, 50, 84, 12, mode) for mode in (GENERATION, REFINEMENT, LOCAL, RECOVERY)),
    cross(2, 50, 84, 16, RECOVERY),
    token(1, (24, 36), (24, 36), heads=12),
)
