"""Models that timm implements, behind the contract of ours: TinyViT, DeiT, the MCi encoders, CLIP's ViT.

timm's modules compute; this file only builds them, renames checkpoints, and picks feature maps. Sources of
the names: microsoft/Cream (TinyViT), facebookresearch/deit, apple/ml-mobileclip, open_clip.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import timm
import torch
from timm.data import ImageNetInfo
from timm.models import fastvit, vision_transformer, vision_transformer_hybrid
from torch import Tensor, nn

from saccade.errors import UsageError
from saccade.models.checkpoint import Checkpoint, load_strict
from saccade.models.towers import image_state

__all__ = ["FeatureMaps", "as_feature_maps", "build", "head_width", "renamed", "timm_model"]

State = Mapping[str, Tensor]


def timm_model(
    *,
    checkpoint: Checkpoint | None,
    features: bool,
    architecture: str,
    num_classes: int | None = None,
    released_head: int = 1000,
    head: str | None = None,
    img_size: int | tuple[int, int] | None = None,
    patch_size: int | None = None,
    embed_dim: int | None = None,
    depth: int | None = None,
    num_heads: int | Sequence[int] | None = None,
    embed_dims: Sequence[int] | None = None,
    depths: Sequence[int] | None = None,
    window_sizes: Sequence[int] | None = None,
    layers: Sequence[int] | None = None,
    mlp_ratio: float | None = None,
    quick_gelu: bool = False,
    out_indices: Sequence[int] | None = None,
) -> nn.Module:
    """A timm architecture with weights in timm's or the official names.

    num_classes: head width; None takes the checkpoint's, or `released_head` without one.
    head: "22k_as_1k" turns a head over ImageNet-22k into one over ImageNet-1k (`first_1k_of_22k`).
    img_size: for plain ViTs, whose position table is resampled to it; the others run at any size.
    out_indices: with `features`, the four blocks (plain ViTs) or stages (others) to return.
    The sizes replace timm's; each architecture takes its own (ViT: patch_size, embed_dim, depth, num_heads;
    TinyViT: embed_dims, depths, num_heads, window_sizes; MCi: embed_dims, layers).
    """
    state = image_state(checkpoint.state) if checkpoint else None
    width = num_classes or (head_width(state) if state else None) or released_head
    sizes = {
        "img_size": img_size if _has_fixed_size(architecture) else None,
        "patch_size": patch_size,
        "embed_dim": embed_dim,
        "depth": depth,
        "num_heads": num_heads,
        "embed_dims": embed_dims,
        "depths": depths,
        "window_sizes": window_sizes,
        "layers": layers,
        "mlp_ratio": mlp_ratio,
        "act_layer": "quick_gelu" if quick_gelu else None,
    }
    model = build(architecture, width, sizes)
    if state is not None:
        load(model, state, what=architecture, headless=features)
    if head is not None:
        _replace_head(model, head)
    return as_feature_maps(model, out_indices) if features else model


def build(architecture: str, num_classes: int, sizes: Mapping[str, Any]) -> nn.Module:
    """timm's module of random weights; sizes that are None keep timm's values."""
    given = {key: value for key, value in sizes.items() if value is not None}
    try:
        return cast(nn.Module, timm.create_model(architecture, num_classes=num_classes, **given))
    except (TypeError, ValueError, AssertionError) as error:  # timm's ways to refuse sizes
        raise UsageError(f"{architecture} cannot be built with {given}: {error}") from error


def load(model: nn.Module, state: State, *, what: str, headless: bool) -> None:
    """Rename `state` to timm's names and load it strictly; `headless` leaves out what follows the maps."""
    ours = renamed(model, state)
    load_strict(model, ours, what=what, ignore=_follows_maps if headless else None)
    # Attention biases of TinyViT are cached in eval mode; a change of mode drops what was cached before.
    model.train().eval()


def _follows_maps(name: str) -> bool:
    return re.match(r"(head|head_dist|head_drop|fc_norm|norm|final_conv)\.", name) is not None


def _has_fixed_size(architecture: str) -> bool:
    return not architecture.startswith(("tiny_vit", "fastvit"))


# --- names ---------------------------------------------------------------------------------------------

# Where a checkpoint keeps its head: name, and the dimension that counts classes.
_HEADS = (
    ("head.fc.weight", 0),
    ("head.weight", 0),
    ("head.proj", 1),
    ("image_encoder.model.head.proj", 1),
    ("image_encoder.model.classifier.proj", 1),
    ("visual.proj", 1),
)


def head_width(state: State) -> int | None:
    """Classes of the checkpoint's head, or width of its projection; None for a headless checkpoint."""
    return next((state[name].shape[axis] for name, axis in _HEADS if name in state), None)


def renamed(model: nn.Module, state: State) -> dict[str, Tensor]:
    """`state` in timm's names. Names that the rules do not know pass unchanged, for the strict loader."""
    family = type(model).__name__
    rules = _RULES.get(family)
    if rules is None:
        raise UsageError(f"no naming rules for timm's {family}")
    return dict(rules(dict(state), model))


