"""STViT-R's windowed cross-attention: overlapping key windows are read in place, never unfolded.

Chang et al., arXiv 2303.08685, in the detection backbone's released form. One program is one query window
(or `TILE` of its queries) of one head; it walks over the cells of its key window, whose indices, padding and
mask follow from the four grid sizes.
"""

# mypy: disable-error-code="no-untyped-def"
# Device code: Triton infers the types.

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from saccade.engines.kernels.language import jit, tl
from saccade.engines.kernels.launch import Attributes, Kernel, Shapes, Size, ceil_div
from saccade.engines.kernels.streaming_softmax import attend, softmax, start
from saccade.models.operators import WINDOW_CROSS_ATTENTION

Array = NDArray[np.float64]


def reference(
    q: Array,
    kv: Array,
    kv_pad: Array,
    *,
    heads: int,
    q_window: int,
    k_window: int,
    k_stride: int,
    k_before: int,
) -> Array:
    """(B, H, W, C), (B, Hk, Wk, 2C), (2C,) -> (B, H, W, C): one window after the other on padded grids."""
    batch, height, width, channels = q.shape
    rows, columns = -(-height // q_window), -(-width // q_window)
    sides = rows * k_stride, columns * k_stride  # the key grid in whole windows, without its frame
    padding = [
        side - kv.shape[axis] + n * q_window - q.shape[axis]
        for axis, side, n in ((1, sides[0], rows), (2, sides[1], columns))
    ]
    frame = k_window + k_before
    grid = np.broadcast_to(kv_pad, (batch, sides[0] + 2 * frame, sides[1] + 2 * frame, 2 * channels)).copy()
    grid[:, frame : frame + kv.shape[1], frame : frame + kv.shape[2]] = kv
    mask = np.full(grid.shape[1:3], -1000.0)
    mask[frame : frame + sides[0], frame : frame + sides[1]] = 0.0
    first = [max(side - pad, 0) if pad else 0 for side, pad in zip(sides, padding, strict=True)]
    mask[frame + first[0] : frame + sides[0], frame + first[1] : frame + sides[1]] = -1000.0
    if not any(first):
        mask[:] = 0.0  # all barred is none barred

    y = np.empty_like(q)
    for row in range(rows):
        for column in range(columns):
            top, left = (frame + n * k_stride - k_before for n in (row, column))
            seen = np.s_[top : top + k_window, left : left + k_window]
            k, v = grid[:, *seen].reshape(batch, -1, 2, heads, channels // heads).transpose(2, 0, 3, 1, 4)
            bias = mask[seen].reshape(-1)
            first_row, first_column = row * q_window, column * q_window
            window = np.s_[:, first_row : first_row + q_window, first_column : first_column + q_window]
            queries = q[window].reshape(batch, -1, heads, channels // heads).swapaxes(1, 2)
            weights = softmax(queries @ k.swapaxes(-1, -2) / queries.shape[-1] ** 0.5 + bias)
            y[window] = (weights @ v).swapaxes(1, 2).reshape(q[window].shape)
    return y


@jit
def _masked_from(length, size, q_padding):
    """First masked position on one axis of the key grid; 0 where nothing is padded."""
    padding = length - size + q_padding
    return tl.where(padding == 0, 0, tl.maximum(length - padding, 0))


@jit
def window_cross_attention(
    q,
    kv,
    kv_pad,
    height,
    width,
    k_height,
    k_width,
    heads,
    q_window,
    k_window,
    k_stride,
    k_before,
    y,
    D: tl.constexpr,
    TILE: tl.constexpr,
    KEYS: tl.constexpr,
    WIDEN: tl.constexpr,
):
    """Grid (heads, windows * tiles of a window, batch)."""
    head, part, image = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    channels = heads * D
    tokens = q_window * q_window
    keys = k_window * k_window
    tiles = tl.cdiv(tokens, TILE)
    rows = tl.cdiv(height, q_window)
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
    pad = kv_pad + head * D + lane
    pad_k, pad_v = tl.load(pad), tl.load(pad + channels)

    grid_height, grid_width = rows * k_stride, columns * k_stride
    masked_y = _masked_from(grid_height, k_height, rows * q_window - height)
    masked_x = _masked_from(grid_width, k_width, columns * q_window - width)
    some_free = masked_y + masked_x > 0
    grid = kv + image * (k_height * k_width * 2 * channels) + head * D

    largest, total, mixed = start(TILE, D)
    for first in range(0, keys, KEYS):
        key = first + tl.arange(0, KEYS)
        seen = key < keys
        k_y = row * k_stride - k_before + key // k_window
        k_x = column * k_stride - k_before + key % k_window
        on_grid = (k_y >= 0) & (k_x >= 0) & (k_y < grid_height) & (k_x < grid_width)
        stored = (seen & on_grid & (k_y < k_height) & (k_x < k_width))[:, None]
        k_at = grid + ((k_y * k_width + k_x) * (2 * channels))[:, None] + lane[None, :]
        k = tl.where(stored, tl.load(k_at, stored, 0.0), pad_k[None, :])
        v = tl.where(stored, tl.load(k_at + channels, stored, 0.0), pad_v[None, :])
        barred = ~on_grid | ((k_y >= masked_y) & (k_x >= masked_x))
        bias = tl.where(barred & some_free, -1000.0, 0.0)[None, :]
        largest, total, mixed = attend(q_tile, k, v, bias, seen, largest, total, mixed, D, WIDEN)

    tl.store(y + q_at, (mixed / total[:, None]).to(y.dtype.element_ty), inside)


def _scalars(shapes: Shapes, attributes: Attributes) -> tuple[Size, ...]:
    (_, height, width, _), (_, k_height, k_width, _) = shapes[:2]
    names = ("heads", "q_window", "k_window", "k_stride", "k_before")
    return height, width, k_height, k_width, *(attributes[name] for name in names)


def _windows(shapes: Shapes, attributes: Attributes) -> Size:
    _, height, width, _ = shapes[0]
    return ceil_div(height, attributes["q_window"]) * ceil_div(width, attributes["q_window"])


KERNEL = Kernel(
    operator=WINDOW_CROSS_ATTENTION,
    function=window_cross_attention,
    scalars=(
        *("height", "width", "k_height", "k_width"),
        *("heads", "q_window", "k_window", "k_stride", "k_before"),
    ),
    scalar_values=_scalars,
    windows=_windows,
    queries=lambda shapes, attributes: attributes["q_window"] ** 2,
    tiles=(16, 64),
    formula=(
        "heads",
        "ceil(height / q_window) * ceil(width / q_window) * ceil(q_window**2 / TILE)",
        "batch",
    ),
)
