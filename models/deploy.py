"""The form of a trained module that goes into a graph."""

from __future__ import annotations

import copy

from timm.utils.model import reparameterize_model
from torch import nn

__all__ = ["merge"]


def merge(module: nn.Module) -> nn.Module:
    """A deep copy in eval mode whose training branches are single convolutions; `module` is left alone.

    The same function up to float rounding. A merged module is for inference only: it neither trains nor
    takes unmerged checkpoints. Without anything to merge the copy is the same network.
    """
    merged: nn.Module = reparameterize_model(copy.deepcopy(module).eval())
    return merged
