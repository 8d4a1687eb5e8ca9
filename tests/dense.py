"""Every head over a narrow form of every backbone family: what the tests of dense models build."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from saccade.models import create

SWIN = {"embed_dim": 16, "depths": (1, 2, 1, 1), "num_heads": (1, 2, 4, 8)}
TINY_VIT = {"embed_dims": (16, 32, 64, 128), "depths": (1, 1, 2, 1), "num_heads": (1, 2, 4, 8)}
DEEPMAD = [
    {"type": "conv", "in": 3, "out": 16, "k": 3, "stride": 2},
    {"type": "SuperResK1KXK1", "in": 16, "out": 24, "mid": 8, "k": 5, "stride": 2, "layers": 2},
    {"type": "SuperResK1DWSEK1", "in": 24, "out": 24, "mid": 48, "k": 3, "stride": 2, "layers": 1},
    {"type": "SuperResK1DWK1", "in": 24, "out": 32, "mid": 48, "k": 3, "stride": 2, "layers": 1},
    {"type": "conv", "in": 32, "out": 40, "k": 3, "stride": 2},
]
# Small sizes of every backbone that there are cards for.
BACKBONES: dict[str, dict[str, Any]] = {
    "stvit_r_swin_tiny": {**SWIN, "depths": (1, 1, 6, 1)},
    "swin_tiny": SWIN,
    "tiny_vit_5m_224": TINY_VIT,
    "deepmad_r18": {"structure": DEEPMAD},
    "fastvit_mci2": {"embed_dims": (16, 32, 64, 128), "layers": (1, 1, 1, 1)},
    "clip_vit_b_16": {"embed_dim": 48, "depth": 4, "num_heads": 4},
}
HEADS = ("fpn", "upernet", "dpt")
NAMES = [f"{head}_{backbone}" for head in HEADS for backbone in BACKBONES]


def small(name: str, **config: Any) -> nn.Module:
    """`name` with a narrow backbone, of 64 x 96 pixels where its size is fixed."""
    head, backbone = name.split("_", 1)
    config = {"channels": 64 if head == "fpn" else 32, "backbone_config": BACKBONES[backbone], **config}
    if head != "dpt":
        config = {"num_classes": 7, **config}
    if backbone == "clip_vit_b_16":
        config["img_size"] = (64, 96)
    return scrambled(create(name, **config))


@torch.no_grad()
def scrambled(module: nn.Module) -> nn.Module:
    """`module` with batch norms that do something: fresh ones would hide mistakes."""
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            for value in (part.weight, part.bias, part.running_mean):
                assert value is not None
                value.add_(0.3 * torch.randn_like(value))
            assert part.running_var is not None
            part.running_var.mul_(1 + torch.rand_like(part.running_var))
    return module
