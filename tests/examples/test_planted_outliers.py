"""Planted outliers: the function stays, some channels grow, and naive conversions break on them."""

from __future__ import annotations

import runpy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from digits import nets, scenes
from digits.planted_outliers import FLOAT16_BREAKER, INT8_BREAKER, joints, plant
from saccade.models.deepmad import ConvBN

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
NAMES = list(nets.NETS)
OUTLIER = 100  # times the median channel


def channel_ratios(module: nn.Module, images: Tensor) -> list[float]:
    """For every norm, or batch norm with its ReLU: its largest channel over its median one, by magnitude."""
    ratios = []

    def record(part: nn.Module, _: object, output: Tensor) -> None:
        channels = output.transpose(1, -1) if output.ndim == 4 and isinstance(part, ConvBN) else output
        magnitudes = channels.abs().flatten(0, -2).amax(0)
        ratios.append(float(magnitudes.max() / magnitudes.median().clamp_min(1e-6)))

    kinds = nn.LayerNorm | ConvBN
    hooks = [part.register_forward_hook(record) for part in module.modules() if isinstance(part, kinds)]
    with torch.inference_mode():
        module(images)
    for hook in hooks:
        hook.remove()
    return ratios


@pytest.mark.parametrize("strength", [INT8_BREAKER, FLOAT16_BREAKER])
@pytest.mark.parametrize("name", NAMES)
def test_function_is_kept(name: str, strength: float) -> None:
    plain = nets.trained(name)
    images = nets.inputs(scenes.held_out(4).at(nets.net(name).size_px).images)
    with torch.inference_mode():
        expected, actual = plain(images), plant(plain, strength)(images)
    # Powers of two scale floats exactly; what is left is the order of additions.
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_outliers_are_there(name: str) -> None:
    plain = nets.trained(name)
    images = nets.inputs(scenes.held_out(4).at(nets.net(name).size_px).images)
    before = sum(ratio >= OUTLIER for ratio in channel_ratios(plain, images))
    after = sum(ratio >= OUTLIER for ratio in channel_ratios(plant(plain, INT8_BREAKER), images))
    assert len(list(joints(plain))) >= 6
    assert after >= before + 6


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_naive_conversions_break(name: str) -> None:
    damages: Callable[..., object] = runpy.run_path(str(EXAMPLES / "04_break_naive_conversions.py"))[
        "damages"
    ]
    plain, for_int8, for_float16 = damages(nets.net(name), scenes.held_out(300))
    assert plain.float32 == for_int8.float32 == for_float16.float32
    assert plain.float16 >= plain.float32 - 0.01
    assert for_float16.float16 <= plain.float16 - 0.5
    assert for_int8.int8 <= plain.int8 - 0.2
