"""The form of a trained module that goes into a graph."""

from __future__ import annotations

import copy
import types
from typing import Any

import torch
from timm.models.tiny_vit import Attention as TinyVitAttention
from timm.utils.model import reparameterize_model
from torch import nn

__all__ = ["merge"]


def merge(module: nn.Module) -> nn.Module:
    """A deep copy in eval mode that computes the same with less; `module` itself is left alone.

    Training branches become single convolutions (timm's `reparameterize_model`), and TinyViT's attention
    biases become tensors: exporters leave a gather of the large ones in the graph. A merged module is for
    inference only; it neither trains nor takes unmerged checkpoints. Without anything to merge the copy is
    the same network.
    """
    merged: nn.Module = reparameterize_model(copy.deepcopy(module).eval())
    for part in merged.modules():
        if isinstance(part, TinyVitAttention):
            _fix_biases(part)
    return merged


def _fix_biases(attention: Any) -> None:
    with torch.no_grad():
        gathered = attention.attention_biases[:, attention.attention_bias_idxs]
    attention.register_buffer("gathered_biases", gathered, persistent=False)
    attention.get_attention_biases = types.MethodType(_gathered_biases, attention)


def _gathered_biases(attention: Any, device: torch.device) -> torch.Tensor:
    """(heads, N, N): stands in for the method of timm's that gathers from the table."""
    biases: torch.Tensor = attention.gathered_biases
    return biases
