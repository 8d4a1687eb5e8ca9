"""The demo's pair of towers: a small CLIP that reads captions of digits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from digits import nets
from digits.captions import Captioned, all_captions
from digits.scenes import LABELS, Pixels
from saccade.bundle import Bundle
from saccade.export import export_bundle
from saccade.models import create
from saccade.models.clip import Towers
from saccade.tokenizer import Tokenizer

NET = nets.Net(
    "contrastive",
    "CLIP",
    "clip_vit_b_16",
    {
        "img_size": 112,
        "embed_dim": 96,
        "depth": 4,
        "num_heads": 3,
        "embedding_width": 96,
        "text_width": 96,
        "text_layers": 2,
        "text_heads": 3,
        "vocabulary": 1024,
        "context": 24,
    },
    epochs=60,
    learning_rate=1e-3,
    batch=32,
    size_px=112,
)
PROMPT = "a handwritten {}"
# OpenAI's colours, as the card of the full-size model says.
MEAN_RGB = (0.48145466, 0.4578275, 0.40821073)
STD_RGB = (0.26862954, 0.26130258, 0.27577711)
tokenize = Tokenizer(NET.config["vocabulary"], NET.config["context"])


def towers(weights: Path | None = NET.weights) -> Towers:
    """The pair with its committed weights, or those of another training, or random ones; in eval mode."""
    pair = create(NET.model, checkpoint=weights, text=True, **NET.config)
    assert isinstance(pair, Towers)
    return pair


def export(out: Path, progress: Callable[[str], None] | None = None) -> Bundle:
    """Export the pair from its committed checkpoint to the new folder `out`, verified."""
    return export_bundle(NET.model, NET.weights, out, config=NET.config, progress=progress)


def contrastive_loss(pair: Towers, images: Tensor, true: Tensor, texts: Sequence[str]) -> Tensor:
    """Cross entropy both ways between pictures and captions, where several may be true of several.

    images (B, 3, H, W); true (B, texts): which captions are true of which picture, every row and column of
    some. CLIP's loss (Radford et al., figure 3) with every true pair as a target: among dozens of pictures of
    ten digits, many share a caption. The targets of a row are equally likely (Yang et al., arXiv 2204.03610).
    """
    pictures = F.normalize(pair(images), dim=1)
    captions = F.normalize(pair.encode_text(torch.from_numpy(tokenize(texts))), dim=1)
    logits = pair.logit_scale.exp().clamp(max=100) * pictures @ captions.T
    by_picture = F.cross_entropy(logits, true / true.sum(1, keepdim=True))
    by_caption = F.cross_entropy(logits.T, true.T / true.sum(0)[:, None])
    return (by_picture + by_caption) / 2


def inputs(images: Pixels) -> Tensor:
    """(B, H, W, 3) uint8 -> (B, 3, H, W) float32, as the card of the full-size model says."""
    scaled = torch.from_numpy(images).permute(0, 3, 1, 2).to(torch.float32) / 255
    mean, std = torch.tensor(MEAN_RGB).view(3, 1, 1), torch.tensor(STD_RGB).view(3, 1, 1)
    return (scaled - mean) / std


@torch.inference_mode()
def image_embeddings(pair: Towers, pictures: Captioned, batch: int = 50) -> Tensor:
    """(n, width), rows of length one."""
    parts = [pair(inputs(pictures.images[start : start + batch])) for start in range(0, len(pictures), batch)]
    return F.normalize(torch.cat(parts), dim=1)


@torch.inference_mode()
def text_embeddings(pair: Towers, texts: Sequence[str]) -> Tensor:
    """(n, width), rows of length one."""
    return F.normalize(pair.encode_text(torch.from_numpy(tokenize(texts))), dim=1)


def zero_shot_top1(pair: Towers, pictures: Captioned, prompt: str = PROMPT) -> float:
    """Share of pictures whose digit is that of the nearest of ten prompts."""
    similar = image_embeddings(pair, pictures) @ text_embeddings(pair, list(map(prompt.format, LABELS))).T
    return float((similar.argmax(1).numpy() == pictures.digits).mean())


def recall_at_1(pair: Towers, pictures: Captioned) -> float:
    """Share of the twenty captions of digit and place that are true of the picture nearest to them."""
    claims = all_captions()
    similar = text_embeddings(pair, [each.text for each in claims]) @ image_embeddings(pair, pictures).T
    nearest = similar.argmax(1).tolist()
    return float(
        np.mean([claim.holds(pictures)[place] for claim, place in zip(claims, nearest, strict=True)])
    )
