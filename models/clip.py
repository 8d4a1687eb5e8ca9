"""Image towers of CLIP models, and zero-shot classification as an ordinary graph.

MobileCLIP: Vasu et al., arXiv 2311.17049 (apple/ml-mobileclip); ViT-B/16: Radford et al., arXiv 2103.00020
(open_clip). timm implements the towers; checkpoints may be official ones, open_clip's or timm's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from saccade.errors import CheckpointError, UsageError
from saccade.models.checkpoint import Checkpoint, Source, load_strict, read_checkpoint
from saccade.models.timm_models import as_feature_maps, build, head_width, load
from saccade.models.towers import has_text_tower, image_state, is_text_name

__all__ = ["EmbeddingClassifier", "ImageTower", "class_matrix", "image_tower"]

EMBEDDING = 512


class ImageTower(nn.Module):
    """(B, 3, H, W) -> unnormalised embeddings (B, width)."""

    def __init__(self, trunk: nn.Module) -> None:
        super().__init__()
        self.trunk = trunk

    def forward(self, image: Tensor) -> Tensor:
        embeddings: Tensor = self.trunk(image)
        return embeddings

    def encode_image(self, image: Tensor) -> Tensor:
        """As `forward`; the name that CLIP models use."""
        return self.forward(image)


def image_tower(
    *,
    checkpoint: Checkpoint | None,
    features: bool,
    architecture: str,
    img_size: int | tuple[int, int] | None = None,
    official_stem: bool = True,
    quick_gelu: bool = False,
    layers: Sequence[int] | None = None,
    embed_dims: Sequence[int] | None = None,
    embed_dim: int | None = None,
    depth: int | None = None,
    num_heads: int | None = None,
    out_indices: Sequence[int] | None = None,
) -> nn.Module:
    """The image tower `architecture` (a timm name); the text tower's weights in the checkpoint are left.

    official_stem: for vit_base_mci_224, build MobileCLIP-B as apple/ml-mobileclip does. timm and open_clip
    pad its first convolution by 0 instead of 1, which shifts every patch by a pixel; pass False for
    MobileCLIP2-B, which was trained so.
    quick_gelu: for weights trained with it (OpenAI's).
    img_size: for the plain ViTs; their position table is resampled in two dimensions.
    """
    state = image_state(checkpoint.state) if checkpoint else None
    fixed_size = architecture.startswith("vit")
    sizes = {
        "img_size": img_size if fixed_size else None,
        "act_layer": "quick_gelu" if quick_gelu else None,
        "layers": layers,
        "embed_dims": embed_dims,
        "embed_dim": embed_dim,
        "depth": depth,
        "num_heads": num_heads,
    }
    trunk = build(architecture, (head_width(state) if state else None) or EMBEDDING, sizes)
    if architecture == "vit_base_mci_224" and official_stem:
        _make_official(trunk)
    if state is not None:
        load(trunk, state, what=f"the image tower {architecture}", headless=features)
    return as_feature_maps(trunk, out_indices) if features else ImageTower(trunk)


def _make_official(trunk: nn.Module) -> None:
    """timm's vit_base_mci_224 as apple/ml-mobileclip builds it: padded stem, LayerNorm eps 1e-5."""
    first = trunk.get_submodule("patch_embed.backbone.0.conv")
    assert isinstance(first, nn.Conv2d)
    first.padding = (1, 1)
    for part in trunk.modules():
        if isinstance(part, nn.LayerNorm):
            part.eps = 1e-5


# --- zero-shot classification ----------------------------------------------------------------------------


class EmbeddingClassifier(nn.Module):
    """Logits (B, K) = scale * normalised embedding @ class matrix: a CLIP tower as an ordinary classifier."""

    matrix: Tensor

    def __init__(self, tower: nn.Module, matrix: Tensor, scale: float = 100.0) -> None:
        super().__init__()
        self.tower = tower
        self.register_buffer("matrix", scale * matrix)

    def forward(self, image: Tensor) -> Tensor:
        return F.normalize(self.tower(image), dim=-1) @ self.matrix


# open_clip's name for the two towers of each of our models; S0's text tower has no port.
_OPEN_CLIP = {
    "mobileclip_s1": "MobileCLIP-S1",
    "mobileclip_s2": "MobileCLIP-S2",
    "mobileclip_b": "MobileCLIP-B",
    "clip_vit_b_16": "ViT-B-16",
}


def class_matrix(
    name: str,
    checkpoint: Source,
    labels: Sequence[str],
    templates: Sequence[Callable[[str], str] | str] | None = None,
    *,
    quick_gelu: bool = False,
) -> Tensor:
    """Zero-shot class weights, float32 (512, K), columns of length one, from the text tower of `checkpoint`.

    templates: formats with one {} or functions of a label; None takes OpenAI's 80 for ImageNet. Each
    prompt's embedding is normalised, and so is their mean per class (Radford et al., section 3.1.4).
    """
    import open_clip
    from open_clip.convert import convert_state_dict

    if name not in _OPEN_CLIP:
        known = ", ".join(_OPEN_CLIP)
        raise UsageError(f"the text tower of {name!r} cannot be built here; those of {known} can")
    architecture = _OPEN_CLIP[name]
    state = read_checkpoint(checkpoint).state
    if not has_text_tower(state):
        raise CheckpointError(f"the checkpoint holds no text tower; {name} needs one to make class weights")
    model = open_clip.create_model(architecture, force_quick_gelu=quick_gelu)
    what = f"the text tower of {architecture}"
    converted = convert_state_dict(model, dict(state))
    load_strict(model, converted, what=what, ignore=lambda each: not is_text_name(each))
    columns: Tensor = open_clip.build_zero_shot_classifier(
        model,
        open_clip.get_tokenizer(architecture),
        classnames=list(labels),
        templates=list(templates or open_clip.OPENAI_IMAGENET_TEMPLATES),
        num_classes_per_batch=10,
    )
    return columns.float()
