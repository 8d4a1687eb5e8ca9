"""Dense prediction: a backbone's four maps and a head that gives every place of the picture its answer.

Semantic segmentation with Semantic FPN, UperNet or DPT; depth with DPT. Checkpoints have the layout of
mmsegmentation: `backbone.*` in any of the layouts that the backbone itself reads, and `decode_head.*`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from saccade.errors import CheckpointError, UsageError
from saccade.models import create
from saccade.models.checkpoint import Checkpoint, load_strict
from saccade.models.heads.dpt import DPTDepthHead, DPTSegmentationHead
from saccade.models.heads.semantic_fpn import SemanticFPNHead
from saccade.models.heads.upernet import UPerHead

__all__ = ["DenseModel", "dpt", "segmenter"]

STRIDES = (4, 8, 16, 32)
ADE20K_CLASSES = 150
_CLASSIFIER = "decode_head.conv_seg.weight"


class DenseModel(nn.Module):
    """(B, 3, H, W) -> what the head gives: logits (B, K, h, w), or depth (B, H, W).

    `backbone` has `channels` and `strides`; with `pyramid`, maps at other strides than 4, 8, 16 and 32 (those
    of a plain ViT) are resampled to these first, without parameters.
    """

    def __init__(self, backbone: nn.Module, decode_head: nn.Module, *, pyramid: bool) -> None:
        super().__init__()
        self.backbone = backbone
        self.decode_head = decode_head
        self.factors = [s / t for s, t in zip(_strides(backbone), STRIDES, strict=True)] if pyramid else []

    @property
    def gives_depth(self) -> bool:
        """Whether the answer is depth, not logits."""
        return isinstance(self.decode_head, DPTDepthHead)

    def forward(self, image: Tensor) -> Tensor:
        maps: Sequence[Tensor] = self.backbone(image)
        if self.factors:
            maps = [_scaled(x, factor) for x, factor in zip(maps, self.factors, strict=True)]
        prediction: Tensor = self.decode_head(maps)
        return prediction


def segmenter(
    *,
    checkpoint: Checkpoint | None,
    features: bool,
    backbone: str,
    head: str,
    num_classes: int | None = None,
    channels: int | None = None,
    img_size: int | tuple[int, int] | None = None,
    backbone_config: Mapping[str, Any] | None = None,
) -> nn.Module:
    """Logits at stride 4 (DPT: 2) of `head` ("fpn", "upernet" or "dpt") over the zoo's `backbone`.

    num_classes: None takes the checkpoint's, or ADE20K's 150 without one. channels: width of the head, None
    for the standard one. img_size: for backbones with a position table. backbone_config: sizes for `create`.
    """
    _refuse_features(features)
    if head not in _HEADS:
        raise UsageError(f"there is no head {head!r}: choose from {', '.join(sorted(_HEADS))}")
    build, standard = _HEADS[head]
    state = dict(checkpoint.state) if checkpoint else None
    if num_classes is None:
        num_classes = state[_CLASSIFIER].shape[0] if state and _CLASSIFIER in state else ADE20K_CLASSES
    trunk = _backbone(backbone, state, img_size, backbone_config)
    module = build(trunk, channels or standard, num_classes)
    return _loaded(DenseModel(trunk, module, pyramid=head != "dpt"), state, f"{head}_{backbone}")


def dpt(
    *,
    checkpoint: Checkpoint | None,
    features: bool,
    backbone: str,
    num_classes: int | None = None,
    max_depth: float | None = None,
    channels: int = 256,
    img_size: int | tuple[int, int] | None = None,
    backbone_config: Mapping[str, Any] | None = None,
) -> nn.Module:
    """DPT: depth of every pixel; with `num_classes`, or a checkpoint that has classes, a segmenter.

    max_depth: of depths in metres; None for depths of no known unit.
    """
    state = dict(checkpoint.state) if checkpoint else None
    if num_classes is not None or (state and _CLASSIFIER in state):
        if max_depth is not None:
            raise UsageError(f"dpt_{backbone} gives classes here: leave max_depth={max_depth}")
        return segmenter(
            checkpoint=checkpoint,
            features=features,
            backbone=backbone,
            head="dpt",
            num_classes=num_classes,
            channels=channels,
            img_size=img_size,
            backbone_config=backbone_config,
        )
    _refuse_features(features)
    trunk = _backbone(backbone, state, img_size, backbone_config)
    head = DPTDepthHead(_channels(trunk), _strides(trunk), channels, max_depth)
    return _loaded(DenseModel(trunk, head, pyramid=False), state, f"dpt_{backbone}")


def _fpn(trunk: nn.Module, channels: int, num_classes: int) -> nn.Module:
    return SemanticFPNHead(_channels(trunk), channels, num_classes)


def _upernet(trunk: nn.Module, channels: int, num_classes: int) -> nn.Module:
    return UPerHead(_channels(trunk), channels, num_classes)


def _dpt(trunk: nn.Module, channels: int, num_classes: int) -> nn.Module:
    return DPTSegmentationHead(_channels(trunk), _strides(trunk), channels, num_classes)


# How each head is built over a backbone, and its usual width.
_HEADS: Mapping[str, tuple[Callable[[nn.Module, int, int], nn.Module], int]] = {
    "fpn": (_fpn, 256),
    "upernet": (_upernet, 512),
    "dpt": (_dpt, 256),
}


def _backbone(
    name: str,
    state: Mapping[str, Tensor] | None,
    img_size: int | tuple[int, int] | None,
    config: Mapping[str, Any] | None,
) -> nn.Module:
    """The maps of `name`, with the `backbone.*` weights of `state`."""
    sizes = {**(config or {}), **({} if img_size is None else {"img_size": img_size})}
    own = _part(state, "backbone.") if state is not None else None
    if own is None:
        return create(name, features=True, **sizes)
    if any(key.startswith("trunk.") for key in own):  # as `DenseModel` itself names timm's backbones
        trunk = create(name, features=True, **sizes)
        load_strict(trunk, own, what=name)
        return trunk
    return create(name, own, features=True, **sizes)


def _loaded(module: DenseModel, state: Mapping[str, Tensor] | None, what: str) -> DenseModel:
    """`module` with the head's weights of `state`; the auxiliary head of mmseg's training is left out."""
    if state is None:
        return module
    foreign = sorted({key.split(".")[0] for key in state} - {"backbone", "decode_head", "auxiliary_head"})
    if foreign:
        raise CheckpointError(
            f"the checkpoint does not fit {what}: beside backbone.* and decode_head.* it has {foreign}"
        )
    load_strict(module.decode_head, _part(state, "decode_head."), what=f"the head of {what}")
    return module


def _part(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    found = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    if not found:
        raise CheckpointError(
            f"the checkpoint has no {prefix}*: dense models want backbone.* and decode_head.*, as "
            "mmsegmentation writes them"
        )
    return found


def _scaled(x: Tensor, factor: float) -> Tensor:
    return x if factor == 1 else F.interpolate(x, scale_factor=factor, mode="bilinear", align_corners=False)


def _channels(trunk: nn.Module) -> tuple[int, ...]:
    channels: tuple[int, ...] = trunk.channels  # type: ignore[assignment]  # every `features=True` module has them
    return channels


def _strides(trunk: nn.Module) -> tuple[int, ...]:
    strides: tuple[int, ...] = trunk.strides  # type: ignore[assignment]
    return strides


def _refuse_features(features: bool) -> None:
    if features:
        raise UsageError("features=True is for backbones: create the backbone by its own name")
