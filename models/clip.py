"""CLIP models: an image tower, a text tower where there is one, and what makes classes of the two.

MobileCLIP: Vasu et al., arXiv 2311.17049 (apple/ml-mobileclip); ViT-B/16: Radford et al., arXiv 2103.00020
(open_clip). timm and open_clip implement the towers; checkpoints may be official ones, open_clip's or timm's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saccade.errors import CheckpointError, UsageError
from saccade.models.checkpoint import Checkpoint
from saccade.models.text_tower import TextSizes, TextTower, text_tower
from saccade.models.timm_models import as_feature_maps, build, head_width, load
from saccade.models.towers import has_text_tower, image_state, logit_scale, text_state

__all__ = ["EmbeddingClassifier", "Towers", "clip_model"]

LARGEST_SCALE = 100.0  # Radford et al., section 2.5


class Towers(nn.Module):
    """Pictures and texts to embeddings (B, width), unnormalised: both of one space.

    trunk: the image tower. text: the text tower, or None. logit_scale: logarithm of the factor of cosine
    similarities, a scalar that training learns with the text tower; None starts where CLIP's training did.
    """

    logit_scale: Tensor

    def __init__(
        self, trunk: nn.Module, text: TextTower | None = None, logit_scale: Tensor | None = None
    ) -> None:
        super().__init__()
        self.trunk = trunk
        self.text = text
        if text is not None:
            initial = torch.tensor(math.log(1 / 0.07)) if logit_scale is None else logit_scale.clone()
            self.logit_scale = nn.Parameter(initial)

    def forward(self, image: Tensor) -> Tensor:
        """Pictures (B, 3, H, W) -> (B, width)."""
        embeddings: Tensor = self.trunk(image)
        return embeddings

    def encode_image(self, image: Tensor) -> Tensor:
        """As `forward`; the name that CLIP models use."""
        return self.forward(image)

    def encode_text(self, tokens: Tensor) -> Tensor:
        """Tokens (B, context) int64, padded with 0 -> (B, width). UsageError without a text tower."""
        if self.text is None:
            raise UsageError(
                "this model has an image tower only. Its text tower comes with a checkpoint that has one, or "
                "with create(..., text=True); mobileclip_s0 has none here"
            )
        embeddings: Tensor = self.text(tokens)
        return embeddings

    def scale(self) -> float:
        """The factor of cosine similarities: what training learned, at most 100; 100 without a text tower."""
        learned = math.inf if self.text is None else self.logit_scale.detach().exp().item()
        return min(learned, LARGEST_SCALE)


def clip_model(
    *,
    checkpoint: Checkpoint | None,
    features: bool,
    architecture: str,
    text: bool | None = None,
    causal: bool | None = None,
    img_size: int | tuple[int, int] | None = None,
    official_stem: bool = True,
    quick_gelu: bool = False,
    embedding_width: int = 512,
    layers: Sequence[int] | None = None,
    embed_dims: Sequence[int] | None = None,
    embed_dim: int | None = None,
    depth: int | None = None,
    num_heads: int | None = None,
    text_width: int = 512,
    text_layers: int = 12,
    text_heads: int = 8,
    vocabulary: int = 49408,
    context: int = 77,
    out_indices: Sequence[int] | None = None,
) -> nn.Module:
    """The image tower `architecture` (a timm name), with its text tower where that is wanted.

    text: None takes the text tower if the checkpoint has it, and leaves it out otherwise; with `features` it
    always stays out. causal: whether a token of the text sees only those before it; None: no text tower here.
    official_stem: for vit_base_mci_224, build MobileCLIP-B as apple/ml-mobileclip does. timm and open_clip
    pad its first convolution by 0 instead of 1, which shifts every patch by a pixel; pass False for
    MobileCLIP2-B, which was trained so.
    quick_gelu: for weights trained with it (OpenAI's), in both towers.
    img_size: for the plain ViTs; their position table is resampled in two dimensions.
    layers, embed_dims (MCi), embed_dim, depth, num_heads (ViT): of the image tower. vocabulary, context:
    token ids, and tokens per text.
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
    width = (head_width(state) if state else None) or embedding_width
    trunk = build(architecture, width, sizes)
    if architecture == "vit_base_mci_224" and official_stem:
        _make_official(trunk)
    if state is not None:
        load(trunk, state, what=f"the image tower {architecture}", headless=features)
    if features:
        return as_feature_maps(trunk, out_indices)
    if not _has_text(text, causal, checkpoint, architecture):
        return Towers(trunk)
    both = checkpoint.state if checkpoint else None
    tower = text_tower(
        TextSizes(text_width, text_layers, text_heads, vocabulary, context, bool(causal)),
        width,
        quick_gelu=quick_gelu,
        state=text_state(both) if both else None,
        what=f"the text tower beside {architecture}",
    )
    return Towers(trunk, tower, logit_scale(both) if both else None)


def _has_text(
    text: bool | None, causal: bool | None, checkpoint: Checkpoint | None, architecture: str
) -> bool:
    """Whether to build the text tower."""
    stored = checkpoint is not None and has_text_tower(checkpoint.state)
    if text and causal is None:
        raise UsageError(f"the text tower beside {architecture} cannot be built: no library here has it")
    if text and checkpoint is not None and not stored:
        raise CheckpointError(
            "the checkpoint holds no text tower: leave text=True, or take a checkpoint of both"
        )
    return causal is not None and (stored if text is None else text)


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
