"""Models that timm builds: TinyViT, DeiT, the MCi encoders and the plain CLIP ViT-B/16."""

from __future__ import annotations

from saccade.models.card import Card, Preprocessing
from saccade.models.entry import Entry

_BUILDER = "saccade.models.timm_models:timm_model"

OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)
UNSCALED_MEAN, UNSCALED_STD = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)


def clip_preprocessing(
    side: int, *, bicubic: bool = False, openai_colours: bool = False, resize: int | None = None
) -> Preprocessing:
    """Shorter side to `resize` (default `side`), centre crop; MobileCLIP v1 does not normalise."""
    resized = resize or side
    return Preprocessing(
        input_size_hw=(side, side),
        resize_hw=(resized, resized),
        resampler="pillow-bicubic" if bicubic else "pillow-bilinear",
        mean_rgb=OPENAI_MEAN if openai_colours else UNSCALED_MEAN,
        std_rgb=OPENAI_STD if openai_colours else UNSCALED_STD,
    )


def _tiny_vit(
    size: str, parameters: int, multiply_accumulates: int, top1: float, official: str, side: int = 224
) -> Entry:
    """Upstream evaluates 224 with a crop and the larger sizes squashed; timm's own defaults differ."""
    name = f"tiny_vit_{size}_{side}"
    squashed = Preprocessing(input_size_hw=(side, side), resize="stretch", resize_hw=(side, side))
    card = Card(
        name=name,
        family="tinyvit",
        preprocessing=Preprocessing() if side == 224 else squashed,
        parameters=parameters,
        multiply_accumulates=multiply_accumulates,
        top1=top1,
        paper="arXiv:2207.10666",
        weights=f"https://github.com/wkcn/TinyViT-model-zoo/releases/download/checkpoints/{official}",
        licence="MIT (timm's copy: Apache-2.0)",
        remark="Distilled and pretrained on ImageNet-22k.",
    )
    return Entry(card, _BUILDER, {"architecture": name}, f"timm:{name}.dist_in22k_ft_in1k")


def _deit(size: str, distilled: bool, parameters: int, macs: int, top1: float, digest: str) -> Entry:
    suffix = "_distilled" if distilled else ""
    architecture = f"deit_{size}{suffix}_patch16_224"
    card = Card(
        name=f"deit_{size}{suffix}",
        family="deit",
        parameters=parameters,
        multiply_accumulates=macs,
        top1=top1,
        paper="arXiv:2012.12877",
        weights=f"https://dl.fbaipublicfiles.com/deit/{architecture}-{digest}.pth",
        licence="Apache-2.0",
        remark="The prediction is the mean of the two heads." if distilled else "",
    )
    return Entry(card, _BUILDER, {"architecture": architecture}, f"timm:{architecture}.fb_in1k")


def _mci(index: int, width: int, parameters: int, macs: int, weights: str, tag: str) -> Entry:
    name = f"fastvit_mci{index}"
    openai_colours = index >= 3  # MobileCLIP2 S3 and S4 normalise, all others do not
    card = Card(
        name=name,
        family="fastvit",
        task="embedding",
        preprocessing=clip_preprocessing(256, openai_colours=openai_colours),
        parameters=parameters,
        multiply_accumulates=macs,
        paper="arXiv:2311.17049",
        weights=weights,
        licence="apple-amlr (research only)",
        remark=f"An image encoder: forward gives its {width}-wide projection, or logits of your head.",
    )
    config = {"architecture": name, "released_head": width}
    return Entry(card, _BUILDER, config, f"timm:{name}.{tag}")


def apple_weights(file: str) -> str:
    return f"https://docs-assets.developer.apple.com/ml-research/datasets/mobileclip/{file}"


_CLIP_VIT = Entry(
    Card(
        name="vit_base_patch16_clip_224",
        family="clip",
        task="embedding",
        preprocessing=clip_preprocessing(224, bicubic=True, openai_colours=True),
        parameters=86_193_152,
        multiply_accumulates=17_563_453_440,
        paper="arXiv:2103.00020",
        weights="https://huggingface.co/timm/vit_base_patch16_clip_224.laion2b",
        licence="Apache-2.0",
        remark=(
            "An image encoder: forward gives its 512-wide projection, or logits of your head. "
            "Weights named openai and metaclip were trained with QuickGELU: pass quick_gelu=True."
        ),
    ),
    _BUILDER,
    {"architecture": "vit_base_patch16_clip_224", "released_head": 512},
    "timm:vit_base_patch16_clip_224.laion2b",
)

ENTRIES = (
    _tiny_vit("5m", 5_392_764, 1_255_174_720, 80.7, "tiny_vit_5m_22kto1k_distill.pth"),
    _tiny_vit("11m", 10_996_972, 2_016_046_144, 83.2, "tiny_vit_11m_22kto1k_distill.pth"),
    _tiny_vit("21m", 21_198_568, 4_250_329_536, 84.8, "tiny_vit_21m_22kto1k_distill.pth"),
    _tiny_vit("21m", 21_230_488, 13_697_865_216, 86.2, "tiny_vit_21m_22kto1k_384_distill.pth", 384),
    _tiny_vit("21m", 21_268_120, 26_883_623_424, 86.5, "tiny_vit_21m_22kto1k_512_distill.pth", 512),
    _deit("tiny", False, 5_717_416, 1_253_683_200, 72.2, "a1311bcf"),
    _deit("small", False, 22_050_664, 4_598_882_304, 79.8, "cd65a155"),
    _deit("base", False, 86_567_656, 17_563_828_224, 81.8, "b5f2ef4d"),
    _deit("tiny", True, 5_910_800, 1_261_003_776, 74.5, "b40b3cf7"),
    _deit("small", True, 22_436_432, 4_624_140_288, 81.2, "649709d9"),
    _deit("base", True, 87_338_192, 17_656_811_520, 83.36, "df68dfff"),
    _mci(0, 512, 11_406_976, 2_392_653_824, apple_weights("mobileclip_s0.pt"), "apple_mclip"),
    _mci(1, 512, 21_541_632, 4_667_736_064, apple_weights("mobileclip_s1.pt"), "apple_mclip"),
    _mci(2, 512, 35_815_232, 7_846_389_760, apple_weights("mobileclip_s2.pt"), "apple_mclip"),
    _mci(
        3,
        768,
        125_235_648,
        14_820_876_288,
        "https://huggingface.co/timm/fastvit_mci3.apple_mclip2_dfndr2b",
        "apple_mclip2_dfndr2b",
    ),
    _mci(
        4,
        768,
        321_784_832,
        27_769_733_120,
        "https://huggingface.co/timm/fastvit_mci4.apple_mclip2_dfndr2b",
        "apple_mclip2_dfndr2b",
    ),
    _CLIP_VIT,
)
