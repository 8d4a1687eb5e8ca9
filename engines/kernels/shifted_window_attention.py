"""Swin's shifted-window attention: padding, roll, partition and their inverses are index arithmetic.

Liu et al., "Swin Transformer", arXiv 2103.14030. One program is one window (or `TILE` of its queries) of one
head: queries, keys and values are read once where the window has at most `TILE` cells.
"""

# mypy: disable-error-code="no-untyped-def"
# Device code: Triton infers the types.

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from saccade.engines.kernels.language import jit, tl
from saccade.engines.kernels.launch import Attributes, Kernel, Shapes, Size, ceil_div
from saccade.engines.kernels.streaming_softmax import attend, softmax, start
from saccade.models.operators import SHIFTED_WINDOW_ATTENTION

Array = NDArray[np.float64]


def reference(
    qkv: Array, qkv_pad: Array, position_bias: Array, *, heads: int, window: int, shift: int
) -> Array:
    """(B, H, W, 3C), (3C,), (heads, window^2, window^2) -> (B, H, W, C), as the paper tells it."""
    batch, height, width, channels3 = qkv.shape
    rows, columns = -(-height // window), -(-width // window)
    grid = np.broadcast_to(qkv_pad, (batch, rows * window, columns * window, channels3)).copy()
    grid[:, :height, :width] = qkv
    grid = np.roll(grid, (-shift, -shift), (1, 2))
    split = grid.reshape(batch, rows, window, columns, window, 3, heads, -1)
    q, k, v = split.transpose(5, 0, 1, 3, 6, 2, 4, 7).reshape(3, batch, rows, columns, heads, window**2, -1)

    region = np.zeros((rows * window, columns * window))
    for axis in (0, 1):  # the roll brought the first `shift` cells to the end
        last, wrapped = (np.arange(region.shape[axis]) >= region.shape[axis] - n for n in (window, shift))
        step = last.astype(int) + wrapped
        region += 3 * step[:, None] if axis == 0 else step
    region = region.reshape(rows, window, columns, window).swapaxes(1, 2).reshape(rows, columns, 1, -1)
    mask = np.where(region[..., :, None] == region[..., None, :], 0.0, -100.0)

    weights = softmax(q @ k.swapaxes(-1, -2) / q.shape[-1] ** 0.5 + position_bias + mask)
    merged = (weights @ v).reshape(batch, rows, columns, heads, window, window, -1)
    merged = merged.transpose(0, 1, 4, 2, 5, 3, 6).reshape(batch, rows * window, columns * window, -1)
    return np.roll(merged, (shift, shift), (1, 2))[:, :height, :width]


@jit
def _source(token, top, left, window, shift, padded_height, padded_width):
    """Where a token of the window at (top, left) stands in the unrolled grid, and its region for the mask."""
    y = top + token // window
    x = left + token % window
    row = (y >= padded_height - window).to(tl.int32) + (y >= padded_height - shift).to(tl.int32)
    column = (x >= padded_width - window).to(tl.int32) + (x >= padded_width - shift).to(tl.int32)
    y += shift
    x += shift
    y = tl.where(y >= padded_height, y - padded_height, y)
    x = tl.where(x >= padded_width, x - padded_width, x)
    return y, x, 3 * row + column


@jit
def shifted_window_attention(
    qkv,
    qkv_pad,
    position_bias,
    height,
    width,
    heads,
    window,
    shift,
    y,
    D: tl.constexpr,
    TILE: tl.constexpr,
    KEYS: tl.constexpr,
    WIDEN: tl.constexpr,
):
    """Grid (heads, windows * tiles of a window, batch)."""
    head, part, image = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    channels = heads * D
    tokens = window * window
    tiles = tl.cdiv(tokens, TILE)
    columns = tl.cdiv(width, window)
    padded_height = tl.cdiv(height, window) * window
    padded_width = columns * window
    top = (part // tiles) // columns * window
    left = (part // tiles) % columns * window
    lane = tl.arange(0, D)

    query = (part % tiles) * TILE + tl.arange(0, TILE)
    q_y, q_x, q_region = _source(query, top, left, window, shift, padded_height, padded_width)
    q_inside = (query < tokens) & (q_y < height) & (q_x < width)
    q_cell = q_y * width + q_x
    grid = qkv + image * (height * width * 3 * channels) + head * D
    q = tl.load(grid + (q_cell * (3 * channels))[:, None] + lane[None, :], q_inside[:, None], 0.0)
    pad = qkv_pad + head * D + lane
    pad_k, pad_v = tl.load(pad + channels), tl.load(pad + 2 * channels)

    largest, total, mixed = start(TILE, D)
    for first in range(0, tokens, KEYS):
        key = first + tl.arange(0, KEYS)
        k_y, k_x, k_region = _source(key, top, left, window, shift, padded_height, padded_width)
        seen = key < tokens
        inside = (seen & (k_y < height) & (k_x < width))[:, None]
        k_at = grid + ((k_y * width + k_x) * (3 * channels) + channels)[:, None] + lane[None, :]
        k = tl.where(inside, tl.load(k_at, inside, 0.0), pad_k[None, :])
        v = tl.where(inside, tl.load(k_at + channels, inside, 0.0), pad_v[None, :])
        bias_at = position_bias + (head * tokens + query[:, None]) * tokens + key[None, :]
        bias = tl.load(bias_at, (query < tokens)[:, None] & seen[None, :], 0.0).to(tl.float32)
        bias += tl.where(q_region[:, None] == k_region[None, :], 0.0, -100.0)
        largest, total, mixed = attend(q, k, v, bias, seen, largest, total, mixed, D, WIDEN)

    out = y + image * (height * width * channels) + head * D
    attended = (mixed / total[:, None]).to(y.dtype.element_ty)
    tl.store(out + (q_cell * channels)[:, None] + lane[None, :], attended, q_inside[:, None])


def _scalars(shapes: Shapes, attributes: Attributes) -> tuple[Size, ...]:
    _, height, width, _ = shapes[0]
    return height, width, attributes["heads"], attributes["window"], attributes["shift"]


def _windows(shapes: Shapes, attributes: Attributes) -> Size:
    _, height, width, _ = shapes[0]
    return ceil_div(height, attributes["window"]) * ceil_div(width, attributes["window"])


KERNEL = Kernel(
    operator=SHIFTED_WINDOW_ATTENTION,
    function=shifted_window_attention,
    scalars=("height", "width", "heads", "window", "shift"),
    scalar_values=_scalars,
    windows=_windows,
    queries=lambda shapes, attributes: attributes["window"] ** 2,
    projections=3,
    tiles=(64,),
    keys=32,  # a bias is loaded for every pair: 64 would take twice the registers
    formula=("heads", "ceil(height / window) * ceil(width / window) * ceil(window**2 / TILE)", "batch"),
)
