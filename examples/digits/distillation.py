"""Training a vision transformer with a convolutional teacher, for pictures as few as these.

NViT's published weights were distilled too. Alone, a plain transformer of this size stays at chance for
hundreds of steps; the teacher's maps tell every token what to see in its patch, long before the class does.
Soft labels: Hinton et al., arXiv:1503.02531; the distillation token: Touvron et al., arXiv:2012.12877;
intermediate features: Romero et al., "FitNets", arXiv:1412.6550.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from saccade.models.deepmad import DeepMAD
from saccade.models.nvit import PREFIX_TOKENS, NViT


def distilled_loss(
    student: NViT, teacher: DeepMAD, images: Tensor, labels: Tensor, label_smoothing: float
) -> tuple[Tensor, Tensor]:
    """Return the student's logits (B, K) and the loss.

    The class token learns the labels, the distillation token the teacher's probabilities, and the patch
    tokens in the middle of the student the teacher's map of the same stride, both normalised over channels.
    """
    with torch.no_grad():
        seen, soft = _teach(teacher, images, student.plan.grid_hw)
    tokens = student.embed(images)
    middle = len(student.blocks) // 2
    for block in student.blocks[: middle + 1]:
        tokens = block(tokens)
    imitated = tokens[:, PREFIX_TOKENS:]
    for block in student.blocks[middle + 1 :]:
        tokens = block(tokens)
    tokens = student.norm(tokens)
    by_class, by_distillation = student.head(tokens[:, 0]), student.head_dist(tokens[:, 1])
    labelled = F.cross_entropy(by_class, labels, label_smoothing=label_smoothing)
    answers = (labelled + F.cross_entropy(by_distillation, soft)) / 2
    features = F.mse_loss(_normalised(imitated), _normalised(seen))
    return (by_class + by_distillation) / 2, answers + features


def _teach(teacher: DeepMAD, images: Tensor, grid_hw: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """The teacher's last map of size `grid_hw` as tokens (B, N, C), and its probabilities (B, K)."""
    maps = [images]
    for block in teacher.block_list:
        maps.append(block(maps[-1]))
    seen = [each for each in maps if tuple(each.shape[2:]) == grid_hw][-1]
    return seen.flatten(2).transpose(1, 2), teacher.fc_linear(maps[-1].mean((2, 3))).softmax(1)


def _normalised(tokens: Tensor) -> Tensor:
    return F.layer_norm(tokens, tokens.shape[-1:])
