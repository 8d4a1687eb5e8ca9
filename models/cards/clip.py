"""Two-tower models. Accuracies are zero-shot ones on ImageNet-1k."""

from __future__ import annotations

from saccade.models.card import Card
from saccade.models.cards.timm import apple_weights, clip_preprocessing
from saccade.models.entry import Entry

_BUILDER = "saccade.models.clip:clip_model"
# Whether the text tower has the causal mask; S0's tower mixes convolutions in, and no library has it.
_CAUSAL = {"s0": None, "s1": False, "s2": False, "b": True}


def _mobileclip(size: str, trunk: str, side: int, parameters: int, macs: int, top1: float, hub: str) -> Entry:
    name = f"mobileclip_{size}"
    card = Card(
        name=name,
        family="clip",
        task="embedding",
        preprocessing=clip_preprocessing(side),
        parameters=parameters,
        multiply_accumulates=macs,
        top1=top1,
        paper="arXiv:2311.17049",
        weights=apple_weights(f"{name}.pt"),
        licence="apple-amlr (research only)",
        remark="Counts are of the image tower, accuracy is zero-shot.",
    )
    return Entry(card, _BUILDER, {"architecture": trunk, "causal": _CAUSAL[size]}, hub)


_VIT_B_16 = Entry(
    Card(
        name="clip_vit_b_16",
        family="clip",
        task="embedding",
        preprocessing=clip_preprocessing(224, bicubic=True, openai_colours=True),
        parameters=86_193_152,
        multiply_accumulates=17_563_453_440,
        paper="arXiv:2103.00020",
        weights="https://huggingface.co/laion/CLIP-ViT-B-16-laion2B-s34B-b88K",
        licence="MIT",
        remark="Weights named openai were trained with QuickGELU: pass quick_gelu=True.",
    ),
    _BUILDER,
    {"architecture": "vit_base_patch16_clip_224", "causal": True},
    "open_clip:ViT-B-16/laion2b_s34b_b88k",
)

ENTRIES = (
    _mobileclip("s0", "fastvit_mci0", 256, 11_406_976, 2_392_653_824, 67.8, "timm:fastvit_mci0.apple_mclip"),
    _mobileclip(
        "s1", "fastvit_mci1", 256, 21_541_632, 4_667_736_064, 72.6, "open_clip:MobileCLIP-S1/datacompdr"
    ),
    _mobileclip(
        "s2", "fastvit_mci2", 256, 35_815_232, 7_846_389_760, 74.4, "open_clip:MobileCLIP-S2/datacompdr"
    ),
    _mobileclip(
        "b", "vit_base_mci_224", 224, 86_349_056, 17_707_960_320, 76.8, "open_clip:MobileCLIP-B/datacompdr"
    ),
    _VIT_B_16,
)
