"""The zoo's cards say what `create` builds, and the factory refuses what it cannot."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import torch
from timm.data import ImageNetInfo
from torch.utils.flop_counter import FlopCounterMode

from saccade.errors import CheckpointError, UsageError
from saccade.models import create, hub, zoo
from saccade.models.card import Card
from saccade.models.labels import imagenet_1k

SIZES = ("tiny", "small", "base")
# Detectors and dense models, heads over these, are held to their cards in tests of their own.
ENCODERS = [name for name in zoo.names() if zoo.entry(name).card.task in ("classification", "embedding")]
SHAPELESS = {"nvit"}  # the structure comes with a checkpoint
TOKENS_ONLY = {f"stvit_deit_{size}" for size in SIZES}  # image tokens are gone half way: no maps
WIDTHS = {"fastvit_mci3": 768, "fastvit_mci4": 768}  # of embeddings, where not 512


def on_meta(name: str, **config: Any) -> torch.nn.Module:
    """The full-size model without memory or initial values."""
    with torch.device("meta"):
        return create(name, **config)


def test_every_model_of_the_project_is_there() -> None:
    expected = {
        *(f"{family}_{size}" for family in ("stvit_r_swin", "stvit_deit", "swin", "deit") for size in SIZES),
        *(f"deit_{size}_distilled" for size in SIZES),
        "nvit",
        *(f"revit_{size}" for size in ("base", "high", "small", "tiny")),
        *(f"deepmad_{size}" for size in ("r18", "r34", "r50", "29m_224", "29m_288", "50m", "89m")),
        *(f"tiny_vit_{size}" for size in ("5m_224", "11m_224", "21m_224", "21m_384", "21m_512")),
        *(f"fastvit_mci{i}" for i in range(5)),
        "vit_base_patch16_clip_224",
        *(f"mobileclip_{size}" for size in ("s0", "s1", "s2", "b")),
        "clip_vit_b_16",
    }
    assert set(ENCODERS) == expected


@pytest.mark.parametrize("name", ENCODERS)
def test_cards_are_whole_and_count_what_is_built(name: str) -> None:
    card = zoo.entry(name).card
    assert card.name == name
    assert card.paper.startswith("arXiv:")
    assert card.licence or not card.weights
    assert card.weights or card.remark, "a card without weights says why"
    assert Card.from_json(card.to_json()) == card
    if name in SHAPELESS:
        return
    model = on_meta(name)
    assert sum(parameter.numel() for parameter in model.parameters()) == card.parameters
    assert not model.training
    image = torch.zeros(1, 3, *card.preprocessing.input_size_hw, device="meta")
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        output = model(image)
    assert counter.get_total_flops() // 2 == card.multiply_accumulates
    assert output.shape == (1, 1000 if card.task == "classification" else WIDTHS.get(name, 512))


@pytest.mark.parametrize("name", sorted(set(ENCODERS) - SHAPELESS - TOKENS_ONLY))
def test_features_are_four_maps(name: str) -> None:
    model = on_meta(name, features=True)
    height, width = zoo.entry(name).card.preprocessing.input_size_hw
    with torch.no_grad():
        maps = model(torch.zeros(1, 3, height, width, device="meta"))
    expected = [
        (1, channels, height // stride, width // stride)
        for channels, stride in zip(model.channels, model.strides, strict=True)
    ]
    assert [tuple(each.shape) for each in maps] == expected
    assert list(model.strides) in ([4, 8, 16, 32], [16, 16, 16, 16])


@pytest.mark.parametrize(
    ("wrong", "near"),
    [
        ("stvit_r_swin_smal", "stvit_r_swin_small"),
        ("tiny_vit_5m", "tiny_vit_5m_224"),
        ("zzzzzz", "saccade models"),
    ],
)
def test_an_unknown_name_gives_near_ones(wrong: str, near: str) -> None:
    with pytest.raises(UsageError, match=near):
        create(wrong)


@pytest.mark.parametrize("name", sorted(TOKENS_ONLY))
def test_models_without_maps_say_so(name: str) -> None:
    with pytest.raises(UsageError, match="no feature maps"):
        create(name, features=True)


def test_unknown_settings_list_the_known() -> None:
    with pytest.raises(UsageError, match=r"takes no depth_s.*depths.*embed_dim"):
        create("swin_tiny", depth_s=(1, 1, 1, 1))


def test_the_zoo_imports_no_torch() -> None:
    program = (
        "import sys; from saccade.models import zoo, labels, create; zoo.entry('swin_tiny').card.to_json();"
        "labels.imagenet_1k(); print([m for m in ('torch', 'timm', 'onnx') if m in sys.modules])"
    )
    output = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert output.stdout.strip() == "[]"


def test_labels_are_timms_lemmas_and_distinct() -> None:
    info, labels = ImageNetInfo("imagenet-1k"), imagenet_1k()
    assert len(labels) == len({label.lower() for label in labels}) == 1000
    for index, label in enumerate(labels):
        plain = label.removesuffix(" (bird)").removesuffix(" (machine)")
        assert plain in info.index_to_description(index).split(", ")


@pytest.mark.parametrize(
    ("name", "address", "message"),
    [
        ("stvit_r_swin_small", "hub", r"huggingface\.co/csncsn/STViT-R .licence: "),
        ("mobileclip_s2", "hub", r"mobileclip_s2\.pt .licence: apple-amlr"),
        ("deit_small", "timm:deit_small_patch16_224.fb_in1k", r"Apache-2\.0"),
        ("deit_small", "timm:deit_small_patch16_224.no_such_tag", "could not fetch"),
        ("clip_vit_b_16", "open_clip:ViT-B-16/no_such_tag", "no_such_tag"),
        ("nvit", "hub", r"github\.com/NVlabs/NViT .licence: CC-BY-NC-SA"),
        ("revit_small", "hub", "No weights of revit_small were published"),
    ],
)
def test_without_a_network_the_official_address_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, address: str, message: str
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(CheckpointError, match=message):
        create(name, checkpoint=address)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("hub", True), ("timm:a.b", True), ("./hub", False), ("weights.pth", False), ("C:weights", False)],
)
def test_hub_addresses_are_told_from_files(text: str, expected: bool) -> None:
    assert hub.is_address(text) is expected


def test_hub_addresses_exist_in_timm_and_open_clip() -> None:
    """Every timm and open_clip address of the zoo names weights that the installed library knows."""
    import open_clip
    import timm

    for name in zoo.names():
        source, _, place = zoo.entry(name).hub.partition(":")
        if source == "timm":
            assert timm.get_pretrained_cfg(place).hf_hub_id, place
        elif source == "open_clip":
            assert tuple(place.split("/")) in open_clip.list_pretrained(), place
