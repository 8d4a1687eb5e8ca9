"""Training with a convolutional teacher, for vision transformers and pictures as few as these.

NViT's published weights were distilled too. Alone, a plain transformer of this size stays at chance for
hundreds of steps; the teacher's maps tell every token what to see in its patch, long before the class does.
Soft labels: Hinton et al., arXiv:1503.02531; the distillation token: Touvron et al., arXiv:2012.12877;
intermediate features: Romero et al., "FitNets", arXiv:1412.6550.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saccade.models.deepmad import DeepMAD
from saccade.models.nvit import PREFIX_TOKENS, NViT

STRIDE = 16


class Distillation(nn.Module):
    """Logits and loss of `student`, an NViT or an STViT-R, taught by `teacher`.

    The student's tokens of stride 16 learn the teacher's map of that stride, both normalised over channels;
    where their widths differ, through a linear layer that belongs to the training and is dropped after it.
    An NViT's class token learns the labels and its distillation token the teacher's probabilities; other
    students learn both with their one head.
    """

    def __init__(self, student: nn.Module, teacher: DeepMAD) -> None:
        super().__init__()
        self.student, self.teacher = student, teacher.requires_grad_(False)
        self.tokens = torch.empty(0)
        inner = _inner_block(student)
        inner.register_forward_hook(self._record)
        width, taught = inner.norm1.weight.numel(), _width(teacher)
        self.adapt = nn.Identity() if width == taught else nn.Linear(width, taught)

    def forward(self, images: Tensor, labels: Tensor, label_smoothing: float) -> tuple[Tensor, Tensor]:
        """Return logits (B, K) and the loss."""
        seen, soft = self._teach(images)
        by_label, by_teacher = _both_logits(self.student, images)
        labelled = F.cross_entropy(by_label, labels, label_smoothing=label_smoothing)
        answers = (labelled + F.cross_entropy(by_teacher, soft)) / 2
        features = F.mse_loss(_normalised(self.adapt(self.tokens)), _normalised(seen))
        return (by_label + by_teacher) / 2, answers + features

    def _record(self, block: nn.Module, _: object, output: Tensor) -> None:
        """Keep what an inner block returned, as image tokens (B, N, C)."""
        self.tokens = output[:, PREFIX_TOKENS:] if output.ndim == 3 else output.flatten(1, 2)

    @torch.no_grad()
    def _teach(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The teacher's last map of stride 16 as tokens (B, N, C), and its probabilities (B, K)."""
        maps = [images]
        for block in self.teacher.block_list:
            maps.append(block(maps[-1]))
        seen = [each for each in maps if each.shape[2] * STRIDE == images.shape[2]][-1]
        return seen.flatten(2).transpose(1, 2), self.teacher.fc_linear(maps[-1].mean((2, 3))).softmax(1)


def _inner_block(student: nn.Module) -> nn.Module:
    """The middle block of an NViT, the last one of stride 16 of an STViT-R."""
    if isinstance(student, NViT):
        return student.blocks[len(student.blocks) // 2]
    return student.layers[2].blocks[-1]


def _both_logits(student: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    if isinstance(student, NViT):
        return student.both_logits(images)
    logits = student(images)
    return logits, logits


def _width(teacher: DeepMAD) -> int:
    """Channels of the teacher's last map of stride 16."""
    blocks = teacher.structure.blocks
    strides = [teacher.structure.stride_at(index) for index in range(len(blocks))]
    return [block.out_channels for block, stride in zip(blocks, strides, strict=True) if stride == STRIDE][-1]


def _normalised(tokens: Tensor) -> Tensor:
    return F.layer_norm(tokens, tokens.shape[-1:])
