"""Training a vision transformer with a convolutional teacher, for pictures as few as these.

Alone, the small STViT-R learns its 1,400 digits better than it reads new ones. A teacher's maps tell every
token what there is to see around it, and its answers say which digits look alike.
Soft labels: Hinton et al., arXiv:1503.02531. Intermediate features: Romero et al., arXiv:1412.6550.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saccade.models.deepmad import DeepMAD
from saccade.models.stvit import STAGE

STRIDE = 16  # of the stage with the semantic tokens


class Distillation(nn.Module):
    """Logits and loss of `student`, an STViT-R, taught by `teacher`.

    The head learns the labels and the teacher's probabilities. The image tokens that are recovered from the
    semantic ones learn the teacher's map of the same stride, both normalised over channels, through a linear
    layer between the two widths that belongs to the training and is dropped after it.
    """

    def __init__(self, student: nn.Module, teacher: DeepMAD) -> None:
        super().__init__()
        self.student, self.teacher = student, teacher.requires_grad_(False)
        self.tokens = torch.empty(0)
        recovery = student.layers[STAGE].blocks[-1]
        recovery.register_forward_hook(self._record)
        self.adapt = nn.Linear(recovery.norm1.weight.numel(), _width(teacher))

    def forward(self, images: Tensor, labels: Tensor, label_smoothing: float) -> tuple[Tensor, Tensor]:
        """Return logits (B, K) and the loss."""
        seen, soft = self._teach(images)
        logits = self.student(images)
        labelled = F.cross_entropy(logits, labels, label_smoothing=label_smoothing)
        answers = (labelled + F.cross_entropy(logits, soft)) / 2
        features = F.mse_loss(_normalised(self.adapt(self.tokens)), _normalised(seen))
        return logits, answers + features

    def _record(self, block: nn.Module, _: object, output: Tensor) -> None:
        self.tokens = output.flatten(1, 2)

    @torch.no_grad()
    def _teach(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The teacher's last map of stride 16 as tokens (B, N, C), and its probabilities (B, K)."""
        maps = [images]
        for block in self.teacher.block_list:
            maps.append(block(maps[-1]))
        seen = [each for each in maps if each.shape[2] * STRIDE == images.shape[2]][-1]
        return seen.flatten(2).transpose(1, 2), self.teacher.fc_linear(maps[-1].mean((2, 3))).softmax(1)


def _width(teacher: DeepMAD) -> int:
    """Channels of the teacher's last map of stride 16."""
    blocks = teacher.structure.blocks
    strides = [teacher.structure.stride_at(index) for index in range(len(blocks))]
    return [block.out_channels for block, stride in zip(blocks, strides, strict=True) if stride == STRIDE][-1]


def _normalised(tokens: Tensor) -> Tensor:
    return F.layer_norm(tokens, tokens.shape[-1:])
