"""CLIP image towers, and zero-shot classes from text towers, against the official implementations."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import onnxruntime
import open_clip
import pytest
import torch
import torch.nn.functional as F
from tests import parity
from torch import Tensor

from saccade.engines.export import export_graph
from saccade.engines.inputs import picture
from saccade.errors import CheckpointError, UsageError
from saccade.models import create
from saccade.models.clip import EmbeddingClassifier, class_matrix
from saccade.models.deploy import merge

NAMES = {"mobileclip_s2": "mobileclip_s2", "openclip_vit_b_16": "clip_vit_b_16"}
MAPS = {
    "mobileclip_s2": ("stage0", "stage1", "stage2", "stage3"),
    "openclip_vit_b_16": ("block2", "block5", "block8", "block11"),
}
SMALL_VIT: dict[str, Any] = {"embed_dim": 768, "depth": 2, "num_heads": 12}


@pytest.mark.parametrize("reference", NAMES)
@torch.inference_mode()
def test_towers_agree_with_the_official_implementations(reference: str) -> None:
    """Embeddings and maps of the image tower before and after merging, and the text tower's classes."""
    expected = parity.load("clip", reference)
    image, weights = parity.inputs(expected)["image"], parity.state_dict(expected)
    name = NAMES[reference]

    tower = create(name, checkpoint=weights)
    parity.check("image_embed", tower(image), expected)
    parity.check("image_embed", tower.encode_image(image), expected)
    parity.check("image_embed", merge(tower)(image), expected)
    if "pooled" in expected.arrays:
        features = tower.trunk.forward_features(image)
        parity.check("pooled", tower.trunk.forward_head(features, pre_logits=True), expected)

    backbone = create(name, checkpoint=weights, features=True)
    for feature, merged, key in zip(backbone(image), merge(backbone)(image), MAPS[reference], strict=True):
        parity.check(key, feature, expected)
        parity.check(key, merged, expected)

    texts = expected.config["texts"]
    matrix = class_matrix(name, weights, texts, ["{}"])
    parity.check("text_embed_norm", matrix.T, expected)
    scale = float(weights["logit_scale"].exp().clamp(max=100))
    parity.check("logits_per_image", EmbeddingClassifier(tower, matrix, scale)(image), expected)


@pytest.mark.slow
@pytest.mark.parametrize("reference", NAMES)
def test_tower_graphs_agree_too(reference: str) -> None:
    """The exported graphs in ONNX Runtime: embeddings, and maps from a graph of their own."""
    expected = parity.load("clip", reference)
    image, weights = parity.inputs(expected)["image"], parity.state_dict(expected)
    for features, keys in ((False, ("image_embed",)), (True, MAPS[reference])):
        model = merge(create(NAMES[reference], checkpoint=weights, features=features))
        graph = export_graph(model, [picture((image.shape[2], image.shape[3]))], outputs=keys, name=reference)
        session = onnxruntime.InferenceSession(graph.SerializeToString())
        for key, value in zip(keys, session.run(None, {"image": image.numpy()}), strict=True):
            parity.check(key, value, expected)


def official_b_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The names of apple/ml-mobileclip for a tower in timm's."""
    renames = (
        ("patch_embed.backbone.", "patch_emb."),
        (".conv.", ".block.conv."),
        (".bn.", ".block.norm."),
        ("norm1.", "pre_norm_mha.0."),
        ("attn.qkv.", "pre_norm_mha.1.qkv_proj."),
        ("attn.proj.", "pre_norm_mha.1.out_proj."),
        ("norm2.", "pre_norm_ffn.0."),
        ("mlp.fc1.", "pre_norm_ffn.1."),
        ("mlp.fc2.", "pre_norm_ffn.4."),
        ("blocks.", "transformer."),
    )
    official = {}
    for name, tensor in state.items():
        if name == "pos_embed":
            name, tensor = "pos_embed.pos_embed.pos_embed", tensor[None]
        elif name == "head.weight":
            name, tensor = "classifier.proj", tensor.T
        elif name == "head.bias":
            continue
        elif name.startswith("norm."):
            name = f"post_transformer_{name}"
        for ours, theirs in renames:
            name = name.replace(ours, theirs)
        official[f"image_encoder.model.{name}"] = tensor
    return official | {"logit_scale": torch.tensor(1.0), "text_encoder.x.weight": torch.zeros(1)}


def mobileclip_b_by_hand(state: Mapping[str, Tensor], image: Tensor, heads: int) -> Tensor:
    """apple/ml-mobileclip's MobileCLIP-B from its description, in timm's parameter names."""

    def norm(x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], 1e-5)

    def linear(x: Tensor, name: str) -> Tensor:
        return F.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])

    def batch_norm(x: Tensor, name: str) -> Tensor:
        running = (state[f"{name}.running_mean"], state[f"{name}.running_var"])
        return F.batch_norm(x, *running, state[f"{name}.weight"], state[f"{name}.bias"])

    stem = "patch_embed.backbone"
    x = F.conv2d(image, state[f"{stem}.0.conv.weight"], stride=4, padding=1)
    x = F.gelu(batch_norm(x, f"{stem}.0.bn"))
    x = F.gelu(batch_norm(F.conv2d(x, state[f"{stem}.1.conv.weight"], stride=2), f"{stem}.1.bn"))
    x = F.conv2d(x, state[f"{stem}.2.conv.weight"], state[f"{stem}.2.conv.bias"], stride=2)
    x = x.flatten(2).transpose(1, 2) + state["pos_embed"]
    x = torch.cat([state["cls_token"].expand(len(x), -1, -1), x], dim=1)
    for i in range(sum(name.endswith(".mlp.fc1.weight") for name in state)):
        block = f"blocks.{i}"
        q, k, v = (
            linear(norm(x, f"{block}.norm1"), f"{block}.attn.qkv")
            .unflatten(-1, (3, heads, -1))
            .permute(2, 0, 3, 1, 4)
        )
        scores = (q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5).softmax(-1)
        x = x + linear((scores @ v).transpose(1, 2).flatten(2), f"{block}.attn.proj")
        x = x + linear(F.gelu(linear(norm(x, f"{block}.norm2"), f"{block}.mlp.fc1")), f"{block}.mlp.fc2")
    return norm(x, "norm")[:, 0] @ state["head.weight"].T


