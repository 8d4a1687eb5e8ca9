"""The `saccade` operators as torch functions, and as single nodes when a graph is exported.

Each function computes what the operator of the same name in `saccade.models.operators` defines. Sizes are
read from the tensors and may be symbolic.

Source of the arithmetic: Swin (arXiv 2103.14030), STViT (arXiv 2303.08685).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor

from saccade.models.operators import (
    DOMAIN,
    PLUGIN_ATTRIBUTES,
    SEEDED_WINDOW_ATTENTION,
    SHIFTED_WINDOW_ATTENTION,
    TOKEN_ATTENTION,
    VERSION,
    WINDOW_CROSS_ATTENTION,
    Operator,
)

# What the GPU kernels of saccade.engines.kernels serve.
KERNEL_HEAD_DIMS = (16, 32)
KERNEL_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
_kernels_wanted = True


@contextmanager
def without_kernels() -> Iterator[None]:
    """Plain torch forms inside, to measure or to compare with. For the whole process, not for one thread."""
    global _kernels_wanted
    before, _kernels_wanted = _kernels_wanted, False
    try:
        yield
    finally:
        _kernels_wanted = before


def shifted_window_attention(
    qkv: Tensor, qkv_pad: Tensor, position_bias: Tensor, *, heads: int, window: int, shift: int
) -> Tensor:
    """(B, H, W, 3C), (3C,), (heads, window^2, window^2) -> (B, H, W, C). Swin's window attention.

    The grid is padded to whole windows with tokens whose projection is `qkv_pad`, rolled by -shift and cut
    into windows; windows that wrap around get Swin's additive mask of -100.
    """
    inputs = (qkv, qkv_pad, position_bias)
    if torch.compiler.is_exporting():
        return _node(SHIFTED_WINDOW_ATTENTION, inputs, _third(qkv), heads=heads, window=window, shift=shift)
    if kernel := _kernel(
        "shifted_window_attention", (qkv, qkv_pad, position_bias), qkv.shape[3] // 3 // heads
    ):
        return kernel(qkv, qkv_pad, position_bias, heads=heads, window=window, shift=shift)
    height, width = qkv.shape[1:3]
    rolled_y = _positions(_windows(height, window), window, window, qkv.device)
    rolled_x = _positions(_windows(width, window), window, window, qkv.device)
    padded_height, padded_width = rolled_y.numel(), rolled_x.numel()
    y, x = (rolled_y + shift) % padded_height, (rolled_x + shift) % padded_width
    index = _outer(y * width, x, torch.add)
    inside = _outer(y < height, x < width, torch.logical_and)
    tokens = _gather(_with_pad_row(qkv, qkv_pad), torch.where(inside, index, height * width), window**2)
    region_y = (rolled_y >= padded_height - window).long() + (rolled_y >= padded_height - shift)
    region_x = (rolled_x >= padded_width - window).long() + (rolled_x >= padded_width - shift)
    region = _outer(region_y * 3, region_x, torch.add).reshape(-1, window**2)
    same = region[:, None, :, None] == region[:, None, None, :]
    bias = position_bias + torch.where(same, 0.0, -100.0).to(position_bias.dtype)
    q, k, v = tokens.chunk(3, dim=-1)
    attended = _attend(q, k, v, heads, bias)
    y = (torch.arange(height, device=qkv.device) - shift) % padded_height
    x = (torch.arange(width, device=qkv.device) - shift) % padded_width
    return _merge(attended, y, x, window, rolled_x.shape[0])


def token_attention(q: Tensor, kv: Tensor, *, heads: int) -> Tensor:
    """(B, H, W, C), (B, Hk, Wk, 2C) -> (B, H, W, C): every query sees every key."""
    if torch.compiler.is_exporting():
        return _node(TOKEN_ATTENTION, (q, kv), q.shape, heads=heads)
    if kernel := _kernel("token_attention", (q, kv), q.shape[3] // heads):
        return kernel(q, kv, heads=heads)
    k, v = kv.flatten(1, 2)[:, None].chunk(2, dim=-1)
    return _attend(q.flatten(1, 2)[:, None], k, v, heads).reshape(q.shape)


def window_cross_attention(
    q: Tensor,
    kv: Tensor,
    kv_pad: Tensor,
    *,
    heads: int,
    q_window: int,
    k_window: int,
    k_stride: int,
    k_before: int,
) -> Tensor:
    """(B, H, W, C), (B, Hk, Wk, 2C), (2C,) -> (B, H, W, C): STViT-R's windowed cross-attention.

    Query window (r, c) sees the key cells from row ``r * k_stride - k_before`` and column
    ``c * k_stride - k_before`` on, k_window each way; cells off the grid have the keys and values `kv_pad`.
    The pad mask is the released backbone's, with its quirks: -1000 on the frame around the grid padded to
    whole windows, and where padding exists on the corner (one side unpadded: the strip) that follows from
    the padding counted in image tokens; a mask that covers everything is dropped since it cancels.
    """
    windows = {"q_window": q_window, "k_window": k_window, "k_stride": k_stride, "k_before": k_before}
    if torch.compiler.is_exporting():
        return _node(WINDOW_CROSS_ATTENTION, (q, kv, kv_pad), q.shape, heads=heads, **windows)
    if kernel := _kernel("window_cross_attention", (q, kv, kv_pad), q.shape[3] // heads):
        return kernel(q, kv, kv_pad, heads=heads, **windows)
    q_height, q_width = q.shape[1:3]
    k_height, k_width = kv.shape[1:3]
    rows, columns = _windows(q_height, q_window), _windows(q_width, q_window)
    y = _positions(rows, k_window, k_stride, q.device) - k_before
    x = _positions(columns, k_window, k_stride, q.device) - k_before
    inside = _outer((y >= 0) & (y < k_height), (x >= 0) & (x < k_width), torch.logical_and)
    index = torch.where(inside, _outer(y * k_width, x, torch.add), k_height * k_width)
    keys = _gather(_with_pad_row(kv, kv_pad), index, k_window**2)

    masked_y = _masked_from(rows, k_stride, k_height, q_window, q_height)
    masked_x = _masked_from(columns, k_stride, k_width, q_window, q_width)
    late = _outer(y >= masked_y, x >= masked_x, torch.logical_and)
    on_grid = _outer((y >= 0) & (y < rows * k_stride), (x >= 0) & (x < columns * k_stride), torch.logical_and)
    barred = (late | ~on_grid) & (masked_y + masked_x > 0)
    mask = torch.where(barred, -1000.0, 0.0).to(q.dtype).reshape(rows * columns, 1, 1, k_window**2)
    k, v = keys.chunk(2, dim=-1)
    attended = _attend(_partition(q, q_window), k, v, heads, mask)
    return _unpartition(attended, q, q_window)


def seeded_window_attention(
    q: Tensor, kv_seeds: Tensor, kv: Tensor, *, heads: int, q_window: int, k_window: int, k_stride: int
) -> Tensor:
    """(B, H, W, C), (B, H, W, 2C), (B, Hk, Wk, 2C) -> (B, H, W, C): STViT's semantic-token generation.

    Query window (r, c) sees its own q_window^2 seeds and the k_window^2 keys from row ``r * k_stride``
    and column ``c * k_stride`` on, which must lie on the grid.
    """
    windows = {"q_window": q_window, "k_window": k_window, "k_stride": k_stride}
    if torch.compiler.is_exporting():
        return _node(SEEDED_WINDOW_ATTENTION, (q, kv_seeds, kv), q.shape, heads=heads, **windows)
    if kernel := _kernel("seeded_window_attention", (q, kv_seeds, kv), q.shape[3] // heads):
        return kernel(q, kv_seeds, kv, heads=heads, **windows)
    y = _positions(_windows(q.shape[1], q_window), k_window, k_stride, q.device)
    x = _positions(_windows(q.shape[2], q_window), k_window, k_stride, q.device)
    patches = _gather(kv.flatten(1, 2), _outer(y * kv.shape[2], x, torch.add), k_window**2)
    keys = torch.cat((_partition(kv_seeds, q_window), patches), dim=2)
    k, v = keys.chunk(2, dim=-1)
    attended = _attend(_partition(q, q_window), k, v, heads)
    return _unpartition(attended, q, q_window)


def _kernel(name: str, inputs: tuple[Tensor, ...], head_dim: int) -> Callable[..., Tensor] | None:
    """The GPU kernel `name`, once `saccade.engines.kernels.torch_operators` registered it; inference only."""
    first = inputs[0]
    served = first.is_cuda and head_dim in KERNEL_HEAD_DIMS and first.dtype in KERNEL_DTYPES
    if not (_kernels_wanted and served) or any(each.dtype != first.dtype for each in inputs):
        return None
    if torch.is_grad_enabled() and any(each.requires_grad for each in inputs):
        return None
    return getattr(getattr(torch.ops, DOMAIN), name, None)


def _node(
    operator: Operator, inputs: tuple[Tensor, ...], shape: tuple[int, ...], **attributes: int
) -> Tensor:
    return torch.onnx.ops.symbolic(
        f"{DOMAIN}::{operator.name}",
        inputs,
        attrs={**attributes, **PLUGIN_ATTRIBUTES},
        dtype=inputs[0].dtype,
        shape=shape,
        version=VERSION,
    )


def _third(qkv: Tensor) -> tuple[int, ...]:
    return (*qkv.shape[:3], qkv.shape[3] // 3)


def _windows(size: int, window: int) -> int:
    return (size + window - 1) // window


def _positions(count: int, window: int, stride: int, device: torch.device) -> Tensor:
    """(count, window): position ``g * stride + i`` of cell i of window g."""
    return torch.arange(count, device=device)[:, None] * stride + torch.arange(window, device=device)


def _outer(rows: Tensor, columns: Tensor, operation: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """(gh, a), (gw, b) -> (gh, gw, a, b)."""
    return operation(rows[:, None, :, None], columns[None, :, None, :])


def _with_pad_row(grid: Tensor, pad: Tensor) -> Tensor:
    flat = grid.flatten(1, 2)
    return torch.cat((flat, pad.expand(flat.shape[0], 1, -1)), dim=1)


def _gather(flat: Tensor, index: Tensor, tokens: int) -> Tensor:
    """(B, N, C), indices (gh, gw, a, b) -> (B, gh * gw, tokens, C)."""
    return flat[:, index.flatten()].unflatten(1, (-1, tokens))


def _attend(q: Tensor, k: Tensor, v: Tensor, heads: int, bias: Tensor | None = None) -> Tensor:
    """(B, windows, Nq, C), twice (B, windows, Nk, C) -> (B, windows, Nq, C); bias is added to the logits."""
    q, k, v = (t.unflatten(-1, (heads, -1)).transpose(2, 3) for t in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias).transpose(2, 3).flatten(-2)


def _partition(grid: Tensor, window: int) -> Tensor:
    """(B, H, W, C) -> (B, windows, window^2, C), the edge repeated up to whole windows."""
    height, width = grid.shape[1:3]
    y = _positions(_windows(height, window), window, window, grid.device).clamp(max=height - 1)
    x = _positions(_windows(width, window), window, window, grid.device).clamp(max=width - 1)
    return _gather(grid.flatten(1, 2), _outer(y * width, x, torch.add), window**2)


def _unpartition(windows: Tensor, like: Tensor, window: int) -> Tensor:
    height, width = like.shape[1:3]
    y, x = (torch.arange(size, device=like.device) for size in (height, width))
    return _merge(windows, y, x, window, _windows(width, window))


def _merge(windows: Tensor, y: Tensor, x: Tensor, window: int, columns: int) -> Tensor:
    """(B, windows, window^2, C) -> (B, len(y), len(x), C): the cells at rows y and columns x of the grid."""
    rows = (y // window) * columns * window**2 + (y % window) * window
    index = rows[:, None] + (x // window) * window**2 + x % window
    return windows.flatten(1, 2)[:, index.flatten()].unflatten(1, (y.numel(), x.numel()))


def _masked_from(windows: int, k_stride: int, k_size: int, q_window: int, q_size: int) -> int:
    """First masked position on one axis of the key grid; 0 where nothing is padded."""
    padding = windows * k_stride - k_size + windows * q_window - q_size
    return max(windows * k_stride - padding, 0) if padding else 0