_TINY_VIT_RENAMES = (
    (r"^patch_embed\.seq\.0\.", "patch_embed.conv1."),
    (r"^patch_embed\.seq\.2\.", "patch_embed.conv2."),
    (r"^layers\.(\d+)\.blocks\.", r"stages.\1.blocks."),
    (r"\.c\.", ".conv."),
    (r"^norm_head\.", "head.norm."),
    (r"^head\.(weight|bias)$", r"head.fc.\1"),
)


def _tiny_vit_names(state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    return {
        _tiny_vit_name(name): tensor
        for name, tensor in state.items()
        if not name.endswith("attention_bias_idxs")
    }


def _tiny_vit_name(name: str) -> str:
    # The official stage ends with the downsampling that timm's next stage begins with.
    name = re.sub(r"^layers\.(\d+)\.downsample\.", lambda m: f"stages.{int(m[1]) + 1}.downsample.", name)
    for pattern, replacement in _TINY_VIT_RENAMES:
        name = re.sub(pattern, replacement, name)
    return name


def _fastvit_names(state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    names: dict[str, Tensor] = fastvit.checkpoint_filter_fn(state, model)
    return names


def _vit_names(state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    hybrid = "image_encoder.model.patch_emb.0.block.conv.weight" in state
    rules = vision_transformer_hybrid if hybrid else vision_transformer
    names: dict[str, Tensor] = rules.checkpoint_filter_fn(state, model)
    return names


_RULES: dict[str, Callable[[dict[str, Tensor], nn.Module], dict[str, Tensor]]] = {
    "TinyVit": _tiny_vit_names,
    "FastVit": _fastvit_names,
    "VisionTransformer": _vit_names,
    "VisionTransformerDistilled": _vit_names,
}


# --- the head over ImageNet-22k --------------------------------------------------------------------------


def first_1k_of_22k() -> tuple[int, ...]:
    """For each ImageNet-1k class its index among the 21,841 of ImageNet-22k, or -1 where it has none."""
    of_22k = {synset: i for i, synset in enumerate(ImageNetInfo("imagenet-22k").label_names())}
    return tuple(of_22k.get(synset, -1) for synset in ImageNetInfo("imagenet-1k").label_names())


def _replace_head(model: nn.Module, head: str) -> None:
    if head != "22k_as_1k":
        raise UsageError(f"head is {head!r}; the one known is '22k_as_1k'")
    full = model.get_submodule("head.fc")
    if not isinstance(full, nn.Linear) or full.out_features != 21841:
        raise UsageError(f"head='22k_as_1k' needs a head over 21841 classes, this model has {full}")
    model.get_submodule("head").add_module("fc", _gathered_head(full, first_1k_of_22k()))


def _gathered_head(full: nn.Linear, indices: Sequence[int]) -> nn.Linear:
    """The rows `indices` of `full`; -1 gives the constant logit 0, as upstream evaluates."""
    rows = torch.tensor(indices)
    known = (rows >= 0).to(full.weight.dtype)
    gathered = nn.Linear(full.in_features, len(indices))
    with torch.no_grad():
        gathered.weight.copy_(full.weight[rows] * known[:, None])
        gathered.bias.copy_(full.bias[rows] * known)
    return gathered


# --- feature maps ----------------------------------------------------------------------------------------


class FeatureMaps(nn.Module):
    """Four maps of a timm model: (B, 3, H, W) -> four (B, channels[i], H / strides[i], W / strides[i]).

    Maps are block or stage outputs as they are, without the final norm and without prefix tokens.
    """

    trunk: Any  # timm's models share methods, not a type

    def __init__(self, trunk: Any, out_indices: Sequence[int]) -> None:
        super().__init__()
        described = [trunk.feature_info[i] for i in out_indices]
        self.channels = tuple(int(each["num_chs"]) for each in described)
        self.strides = tuple(int(each["reduction"]) for each in described)
        self.out_indices = tuple(out_indices)
        trunk.prune_intermediate_layers(list(out_indices), prune_norm=True, prune_head=True)
        self.trunk = trunk

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        return tuple(
            self.trunk.forward_intermediates(
                image, indices=list(self.out_indices), intermediates_only=True, stop_early=True
            )
        )


def as_feature_maps(trunk: Any, out_indices: Sequence[int] | None) -> FeatureMaps:
    """`trunk` without its head. Default: the first four stages, or the ends of a plain ViT's quarters."""
    count = len(trunk.feature_info)
    plain = hasattr(trunk, "blocks")
    if out_indices is None:
        out_indices = [count * (i + 1) // 4 - 1 for i in range(4)] if plain else range(4)
    chosen = list(out_indices)
    if len(chosen) != 4 or chosen != sorted(set(chosen)) or not 0 <= chosen[0] <= chosen[-1] < count:
        raise UsageError(f"out_indices is {chosen}; it must be four rising numbers of 0..{count - 1}")
    return FeatureMaps(trunk, chosen)
