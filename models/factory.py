"""From a name to a torch module."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saccade.errors import MissingDependency, UsageError
from saccade.models import zoo

if TYPE_CHECKING:
    import torch
    from torch import nn

__all__ = ["create"]


def create(
    name: str,
    checkpoint: str | Path | Mapping[str, torch.Tensor] | None = None,
    features: bool = False,
    **config: Any,
) -> nn.Module:
    """Build the model called `name` in eval mode, float32, on CPU.

    checkpoint: a file, or a state dict, in the official layout or timm's; "hub" for the weights that the
    zoo names, or another address of `saccade.models.hub`, e.g. "timm:deit_small_patch16_224.fb_in1k".
    None leaves torch's random initial weights.
    features: return exactly four NCHW maps, finest first, instead of logits or embeddings; the module then
    has `.channels` and `.strides`.
    config: sizes that replace the zoo's (`img_size`, `num_classes`, `depths`, ...); what a model takes is
    listed when it is given something else.
    """
    entry = zoo.entry(name)
    try:
        from saccade.models import hub
        from saccade.models.checkpoint import read_checkpoint

        builder = _import(entry.builder)
    except ModuleNotFoundError as error:
        raise MissingDependency(
            f"{name} needs {error.name}, which is not installed: pip install 'saccade[export]'"
        ) from error
    _check_config(name, builder, config)
    if isinstance(checkpoint, str) and hub.is_address(checkpoint):
        checkpoint = hub.fetch(checkpoint, entry)
    read = None if checkpoint is None else read_checkpoint(checkpoint)
    return builder(checkpoint=read, features=features, **{**entry.config, **config}).eval()


def _import(builder: str) -> Callable[..., nn.Module]:
    module, function = builder.split(":")
    found: Callable[..., nn.Module] = getattr(importlib.import_module(module), function)
    return found


def _check_config(name: str, builder: Callable[..., Any], config: Iterable[str]) -> None:
    accepted = sorted(set(inspect.signature(builder).parameters) - {"checkpoint", "features"})
    unknown = sorted(set(config) - set(accepted))
    if unknown:
        raise UsageError(f"{name} takes no {', '.join(unknown)}. It takes {', '.join(accepted)}.")
