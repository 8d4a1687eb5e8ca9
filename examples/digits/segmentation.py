"""The demo segmenter: what it is, how well it labels the pixels of `digits.objects`' scenes."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from digits import detector, nets, scenes
from digits.objects import Scene
from digits.scenes import Pixels
from saccade.bundle import Bundle
from saccade.export import export_bundle
from saccade.models import create
from saccade.models.checkpoint import load_strict

LABELS = ("background", *scenes.LABELS)
NARROW = nets.Net(
    "segmenter-narrow",
    "STViT-R with a Semantic FPN",
    "fpn_stvit_r_swin_tiny",
    {
        "num_classes": len(LABELS),
        "channels": 128,
        "backbone_config": {"embed_dim": 16, "depths": [2, 2, 6, 2], "num_heads": [1, 2, 4, 8]},
    },
    epochs=24,
    learning_rate=2e-3,
    batch=8,
)
NET = dataclasses.replace(
    NARROW,
    name="segmenter",
    config={
        **NARROW.config,
        # Twice as wide; the second of the coarsest blocks, a quarter of all weights, is left out for it.
        "backbone_config": {"embed_dim": 32, "depths": [2, 2, 6, 1], "num_heads": [1, 2, 4, 8]},
    },
    epochs=48,
    learning_rate=1e-3,
)


def fresh() -> nn.Module:
    """The narrow segmenter before its training: the backbone of the demo's detector, and a random head."""
    module = create(NARROW.model, **NARROW.config)
    found = create(detector.NET.model, checkpoint=detector.NET.weights, **detector.NET.config)
    backbone = found.get_submodule("backbone").state_dict()
    load_strict(module.get_submodule("backbone"), backbone, what="the backbone")
    return module


def started(weights: Path) -> nn.Module:
    """A network of `NET` to go on training from `weights`; those of `NARROW` are widened."""
    narrow = nets.stored_config(weights) == NARROW.config
    module = create(NARROW.model, checkpoint=weights, **(NARROW if narrow else NET).config)
    return widened(module) if narrow else module


def widened(narrow: nn.Module) -> nn.Module:
    """A network of `NET` that begins with what `narrow`, one of `NARROW`, has learnt.

    Every channel of the backbone stands twice, and what reads both copies reads each by a random share: the
    answers stay, but for the block left out, and the copies part in training. Net2WiderNet of Chen et al.,
    "Net2Net: Accelerating Learning via Knowledge Transfer", arXiv:1511.05641.
    """
    module = create(NET.model, **NET.config)
    learnt = narrow.state_dict()
    state = {name: _doubled(name, learnt[name], like) for name, like in module.state_dict().items()}
    load_strict(module, state, what="the widened segmenter")
    return module


def _doubled(name: str, weight: Tensor, like: Tensor) -> Tensor:
    for axis, (has, asked) in enumerate(zip(weight.shape, like.shape, strict=True)):
        if has == asked:
            continue
        weight = weight.repeat_interleave(2, axis)
        if axis == 1:
            share = 0.5 + 0.25 * torch.randn_like(weight[:, ::2])
            weight = weight * torch.stack([share, 1 - share], 2).flatten(1, 2)
    # Queries and keys of twice the width have twice the product, which is divided by twice the root of two.
    if "attn.qkv." in name:
        weight[: len(weight) // 3] *= 0.5**0.5
    return weight * 0.5**0.5 if "attn.q." in name else weight


def trained(weights: Path = NET.weights) -> nn.Module:
    """The segmenter with its committed weights, or those of another training, in eval mode."""
    return create(NET.model, checkpoint=weights, **NET.config)


def batch(painted: Sequence[Scene]) -> tuple[Tensor, Tensor]:
    """Normalised images (B, 3, H, W) and the class of every pixel (B, H, W) int64."""
    images = nets.inputs(np.stack([each.image for each in painted]))
    return images, torch.from_numpy(np.stack([each.semantic for each in painted])).long()


def pixel_logits(module: nn.Module, images: Tensor) -> Tensor:
    """(B, classes, H, W): the module's logits, brought to the pictures' size as the predictor does."""
    return F.interpolate(module(images), images.shape[-2:], mode="bilinear", align_corners=False)


def every_other(logits: Tensor, size_hw: tuple[int, int], first_yx: tuple[int, int]) -> Tensor:
    """(B, classes, H / 2, W / 2): `pixel_logits`' every other row and column from `first_yx` on, for less."""
    down, across = (
        F.interpolate(torch.eye(cells)[None], pixels, mode="linear", align_corners=False)[0, :, first::2]
        for cells, pixels, first in zip(logits.shape[-2:], size_hw, first_yx, strict=True)
    )
    return down.T @ logits @ across


def loss(logits: Tensor, classes: Tensor) -> Tensor:
    """Cross entropy of all pixels, that of the ink's digit, and 1 - IoU averaged over the classes that occur.

    The second leaves background out, of which there is so much, where the question is which digit it is. The
    third is what is measured in the end, made smooth by probabilities: Rahman and Wang, "Optimizing
    Intersection-Over-Union in Deep Neural Networks for Image Segmentation", ISVC 2016.
    """
    answered = logits.softmax(1)
    true = F.one_hot(classes, logits.shape[1]).permute(0, 3, 1, 2).to(logits.dtype)
    both = (answered * true).sum((0, 2, 3))
    either = (answered + true - answered * true).sum((0, 2, 3))
    occurring = true.sum((0, 2, 3)) > 0
    digit = F.cross_entropy(logits[:, 1:], classes - 1, ignore_index=-1)
    return F.cross_entropy(logits, classes) + digit + 1 - (both / either)[occurring].mean()


@torch.inference_mode()
def label_maps(module: nn.Module, painted: Sequence[Scene], size: int = 20) -> Pixels:
    """(n, H, W): the class that the module gives every pixel, `size` scenes at a time."""
    starts = range(0, len(painted), size)
    inputs = (batch(painted[start : start + size])[0] for start in starts)
    answers = [pixel_logits(module, images).argmax(1).to(torch.uint8) for images in inputs]
    return torch.cat(answers).numpy()


def mean_iou(module: nn.Module, painted: Sequence[Scene], size: int = 20) -> float:
    """Intersection over union of each class over all pixels of all scenes, averaged over the classes."""
    true = np.stack([scene.semantic for scene in painted])
    return float(ious(confusion(true, label_maps(module, painted, size))).mean())


def confusion(true: Pixels, answered: Pixels) -> npt.NDArray[np.int64]:
    """(true, answered): how many pixels of each class were given each class, from maps of one shape."""
    pairs = true.astype(np.int64).ravel() * len(LABELS) + answered.ravel()
    return np.bincount(pairs, minlength=len(LABELS) ** 2).reshape(len(LABELS), -1)


def ious(counts: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Of the classes that occur or are answered, from `confusion`."""
    both = np.diag(counts)
    either = counts.sum(0) + counts.sum(1) - both
    return both[either > 0] / either[either > 0]


def export(out: Path, progress: Callable[[str], None] | None = None) -> Bundle:
    """Export the segmenter from its committed checkpoint to the new folder `out`, verified."""
    with tempfile.TemporaryDirectory() as scratch:
        labels = Path(scratch) / "labels.txt"
        labels.write_text("\n".join(LABELS))
        return export_bundle(
            NET.model,
            NET.weights,
            out,
            labels=labels,
            config=NET.config,
            input_size_hw=(scenes.SIZE_PX, scenes.SIZE_PX),
            progress=progress,
        )
