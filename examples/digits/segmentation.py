"""The demo segmenter: what it is, how well it labels the pixels of `digits.objects`' scenes."""

from __future__ import annotations

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
from saccade.bundle import Bundle
from saccade.export import export_bundle
from saccade.models import create
from saccade.models.checkpoint import load_strict

LABELS = ("background", *scenes.LABELS)
NET = nets.Net(
    "segmenter",
    "STViT-R with a Semantic FPN",
    "fpn_stvit_r_swin_tiny",
    {
        "num_classes": len(LABELS),
        "channels": 64,
        "backbone_config": {"embed_dim": 16, "depths": [2, 2, 6, 2], "num_heads": [1, 2, 4, 8]},
    },
    epochs=10,
    learning_rate=2e-3,
    batch=8,
)


def fresh() -> nn.Module:
    """The segmenter before its training: the backbone is that of the demo's detector, the head is random."""
    module = create(NET.model, **NET.config)
    found = create(detector.NET.model, checkpoint=detector.NET.weights, **detector.NET.config)
    backbone = found.get_submodule("backbone").state_dict()
    load_strict(module.get_submodule("backbone"), backbone, what="the backbone")
    return module


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


def loss(logits: Tensor, classes: Tensor) -> Tensor:
    """Cross entropy, and 1 - intersection over union of probabilities, averaged over the classes that occur.

    The second is what is measured in the end, made smooth: Rahman and Wang, "Optimizing
    Intersection-Over-Union in Deep Neural Networks for Image Segmentation", ISVC 2016.
    """
    answered = logits.softmax(1)
    true = F.one_hot(classes, logits.shape[1]).permute(0, 3, 1, 2).to(logits.dtype)
    both = (answered * true).sum((0, 2, 3))
    either = (answered + true - answered * true).sum((0, 2, 3))
    occurring = true.sum((0, 2, 3)) > 0
    return F.cross_entropy(logits, classes) + 1 - (both / either)[occurring].mean()


@torch.inference_mode()
def mean_iou(module: nn.Module, painted: Sequence[Scene], size: int = 20) -> float:
    """Intersection over union of each class over all pixels of all scenes, averaged over the classes."""
    confusion = np.zeros((len(LABELS), len(LABELS)), np.int64)
    for start in range(0, len(painted), size):
        images, classes = batch(painted[start : start + size])
        answers = pixel_logits(module, images).argmax(1)
        pairs = (classes * len(LABELS) + answers).flatten()
        confusion += np.bincount(pairs.numpy(), minlength=confusion.size).reshape(confusion.shape)
    return float(ious(confusion).mean())


def ious(confusion: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """(classes,) from counts (true, answered)."""
    both = np.diag(confusion)
    return both / (confusion.sum(0) + confusion.sum(1) - both)


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
