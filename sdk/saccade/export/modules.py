"""The torch module of an export, with the user's weights or with random ones, and the card it gets."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saccade.export.options import Options
from saccade.models.card import Card

if TYPE_CHECKING:
    import torch
    from torch import nn


def module(options: Options, sizes: Mapping[str, Any], feeds: Sequence[torch.Tensor]) -> nn.Module:
    """The model that `options` names. feeds: noise, of which random weights take their statistics."""
    from saccade.models import create
    from saccade.models.hub import is_address

    if options.weights is None:
        return _random(options.name, sizes, feeds)
    weights = str(options.weights)
    return create(options.name, checkpoint=weights if is_address(weights) else Path(weights), **sizes)


def _random(name: str, sizes: Mapping[str, Any], feeds: Sequence[torch.Tensor]) -> nn.Module:
    """The model with random weights, always the same.

    Fresh ones let a picture vanish on its way through a deep convolutional network: comparing outputs would
    compare nothing, and tiny numbers are slow on some processors. So batch norms take the statistics of
    noise, which gives every layer's output unit scale.
    """
    import torch

    from saccade.models import create

    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        module = create(name, **sizes)
        norms = [m for m in module.modules() if isinstance(m, torch.nn.BatchNorm2d)]
        hooks = [norm.register_forward_pre_hook(_observe_maps) for norm in norms]
        module(*feeds)
    for hook in hooks:
        hook.remove()
    return module.eval()


def _observe_maps(norm: nn.BatchNorm2d, inputs: tuple[torch.Tensor]) -> None:
    """Let `norm` take the statistics of maps; pooled values hardly vary, scaled up they would be noise."""
    norm.momentum = None  # the plain average of what is seen
    norm.train(inputs[0].shape[2:].numel() > 1)


def card_of(card: Card, module: nn.Module, *, published: bool, **changes: Any) -> Card:
    """The zoo's card with `changes`. What was published stays only where the model is the published one."""
    counted = sum(parameter.numel() for parameter in module.parameters())
    if not published or counted != card.parameters:  # the latter: a head of the user's own
        changes |= {"top1": None, "multiply_accumulates": None, "parameters": counted}
        changes |= {"weights": "", "licence": "", "remark": ""}  # of the published weights, not of these
    return dataclasses.replace(card, **changes)
