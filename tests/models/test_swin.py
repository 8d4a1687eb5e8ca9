"""Swin against timm's implementation, with the state dicts of timm, the official code and mmdet."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import onnxruntime
import pytest
import timm
import torch
from torch import Tensor

from saccade.engines.export import export_graph
from saccade.engines.inputs import picture
from saccade.errors import CheckpointError
from saccade.models import create

SMALL: dict[str, Any] = {
    "embed_dim": 24,
    "depths": (2, 2, 4, 2),
    "num_heads": (1, 2, 4, 8),
    "num_classes": 11,
}


@pytest.fixture(autouse=True)
def _no_gradients() -> Any:
    with torch.no_grad():
        yield


def _timm(size: int | tuple[int, int] = 224) -> torch.nn.Module:
    torch.manual_seed(0)
    model = timm.create_model("swin_tiny_patch4_window7_224", pretrained=False, img_size=size, **SMALL).eval()
    for parameter in model.parameters():  # fresh biases and norms would hide mistakes
        parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def _official(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """timm's names as the official repository writes them."""

    def rename(key: str) -> str:
        key = re.sub(r"^layers\.(\d)\.downsample", lambda m: f"layers.{int(m[1]) - 1}.downsample", key)
        return key.replace("head.fc.", "head.")

    return {rename(key): value for key, value in state.items()}


def _mmdet(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Official names and weights as mmdet 3.x converts them (specification of its `unfold` order)."""
    out = {}
    for key, value in state.items():
        if key.split(".")[0] in ("norm", "head"):
            continue
        if ".downsample." in key:
            grouped = value.unflatten(-1, (4, -1))[..., [0, 2, 1, 3], :]
            value = grouped.transpose(-1, -2).flatten(-2)
        for old, new in (
            ("layers.", "stages."),
            ("patch_embed.proj.", "patch_embed.projection."),
            (".attn.", ".attn.w_msa."),
            (".mlp.fc1.", ".ffn.layers.0.0."),
            (".mlp.fc2.", ".ffn.layers.1."),
        ):
            key = key.replace(old, new)
        out[f"backbone.{key}"] = value
    for i in range(4):
        out[f"backbone.norm{i}.weight"] = torch.ones(SMALL["embed_dim"] * 2**i)
        out[f"backbone.norm{i}.bias"] = torch.zeros(SMALL["embed_dim"] * 2**i)
    return out


@pytest.mark.parametrize("layout", [dict, _official])
def test_classifier_equals_timm(layout: Any) -> None:
    reference = _timm()
    model = create("swin_tiny", checkpoint=layout(reference.state_dict()), **SMALL)
    image = torch.randn(2, 3, 224, 224)
    torch.testing.assert_close(model(image), reference(image), rtol=1e-4, atol=2e-5)


def test_a_missing_name_is_reported_alone() -> None:
    state = create("swin_tiny", **SMALL).state_dict()
    del state["layers.0.downsample.norm.weight"]
    with pytest.raises(CheckpointError) as refusal:
        create("swin_tiny", checkpoint=state, **SMALL)
    assert "1 missing: layers.0.downsample.norm.weight" in str(refusal.value)
    assert "unexpected" not in str(refusal.value)


def test_backbone_ignores_the_size_of_the_classifier() -> None:
    (finest, *_) = create("swin_tiny", features=True, img_size=(64, 96), **SMALL)(torch.zeros(1, 3, 64, 96))
    assert finest.shape == (1, SMALL["embed_dim"], 16, 24)


@pytest.mark.parametrize("size", [(224, 224), (224, 448)])
def test_maps_equal_timm_before_the_norms(size: tuple[int, int]) -> None:
    """Where every grid is whole windows. timm rolls before it pads, the detectors pad first: elsewhere the
    two differ, and the detection files of STViT-R, which share these blocks, are the reference."""
    reference = _timm(size)
    state = _timm().state_dict()
    reference.load_state_dict(state, strict=False)
    model = create("swin_tiny", checkpoint=_mmdet(_official(state)), features=True, **SMALL)
    image = torch.randn(1, 3, *size)
    expected = reference.forward_intermediates(image, intermediates_only=True)
    maps = model(image)
    assert [m.shape[1] for m in maps] == list(model.channels)
    for actual, raw in zip(maps[:3], expected, strict=False):  # timm does not shift a single window
        normed = torch.nn.functional.layer_norm(raw.permute(0, 2, 3, 1), raw.shape[1:2])
        torch.testing.assert_close(actual, normed.permute(0, 3, 1, 2), rtol=1e-3, atol=1e-4)


def test_graph_equals_module() -> None:
    model = create("swin_tiny", **SMALL)
    session = onnxruntime.InferenceSession(export_graph(model, [picture((224, 224))]).SerializeToString())
    image = torch.randn(3, 3, 224, 224)
    (actual,) = session.run(None, {"image": image.numpy()})
    np.testing.assert_allclose(actual, model(image).numpy(), rtol=1e-4, atol=1e-5)
