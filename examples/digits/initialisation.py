"""Starting values that let small transformers learn in minutes."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def plane_waves(side: int, channels: int) -> Tensor:
    """(side * side, channels): sines and cosines of row and column, as strong as the patches' own values.

    Small random position embeddings, the usual start, take a short training long to grow: until then a
    vision transformer sees a bag of patches.
    """
    frequencies = math.pi * 2.0 ** -torch.linspace(0, 4, channels // 4)
    phases = torch.arange(side)[:, None] * frequencies
    waves = torch.cat([phases.sin(), phases.cos()], dim=1)
    rows, columns = waves[:, None].expand(-1, side, -1), waves[None].expand(side, -1, -1)
    return torch.cat([rows, columns], dim=2).flatten(0, 1)
