"""Which weights of a two-tower checkpoint belong to which tower.

Layouts: apple/ml-mobileclip (image_encoder, text_encoder), open_clip (visual, and text or flat text names),
OpenAI's, which open_clip keeps, and our own (trunk, text); or one image tower in its own names.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from saccade.errors import CheckpointError

__all__ = ["has_text_tower", "image_state", "logit_scale", "text_state"]

_OWN_TRUNK = "trunk."  # as `saccade.models.clip.Towers` saves itself
_IMAGE = ("image_encoder.model.", "visual.", _OWN_TRUNK)
_OPEN_CLIP_TRUNK = "visual.trunk."
_SCALARS = ("logit_scale", "logit_bias")
# OpenAI's files keep these sizes among the weights.
_SIZES_AS_TENSORS = ("input_resolution", "context_length", "vocab_size")
_TEXT = ("text_encoder.", "text.")
_FLAT_TEXT = ("transformer.", "token_embedding.", "positional_embedding", "text_projection", "ln_final.")


def image_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The image tower's weights; all of `state` where it has one tower only.

    Names of neither tower raise CheckpointError. Prefixes of timm towers are taken off.
    """
    if not any(name.startswith(_IMAGE) for name in state):
        return dict(state)
    known = (*_IMAGE, *_TEXT, *_FLAT_TEXT, *_SCALARS, *_SIZES_AS_TENSORS)
    stray = [name for name in state if not name.startswith(known)]
    if stray:
        raise CheckpointError(f"{len(stray)} names belong to neither tower: {', '.join(stray[:10])}")
    images = {name: tensor for name, tensor in state.items() if name.startswith(_IMAGE)}
    return {
        name.removeprefix(_OPEN_CLIP_TRUNK).removeprefix(_OWN_TRUNK): tensor
        for name, tensor in images.items()
    }


def has_text_tower(state: Mapping[str, Tensor]) -> bool:
    """Whether `state` has weights of a text tower, scalars aside."""
    return any(name.startswith(("text_encoder.", "text.", "token_embedding.")) for name in state)


def text_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The text tower's weights, less the prefix of their layout."""
    prefix = next((each for each in _TEXT if any(name.startswith(each) for name in state)), "")
    wanted = (prefix,) if prefix else _FLAT_TEXT
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(wanted)}


def logit_scale(state: Mapping[str, Tensor]) -> Tensor | None:
    """The logarithm of the scale of similarities, a scalar; None where the checkpoint has none."""
    stored = state.get("logit_scale")
    return None if stored is None else stored.float().reshape(())