@pytest.fixture(scope="module")
def mobileclip_b_weights() -> dict[str, Tensor]:
    """Two blocks, everything off its initial value, no bias in the projection, in timm's names."""
    generator = torch.Generator().manual_seed(0)
    state = create("mobileclip_b", **SMALL_VIT).trunk.state_dict()
    for name, tensor in state.items():
        if tensor.is_floating_point():
            tensor += 0.05 * torch.rand(tensor.shape, generator=generator)
        if name == "head.bias":
            tensor.zero_()
    return state


@torch.inference_mode()
def test_mobileclip_b_has_the_official_stem(mobileclip_b_weights: dict[str, Tensor]) -> None:
    """timm's own build of this tower shifts every patch by a pixel; the SDK's default does not."""
    # In float64: random weights amplify float32's noise to more than what is looked for.
    image = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(1)).double()
    exact = {name: tensor.double() for name, tensor in mobileclip_b_weights.items()}
    expected = mobileclip_b_by_hand(exact, image, SMALL_VIT["num_heads"])
    named = official_b_names(mobileclip_b_weights)
    official = create("mobileclip_b", checkpoint=named, **SMALL_VIT).double()
    torch.testing.assert_close(official(image), expected, rtol=1e-7, atol=1e-9)
    shifted = create(
        "mobileclip_b", checkpoint=mobileclip_b_weights, official_stem=False, **SMALL_VIT
    ).double()
    assert (shifted(image) - expected).abs().max() > 100 * (official(image) - expected).abs().max()


@torch.inference_mode()
def test_open_clip_layouts_load(mobileclip_b_weights: dict[str, Tensor]) -> None:
    image = torch.randn(1, 3, 224, 224)
    nested = {f"visual.trunk.{name}": tensor for name, tensor in mobileclip_b_weights.items()}
    both = nested | {"text.token_embedding.weight": torch.zeros(1), "logit_scale": torch.tensor(1.0)}
    one, other = (create("mobileclip_b", checkpoint=w, **SMALL_VIT) for w in (mobileclip_b_weights, both))
    torch.testing.assert_close(one(image), other(image), rtol=0, atol=0)
    with pytest.raises(CheckpointError, match=r"neither tower: extra\.weight"):
        create("mobileclip_b", checkpoint=both | {"extra.weight": torch.zeros(1)}, **SMALL_VIT)
    del both["visual.trunk.blocks.0.norm1.weight"]
    with pytest.raises(CheckpointError, match=r"1 missing: blocks\.0\.norm1\.weight"):
        create("mobileclip_b", checkpoint=both, **SMALL_VIT)


@torch.inference_mode()
def test_quick_gelu_is_open_clips() -> None:
    """OpenAI's weights were trained with x * sigmoid(1.702 x)."""
    vision = {"layers": 2, "width": 64, "head_width": 32, "patch_size": 16, "image_size": 224}
    text = {"context_length": 8, "vocab_size": 16, "width": 32, "heads": 2, "layers": 1}
    twin = open_clip.CLIP(embed_dim=24, vision_cfg=vision, text_cfg=text, quick_gelu=True).eval()
    sizes = {"embed_dim": 64, "depth": 2, "num_heads": 2}
    image = torch.randn(2, 3, 224, 224)
    quick = create("clip_vit_b_16", checkpoint=twin.state_dict(), quick_gelu=True, **sizes)
    exact = create("clip_vit_b_16", checkpoint=twin.state_dict(), **sizes)
    torch.testing.assert_close(quick(image), twin.encode_image(image), rtol=1e-4, atol=1e-5)
    assert (exact(image) - twin.encode_image(image)).abs().max() > 1e-4


@torch.inference_mode()
def test_an_embedding_classifier_is_cosine_similarity() -> None:
    matrix = F.normalize(torch.randn(6, 3), dim=0)
    embeddings = torch.randn(4, 6)
    logits = EmbeddingClassifier(torch.nn.Identity(), matrix)(embeddings)
    expected = 100 * F.cosine_similarity(embeddings[:, None], matrix.T[None], dim=-1)
    torch.testing.assert_close(logits, expected)


def test_class_matrices_need_a_text_tower(mobileclip_b_weights: dict[str, Tensor]) -> None:
    with pytest.raises(CheckpointError, match="no text tower"):
        class_matrix("mobileclip_b", mobileclip_b_weights, ["a dog"])
    with pytest.raises(UsageError, match="mobileclip_s2"):
        class_matrix("mobileclip_s0", mobileclip_b_weights, ["a dog"])
