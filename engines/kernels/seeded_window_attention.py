"""STViT's semantic-token generation: the seeds of a window see themselves and one patch of image tokens.

Chang et al., arXiv 2303.08685, in the classifier's released form. Seeds and patch are two tensors and stay
two: a tile of keys takes each row from where it is.
"""

# mypy: disable-error-code="no-untyped-def"
# Device code: Triton infers the types.

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from saccade.engines.kernels.language import jit, tl
from saccade.engines.kernels.launch import Attributes, Kernel, Shapes, Size, ceil_div
from saccade.engines.kernels.streaming_softmax import attend, softmax, start
from saccade.models.operators import SEEDED_WINDOW_ATTENTION

Array = NDArray[np.float64]


def reference(
    q: Array, kv_seeds: Array, kv: Array, *, heads: int, q_window: int, k_window: int, k_stride: int
) -> Array:
    """(B, H, W, C), (B, H, W, 2C), (B, Hk, Wk, 2C) -> (B, H, W, C): one window after the other.

    A window that the grid cuts short sees its last row and column of seeds again, as often as cells are
    missing.
    """
    batch, height, width, channels = q.shape
    y = np.empty_like(q)
    for top in range(0, height, q_window):
        for left in range(0, width, q_window):
            cells = np.s_[:, top : top + q_window, left : left + q_window]
            whole = (
                np.minimum(np.arange(top, top + q_window), height - 1)[:, None],
                np.minimum(np.arange(left, left + q_window), width - 1)[None, :],
            )
            seeds = kv_seeds[:, *whole].reshape(batch, -1, 2 * channels)
            k_top, k_left = (start // q_window * k_stride for start in (top, left))
            patch = kv[:, k_top : k_top + k_window, k_left : k_left + k_window].reshape(
                batch, -1, 2 * channels
            )
            keys = np.concatenate((seeds, patch), 1).reshape(batch, -1, 2, heads, channels // heads)
            k, v = keys.transpose(2, 0, 3, 1, 4)
            queries = q[cells].reshape(batch, -1, heads, channels // heads).swapaxes(1, 2)
            weights = softmax(queries @ k.swapaxes(-1, -2) / queries.shape[-1] ** 0.5)
            y[cells] = (weights @ v).swapaxes(1, 2).reshape(q[cells].shape)
    return y


@jit
def seeded_window_attention(
    q,
    kv_seeds,
    kv,
    height,
    width,
    k_height,
    k_width,
    heads,
    q_window,
    k_window,
    k_stride,
    y,
    D: tl.constexpr,
    TILE: tl.constexpr,
    KEYS: tl.constexpr,
    WIDEN: tl.constexpr,
):
    """Grid (heads, windows * tiles of a window, batch). Key cells off the grid are not seen."""
    head, part, image = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    channels = heads * D
    tokens = q_window * q_window
    keys = tokens + k_window * k_window
    tiles = tl.cdiv(tokens, TILE)
    columns = tl.cdiv(width, q_window)
    row = (part // tiles) // columns
    column = (part // tiles) % columns
    lane = tl.arange(0, D)

    query = (part % tiles) * TILE + tl.arange(0, TILE)
    q_y = row * q_window + query // q_window
    q_x = column * q_window + query % q_window
    inside = ((query < tokens) & (q_y < height) & (q_x < width))[:, None]
    q_at = image * (height * width * channels) + head * D
    q_at += ((q_y * width + q_x) * channels)[:, None] + lane[None, :]
    q_tile = tl.load(q + q_at, inside, 0.0)
    seeds = kv_seeds + image * (height * width * 2 * channels) + head * D
    grid = kv + image * (k_height * k_width * 2 * channels) + head * D

    largest, total, mixed = start(TILE, D)
    for first in range(0, keys, KEYS):
        key = first + tl.arange(0, KEYS)
        is_seed = (key < tokens)[:, None]
        s_y = tl.minimum(row * q_window + key // q_window, height - 1)
        s_x = tl.minimum(column * q_window + key % q_window, width - 1)
        s_at = seeds + ((s_y * width + s_x) * (2 * channels))[:, None] + lane[None, :]
        cell = key - tokens
        k_y = row * k_stride + cell // k_window
        k_x = column * k_stride + cell % k_window
        in_patch = (cell >= 0) & (key < keys) & (k_y < k_height) & (k_x < k_width)
        k_at = grid + ((k_y * k_width + k_x) * (2 * channels))[:, None] + lane[None, :]
        stored = in_patch[:, None]
        k = tl.where(is_seed, tl.load(s_at, is_seed, 0.0), tl.load(k_at, stored, 0.0))
        v = tl.where(is_seed, tl.load(s_at + channels, is_seed, 0.0), tl.load(k_at + channels, stored, 0.0))
        bias = tl.zeros((1, KEYS), tl.float32)
        seen = (key < tokens) | in_patch
        largest, total, mixed = attend(q_tile, k, v, bias, seen, largest, total, mixed, D, WIDEN)

    tl.store(y + q_at, (mixed / total[:, None]).to(y.dtype.element_ty), inside)


def _scalars(shapes: Shapes, attributes: Attributes) -> tuple[Size, ...]:
    (_, height, width, _), _, (_, k_height, k_width, _) = shapes
    names = ("heads", "q_window", "k_window", "k_stride")
    return height, width, k_height, k_width, *(attributes[name] for name in names)


def _windows(shapes: Shapes, attributes: Attributes) -> Size:
    _, height, width, _ = shapes[0]
    return ceil_div(height, attributes["q_window"]) * ceil_div(width, attributes["q_window"])


KERNEL = Kernel(
    operator=SEEDED_WINDOW_ATTENTION,
    function=seeded_window_attention,
    scalars=(
        *("height", "width", "k_height", "k_width"),
        *("heads", "q_window", "k_window", "k_stride"),
    ),
    scalar_values=_scalars,
    windows=_windows,
    queries=lambda shapes, attributes: attributes["q_window"] ** 2,
    tiles=(16,),
    formula=(
        "heads",
        "ceil(height / q_window) * ceil(width / q_window) * ceil(q_window**2 / TILE)",
        "batch",
    ),
)
