"""The four demo networks: small members of each family, and how each is trained."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from digits.scenes import SIZE_PX, Pictures, Pixels
from saccade.errors import UsageError
from saccade.models import create
from saccade.models.checkpoint import read_checkpoint

WEIGHTS = Path(__file__).parents[1] / "weights"

MEAN_RGB = (0.485, 0.456, 0.406)
STD_RGB = (0.229, 0.224, 0.225)


@dataclasses.dataclass(frozen=True)
class Net:
    """`model` and `config` are the arguments of `saccade.models.create`; the rest is the training recipe.

    size_px: side of the pictures that it is given. teacher: a demo network, trained before, whose maps and
    answers this one learns from.
    """

    name: str
    title: str
    model: str
    config: Mapping[str, Any]
    epochs: int
    learning_rate: float
    batch: int = 16
    weight_decay: float = 0.05
    size_px: int = SIZE_PX
    teacher: str | None = None

    @property
    def weights(self) -> Path:
        return WEIGHTS / f"{self.name}.safetensors"


# Both unit types of the family: dense ones (ReLU) where the map is large, depthwise ones with
# squeeze-and-excitation (SiLU) where it is small.
_DEEPMAD = [
    {"class": "ConvKXBNRELU", "in": 3, "out": 16, "k": 3, "s": 2},
    {"class": "SuperResK1KXK1", "in": 16, "out": 32, "btn": 16, "k": 3, "s": 2, "L": 1},
    {"class": "SuperResK1KXK1", "in": 32, "out": 64, "btn": 32, "k": 3, "s": 2, "L": 1},
    {"class": "SuperResK1DWSEK1", "in": 64, "out": 96, "btn": 192, "k": 5, "s": 2, "L": 3},
    {"class": "SuperResK1DWSEK1", "in": 96, "out": 128, "btn": 256, "k": 5, "s": 2, "L": 2},
    {"class": "ConvKXBNRELU", "in": 128, "out": 256, "k": 1, "s": 1},
]

# Irregular, as after pruning: no two neighbouring blocks alike; dimensions per head are multiples of 8.
_NVIT = {
    "EMB": 96,
    "head": [4, 3, 4, 2, 4, 3],
    "QK": [16, 24, 32, 40, 24, 32],
    "V": [32, 40, 24, 48, 32, 40],
    "MLP": [256, 320, 384, 288, 352, 256],
}

NETS = {
    net.name: net
    for net in (
        Net(
            "stvit",
            "STViT-R",
            "stvit_r_swin_tiny",
            {"embed_dim": 16, "depths": [2, 2, 6, 2], "num_heads": [1, 2, 4, 8], "num_classes": 10},
            epochs=20,
            learning_rate=2e-3,
            teacher="deepmad",
        ),
        Net(
            "nvit",
            "NViT",
            "nvit",
            # A plain transformer learns slowly: a third of the tokens buys it more pictures.
            {"dims": _NVIT, "num_classes": 10, "img_size": 64, "patch_size": 8},
            epochs=50,
            learning_rate=1e-3,
            size_px=64,
        ),
        Net(
            "tinyvit",
            "TinyViT",
            "tiny_vit_5m_224",
            {
                "embed_dims": [16, 32, 64, 128],
                "depths": [1, 1, 4, 2],
                "num_heads": [1, 2, 4, 8],
                "num_classes": 10,
            },
            epochs=14,
            learning_rate=1e-3,
        ),
        Net(
            "deepmad",
            "DeepMAD",
            "deepmad_r18",
            {"structure": _DEEPMAD, "num_classes": 10},
            epochs=14,
            learning_rate=2e-3,
        ),
    )
}


def net(name: str) -> Net:
    """The demo network called `name`."""
    if name not in NETS:
        raise UsageError(f"there is no demo network {name!r}: choose from {', '.join(NETS)}")
    return NETS[name]


def trained(name: str) -> nn.Module:
    """The demo network called `name` with its committed weights, in eval mode."""
    chosen = net(name)
    return create(chosen.model, checkpoint=chosen.weights, **chosen.config)


def save(module: nn.Module, chosen: Net, path: Path) -> None:
    """Write float16 safetensors; the metadata holds `config`, so that the file tells how to rebuild it."""
    state = {
        name: value.half().contiguous() if value.is_floating_point() else value.contiguous()
        for name, value in module.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(state, path, {"model": chosen.model, "config": json.dumps(dict(chosen.config))})


@torch.inference_mode()
def logits(module: nn.Module, pictures: Pictures, batch: int = 50) -> npt.NDArray[np.float32]:
    """(n, classes): what `module` answers."""
    starts = range(0, len(pictures), batch)
    parts = [module(inputs(pictures.images[start : start + batch])) for start in starts]
    return torch.cat(parts).numpy()


def predictions(module: nn.Module, pictures: Pictures) -> npt.NDArray[np.int64]:
    """(n,): the class with the largest logit, -1 where a logit is not a finite number."""
    answered = logits(module, pictures)
    return np.where(np.isfinite(answered).all(1), answered.argmax(1), -1)


def accuracy(module: nn.Module, pictures: Pictures) -> float:
    """Share of `pictures` whose best class is right."""
    return float((predictions(module, pictures) == pictures.labels).mean())


def stored_config(path: Path) -> dict[str, Any]:
    """The `config` that `save` wrote beside the weights."""
    return dict(read_checkpoint(path).metadata["config"])


def inputs(images: Pixels) -> Tensor:
    """(B, H, W, 3) uint8 -> (B, 3, H, W) float32, as the bundles' cards say."""
    scaled = torch.from_numpy(images).permute(0, 3, 1, 2).to(torch.float32) / 255
    mean, std = torch.tensor(MEAN_RGB).view(3, 1, 1), torch.tensor(STD_RGB).view(3, 1, 1)
    return (scaled - mean) / std
