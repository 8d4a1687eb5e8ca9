"""The feature pyramid against mmdet's numbers and torchvision's."""

from __future__ import annotations

from collections import OrderedDict

import torch
from tests import parity
from tests.exported import Exported
from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from saccade.models.heads.fpn import FPN

LEVELS = ("p2", "p3", "p4", "p5", "p6")


class FourMaps(nn.Module):
    """The pyramid with one argument for each map, as exporters like them."""

    def __init__(self, fpn: FPN) -> None:
        super().__init__()
        self.fpn = fpn

    def forward(self, c2: Tensor, c3: Tensor, c4: Tensor, c5: Tensor) -> tuple[Tensor, ...]:
        maps: tuple[Tensor, ...] = self.fpn((c2, c3, c4, c5))
        return maps


def test_as_mmdet_in_torch_and_onnx_runtime() -> None:
    reference = parity.load("detection", "fpn_256x320")
    fpn = FPN(reference.config["in_channels"], reference.config["out_channels"])
    state = parity.state_dict(reference)
    fpn.load_state_dict({key.removeprefix("neck."): value for key, value in state.items()})
    given = parity.inputs(reference)
    with torch.no_grad():
        maps = fpn(tuple(given.values()))
    free = {name: {0: "batch", 2: f"{name}_height", 3: f"{name}_width"} for name in given}
    samples = {name: value[:, :, :7, :9] for name, value in given.items()}
    exported = Exported(FourMaps(fpn).eval(), samples, free, LEVELS)(*given.values())
    for name, in_torch, in_onnx in zip(LEVELS, maps, exported, strict=True):
        parity.check(name, in_torch, reference)
        parity.check(name, in_onnx, reference)


def test_odd_sizes_as_torchvision() -> None:
    torch.manual_seed(0)
    ours, theirs = FPN((8, 12, 16, 20), 8), FeaturePyramidNetwork([8, 12, 16, 20], 8, LastLevelMaxPool())
    pairs = ("lateral_convs", "inner_blocks"), ("fpn_convs", "layer_blocks")
    theirs.load_state_dict(
        {
            f"{their}.{i}.0.{part}": ours.state_dict()[f"{our}.{i}.conv.{part}"]
            for our, their in pairs
            for i in range(4)
            for part in ("weight", "bias")
        }
    )
    sizes = [(25, 43), (13, 22), (7, 11), (4, 6)]
    maps = [torch.randn(2, width, *size) for width, size in zip((8, 12, 16, 20), sizes, strict=True)]
    expected = theirs(OrderedDict(zip("abcd", maps, strict=True))).values()
    for actual, wanted in zip(ours(maps), expected, strict=True):
        torch.testing.assert_close(actual, wanted)
