"""Semantic FPN: every level of a feature pyramid is brought to stride 4, their sum is classified.

Kirillov et al., "Panoptic Feature Pyramid Networks", arXiv 1901.02446, section 3.1 and figure 3. The decoder
is segmentation_models_pytorch's, with its nearest upsampling in the pyramid and its corner-aligned bilinear
one in the branches.
"""

from __future__ import annotations

from collections.abc import Sequence

from segmentation_models_pytorch.decoders.fpn.decoder import FPNDecoder
from torch import Tensor, nn

from saccade.errors import UsageError

__all__ = ["SemanticFPNHead"]

_GROUPS = 32  # of the decoder's group norms


class SemanticFPNHead(nn.Module):
    """Four maps, each half the one before -> logits (B, num_classes, H0, W0) at the size of the finest.

    channels: width of the pyramid; the branches have half of it.
    """

    def __init__(self, in_channels: Sequence[int], channels: int, num_classes: int) -> None:
        super().__init__()
        if channels % (2 * _GROUPS):
            raise UsageError(f"channels={channels}: a Semantic FPN needs a multiple of {2 * _GROUPS}")
        self.decoder = FPNDecoder(
            list(in_channels), pyramid_channels=channels, segmentation_channels=channels // 2
        )
        self.conv_seg = nn.Conv2d(channels // 2, num_classes, 1)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        return self.conv_seg(self.decoder(list(maps)))
