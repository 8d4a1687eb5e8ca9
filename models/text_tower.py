"""Text towers of CLIP models: open_clip's transformer under the names of each layout of checkpoints.

Radford et al., arXiv 2103.00020, section 2.4; MobileCLIP (arXiv 2311.17049) without the causal mask in S1
and S2. Layouts: apple/ml-mobileclip ("text_encoder."), open_clip ("text." or flat names), OpenAI's (flat).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from open_clip.transformer import QuickGELU, TextTransformer
from torch import Tensor, nn

from saccade.errors import UsageError
from saccade.models.checkpoint import load_strict

__all__ = ["TextSizes", "TextTower", "text_tower"]


@dataclass(frozen=True, slots=True)
class TextSizes:
    """context: tokens per text. vocabulary: token ids. causal: a token sees only those before it."""

    width: int
    layers: int
    heads: int
    vocabulary: int
    context: int
    causal: bool


class TextTower(TextTransformer):
    """Tokens (B, context) int64, padded with 0 -> unnormalised embeddings (B, width).

    Texts are read at their full length: without the causal mask the padding is attended to as well. The
    embedding is that of the token with the largest id, which is the one that ends a text.
    """

    def forward(self, tokens: Tensor) -> Tensor:
        # Some runtimes have no ArgMax over int64.
        embeddings: Tensor = super().forward(tokens.to(torch.int32))
        return embeddings


def text_tower(
    sizes: TextSizes, embedding: int, *, quick_gelu: bool, state: Mapping[str, Tensor] | None, what: str
) -> TextTower:
    """A tower of `sizes` giving embeddings of width `embedding`, with the weights of `state` if there are.

    state: the text tower's part of a checkpoint, as `saccade.models.towers.text_state` gives it.
    """
    if sizes.width % sizes.heads:
        raise UsageError(f"text_width {sizes.width} does not divide into {sizes.heads} text_heads")
    tower = TextTower(
        context_length=sizes.context,
        vocab_size=sizes.vocabulary,
        width=sizes.width,
        heads=sizes.heads,
        layers=sizes.layers,
        output_dim=embedding,
        no_causal_mask=not sizes.causal,
        act_layer=QuickGELU if quick_gelu else nn.GELU,
        block_type="custom",
    )
    if state is not None:
        load_strict(tower, _open_clip_names(state), what=what)
    return tower


# apple/ml-mobileclip's names, in the order in which they are replaced.
_OFFICIAL_RENAMES = (
    (r"^projection_layer$", "text_projection"),
    (r"^embedding_layer\.", "token_embedding."),
    (r"^positional_embedding\.pos_embed\.pos_embed$", "positional_embedding"),
    (r"^final_layer_norm\.", "ln_final."),
    (r"^transformer\.(\d+)\.", r"transformer.resblocks.\1."),
    (r"\.pre_norm_mha\.0\.", ".ln_1."),
    (r"\.pre_norm_mha\.1\.qkv_proj\.", ".attn.in_proj_"),
    (r"\.pre_norm_mha\.1\.", ".attn."),
    (r"\.pre_norm_ffn\.0\.", ".ln_2."),
    (r"\.pre_norm_ffn\.1\.", ".mlp.c_fc."),
    (r"\.pre_norm_ffn\.4\.", ".mlp.c_proj."),
)


def _open_clip_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`state` in open_clip's names; its own pass unchanged."""
    renamed = {}
    for name, tensor in state.items():
        for pattern, replacement in _OFFICIAL_RENAMES:
            name = re.sub(pattern, replacement, name)
        # The official position table is (1, 1, context, width).
        renamed[name] = tensor.flatten(0, -2) if name == "positional_embedding" else tensor
    return renamed
