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
from digits.scenes import Pixels
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
        "channels": 128,
        "backbone_config": {"embed_dim": 16, "depths": [2, 2, 6, 2], "num_heads": [1, 2, 4, 8]},
    },
    epochs=24,
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
