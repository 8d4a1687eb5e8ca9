"""Which weights of a two-tower checkpoint are the image tower's.

Layouts: apple/ml-mobileclip (image_encoder, text_encoder), open_clip (visual, and text or flat text names)
and OpenAI's, which open_clip keeps.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from saccade.errors import CheckpointError

__all__ = ["has_text_tower", "image_state", "is_text_name"]

_IMAGE = ("image_encoder.model.", "visual.")
_OPEN_CLIP_TRUNK = "visual.trunk."
_OWN_TRUNK = "trunk."  # as `saccade.models.clip.ImageTower` saves itself
# OpenAI's files keep these sizes among the weights.
_SIZES_AS_TENSORS = ("input_resolution", "context_length", "vocab_size")
_TEXT = (
    "text_encoder.",
    "text.",
    "transformer.",
    "token_embedding.",
    "positional_embedding",
    "text_projection",
    "ln_final.",
    "logit_scale",
    "logit_bias",
)


def image_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The image tower's weights; all of `state` where it has one tower only.

    Names of neither tower raise CheckpointError. open_clip's prefix of timm towers is taken off.
    """
    if not any(name.startswith(_IMAGE) for name in state):
        return {name.removeprefix(_OWN_TRUNK): tensor for name, tensor in state.items()}
    stray = [name for name in state if not name.startswith((*_IMAGE, *_TEXT, *_SIZES_AS_TENSORS))]
    if stray:
        raise CheckpointError(f"{len(stray)} names belong to neither tower: {', '.join(stray[:10])}")
    images = {name: tensor for name, tensor in state.items() if name.startswith(_IMAGE)}
    return {name.removeprefix(_OPEN_CLIP_TRUNK): tensor for name, tensor in images.items()}


def has_text_tower(state: Mapping[str, Tensor]) -> bool:
    """Whether `state` has weights of a text tower, scalars aside."""
    return any(name.startswith(("text_encoder.", "text.", "token_embedding.")) for name in state)


def is_text_name(name: str) -> bool:
    """Whether a name of open_clip's layout is the text tower's or a scalar of both."""
    return name.startswith(_TEXT)
