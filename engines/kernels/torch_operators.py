"""The kernels as torch operators `torch.ops.saccade.*`. Importing this registers them.

`saccade.models.attention` calls an operator in place of its plain torch form once it is registered, for
tensors on a GPU that need no gradient. On CPU the operators are that plain form. `torch.compile` looks into
them and captures the launch; they need Triton where they run on a GPU, not to be registered.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, lru_cache

import torch
from torch import Tensor
from torch.library import triton_op, wrap_triton

from saccade.engines.kernels import (
    resize_frames,
    seeded_window_attention,
    shifted_window_attention,
    token_attention,
    window_cross_attention,
)
from saccade.engines.kernels.launch import Attributes, Kernel
from saccade.errors import InputError
from saccade.models import attention
from saccade.models.operators import DOMAIN

__all__ = ["resize_and_normalise"]


@triton_op(f"{DOMAIN}::shifted_window_attention", mutates_args={})
def _shifted_window_attention(
    qkv: Tensor, qkv_pad: Tensor, position_bias: Tensor, *, heads: int, window: int, shift: int
) -> Tensor:
    attributes = {"heads": heads, "window": window, "shift": shift}
    return _launch(shifted_window_attention.KERNEL, (qkv, qkv_pad, position_bias), attributes)


@triton_op(f"{DOMAIN}::token_attention", mutates_args={})
def _token_attention(q: Tensor, kv: Tensor, *, heads: int) -> Tensor:
    return _launch(token_attention.KERNEL, (q, kv), {"heads": heads})


@triton_op(f"{DOMAIN}::window_cross_attention", mutates_args={})
def _window_cross_attention(
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
    attributes = {
        "heads": heads,
        "q_window": q_window,
        "k_window": k_window,
        "k_stride": k_stride,
        "k_before": k_before,
    }
    return _launch(window_cross_attention.KERNEL, (q, kv, kv_pad), attributes)


@triton_op(f"{DOMAIN}::seeded_window_attention", mutates_args={})
def _seeded_window_attention(
    q: Tensor, kv_seeds: Tensor, kv: Tensor, *, heads: int, q_window: int, k_window: int, k_stride: int
) -> Tensor:
    attributes = {"heads": heads, "q_window": q_window, "k_window": k_window, "k_stride": k_stride}
    return _launch(seeded_window_attention.KERNEL, (q, kv_seeds, kv), attributes)


def _like(kernel: Kernel) -> Callable[..., Tensor]:
    """What the operator returns for tensors without data: an empty one of the right shape."""

    def fake(*inputs: Tensor, **attributes: int) -> Tensor:
        if inputs[0].is_cuda:
            _check(kernel, inputs, attributes)
        return inputs[0].new_empty(kernel.output_shape([inputs[0].shape]))

    return fake


# On CPU the plain form runs; it takes an operator for tensors on a GPU only, so this does not go in circles.
for _operator, _module, _plain in (
    (_shifted_window_attention, shifted_window_attention, attention.shifted_window_attention),
    (_token_attention, token_attention, attention.token_attention),
    (_window_cross_attention, window_cross_attention, attention.window_cross_attention),
    (_seeded_window_attention, seeded_window_attention, attention.seeded_window_attention),
):
    _operator.register_kernel("cpu")(_plain)
    _operator.register_fake(_like(_module.KERNEL))


def _launch(kernel: Kernel, inputs: tuple[Tensor, ...], attributes: Attributes) -> Tensor:
    """Run `kernel` on GPU tensors of one type; sizes may be symbolic."""
    _check(kernel, inputs, attributes)
    shapes = [each.shape for each in inputs]
    y = inputs[0].new_empty(kernel.output_shape(shapes))
    tile = kernel.tile(shapes, attributes)
    schedule = kernel.schedule(tile, str(y.dtype).removeprefix("torch."), _arch(y.device))
    wrap_triton(kernel.function)[kernel.grid(shapes, attributes, tile)](
        *(each.contiguous() for each in inputs),
        *kernel.scalar_values(shapes, attributes),
        y,
        D=kernel.head_dim(shapes, attributes),
        TILE=tile,
        KEYS=schedule.keys,
        WIDEN=False,
        num_warps=schedule.num_warps,
        num_stages=schedule.num_stages,
    )
    return y


def _check(kernel: Kernel, inputs: tuple[Tensor, ...], attributes: Attributes) -> None:
    """InputError where the kernel does not serve tensors of these sizes."""
    shapes = [tuple(each.shape) for each in inputs]
    if reason := kernel.refusal(shapes, attributes):
        raise InputError(
            f"{DOMAIN}::{kernel.name} of {shapes}: {reason}; within "
            "`saccade.models.attention.without_kernels()` the plain form runs"
        )


@cache
def _arch(device: torch.device) -> int:
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


def resize_and_normalise(
    frames: Tensor, plan: resize_frames.Plan, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Frames on a GPU, (N, H, W, 3) uint8 of the plan's size, -> (N, 3, h, w) of `dtype` on it."""
    if frames.dtype != torch.uint8 or tuple(frames.shape[1:]) != (*plan.frame_hw, 3) or not frames.is_cuda:
        raise InputError(
            f"frames are {tuple(frames.shape)} {frames.dtype} on {frames.device}; "
            f"the plan takes (N, {plan.frame_hw[0]}, {plan.frame_hw[1]}, 3) torch.uint8 on a GPU"
        )
    y = torch.empty((len(frames), 3, *plan.size_hw), dtype=dtype, device=frames.device)
    resize_frames.resize_frames[plan.grid(len(frames))](
        frames.contiguous(),
        *_on_device(plan, frames.device),
        *plan.scalars(),
        y,
        BLOCK=resize_frames.BLOCK,
        num_warps=resize_frames.NUM_WARPS,
    )
    return y


@lru_cache(maxsize=16)
def _on_device(plan: resize_frames.Plan, device: torch.device) -> tuple[Tensor, ...]:
    """The plan's arrays on `device`, uploaded once."""
    return tuple(torch.from_numpy(each).to(device) for each in plan.arrays())
