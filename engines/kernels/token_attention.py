"""Every query sees every key: semantic tokens among themselves, with the image, and back to the image."""

# mypy: disable-error-code="no-untyped-def"
# Device code: Triton infers the types.

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from saccade.engines.kernels.language import jit, tl
from saccade.engines.kernels.launch import Attributes, Kernel, Shapes, Size
from saccade.engines.kernels.streaming_softmax import attend, softmax, start
from saccade.models.operators import TOKEN_ATTENTION

Array = NDArray[np.float64]


def reference(q: Array, kv: Array, *, heads: int) -> Array:
    """(B, H, W, C), (B, Hk, Wk, 2C) -> (B, H, W, C)."""
    batch, height, width, channels = q.shape
    queries = q.reshape(batch, height * width, heads, -1).swapaxes(1, 2)
    k, v = kv.reshape(batch, -1, 2, heads, channels // heads).transpose(2, 0, 3, 1, 4)
    weights = softmax(queries @ k.swapaxes(-1, -2) / queries.shape[-1] ** 0.5)
    return (weights @ v).swapaxes(1, 2).reshape(q.shape)


@jit
def token_attention(
    q,
    kv,
    queries,
    keys,
    heads,
    y,
    D: tl.constexpr,
    TILE: tl.constexpr,
    KEYS: tl.constexpr,
    WIDEN: tl.constexpr,
):
    """Grid (heads, tiles of the queries, batch)."""
    head, part, image = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    channels = heads * D
    lane = tl.arange(0, D)

    query = part * TILE + tl.arange(0, TILE)
    inside = (query < queries)[:, None]
    q_at = image * (queries * channels) + head * D + (query * channels)[:, None] + lane[None, :]
    q_tile = tl.load(q + q_at, inside, 0.0)
    grid = kv + image * (keys * 2 * channels) + head * D

    largest, total, mixed = start(TILE, D)
    for first in range(0, keys, KEYS):
        key = first + tl.arange(0, KEYS)
        seen = key < keys
        k_at = grid + (key * (2 * channels))[:, None] + lane[None, :]
        k = tl.load(k_at, seen[:, None], 0.0)
        v = tl.load(k_at + channels, seen[:, None], 0.0)
        bias = tl.zeros((1, KEYS), tl.float32)
        largest, total, mixed = attend(q_tile, k, v, bias, seen, largest, total, mixed, D, WIDEN)

    tl.store(y + q_at, (mixed / total[:, None]).to(y.dtype.element_ty), inside)


def _cells(shape: Shapes, which: int) -> Size:
    _, height, width, _ = shape[which]
    return height * width


def _scalars(shapes: Shapes, attributes: Attributes) -> tuple[Size, ...]:
    return _cells(shapes, 0), _cells(shapes, 1), attributes["heads"]


KERNEL = Kernel(
    operator=TOKEN_ATTENTION,
    function=token_attention,
    scalars=("queries", "keys", "heads"),
    scalar_values=_scalars,
    windows=lambda shapes, attributes: 1,
    queries=lambda shapes, attributes: _cells(shapes, 0),
    tiles=(16, 64),
    formula=("heads", "ceil(queries / TILE)", "batch"),
)
