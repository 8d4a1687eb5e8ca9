"""Architectures (torch), cards (data) and checkpoint import. Importing this package loads no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    import torch

__all__ = ["create"]


def create(
    name: str,
    checkpoint: str | Path | dict[str, torch.Tensor] | None = None,
    features: bool = False,
    **config: Any,
) -> torch.nn.Module:
    """Build the model called `name` in eval mode, float32, on CPU. See `saccade.models.factory.create`."""
    from saccade.models.factory import create as build

    return build(name, checkpoint=checkpoint, features=features, **config)
