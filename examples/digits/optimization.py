"""How the demo networks are optimised: AdamW with a linear warm-up and half a cosine."""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

WARM_UP = 0.1  # of all steps
NOT_DECAYED = (
    "relative_position_bias_table",
    "attention_biases",
    "pos_embed",
    "cls_token",
    "dist_token",
    "token_mask",
)


def prepare(
    module: nn.Module, learning_rate: float, weight_decay: float, steps: int
) -> tuple[torch.optim.Optimizer, LambdaLR]:
    """An optimizer of what `module` trains, and its schedule over `steps`, to be stepped after it."""
    optimizer = torch.optim.AdamW(parameter_groups(module, weight_decay), lr=learning_rate)
    return optimizer, LambdaLR(optimizer, lambda step: learning_rate_factor(step, steps))


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Weight decay on matrices and kernels only: not on biases, norms, scales and position tables."""
    trained = [(n, p) for n, p in module.named_parameters() if p.requires_grad]
    decayed = [p for n, p in trained if p.ndim > 1 and not n.endswith(NOT_DECAYED)]
    rest = [p for n, p in trained if p.ndim <= 1 or n.endswith(NOT_DECAYED)]
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": rest, "weight_decay": 0.0}]


def learning_rate_factor(step: int, steps: int) -> float:
    """Linear warm-up, then half a cosine to zero."""
    warm = max(1, int(WARM_UP * steps))
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))
