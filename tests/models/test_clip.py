"""CLIP's towers against the official implementations, in every layout of checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnxruntime
import open_clip
import pytest
import torch
import torch.nn.functional as F
from tests import parity
from torch import Tensor

from saccade.engines.export import export_graph
from saccade.engines.inputs import Input, picture
from saccade.errors import CheckpointError, UsageError
from saccade.models import create
from saccade.models.clip import EmbeddingClassifier, Towers
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
    """Embeddings of both towers, and maps of the image tower, before and after merging."""
    expected = parity.load("clip", reference)
    image, weights = parity.inputs(expected)["image"], parity.state_dict(expected)
    tokens = torch.tensor(expected.config["tokens"])
    name = NAMES[reference]

    towers = create(name, checkpoint=weights)
    parity.check("image_embed", towers(image), expected)
    parity.check("image_embed", towers.encode_image(image), expected)
    parity.check("text_embed", towers.encode_text(tokens), expected)
    parity.check("image_embed", merge(Towers(towers.trunk))(image), expected)
    if "pooled" in expected.arrays:
        features = towers.trunk.forward_features(image)
        parity.check("pooled", towers.trunk.forward_head(features, pre_logits=True), expected)
    matrix = F.normalize(towers.encode_text(tokens), dim=1).T
    logits = EmbeddingClassifier(Towers(towers.trunk), matrix, towers.scale())(image)
    parity.check("logits_per_image", logits, expected)
    del towers

    backbone = create(name, checkpoint=weights, features=True)
    for feature, merged, key in zip(backbone(image), merge(backbone)(image), MAPS[reference], strict=True):
        parity.check(key, feature, expected)
        parity.check(key, merged, expected)


@pytest.mark.slow
@pytest.mark.parametrize("reference", NAMES)
def test_tower_graphs_agree_too(reference: str) -> None:
    """The exported graphs in ONNX Runtime: embeddings, and maps from a graph of their own."""
    expected = parity.load("clip", reference)
    image, weights = parity.inputs(expected)["image"], parity.state_dict(expected)
    for features, keys in ((False, ("image_embed",)), (True, MAPS[reference])):
        model = merge(create(NAMES[reference], checkpoint=weights, features=features, text=False))
        graph = export_graph(model, [picture((image.shape[2], image.shape[3]))], outputs=keys, name=reference)
        session = onnxruntime.InferenceSession(graph.SerializeToString())
        for key, value in zip(keys, session.run(None, {"image": image.numpy()}), strict=True):
            parity.check(key, value, expected)
    towers = create(NAMES[reference], checkpoint=weights)
    tokens = np.array(expected.config["tokens"])
    graph = export_graph(
        towers.text,
        [Input("tokens", ("batch", 77), draw=lambda rng, shape: rng.integers(1, 49408, shape))],
        outputs=("text_embed",),
    )
    session = onnxruntime.InferenceSession(graph.SerializeToString())
    parity.check("text_embed", session.run(None, {"tokens": tokens})[0], expected)
    one_by_one = [session.run(None, {"tokens": row[None]})[0] for row in tokens]
    parity.check("text_embed", np.concatenate(one_by_one), expected)


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
    official = create("mobileclip_b", checkpoint=named, text=False, **SMALL_VIT).double()
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
    one, other = (
        create("mobileclip_b", checkpoint=w, text=False, **SMALL_VIT) for w in (mobileclip_b_weights, both)
    )
    torch.testing.assert_close(one(image), other(image), rtol=0, atol=0)
    with pytest.raises(CheckpointError, match=r"neither tower: extra\.weight"):
        create("mobileclip_b", checkpoint=both | {"extra.weight": torch.zeros(1)}, **SMALL_VIT)
    del both["visual.trunk.blocks.0.norm1.weight"]
    with pytest.raises(CheckpointError, match=r"1 missing: blocks\.0\.norm1\.weight"):
        create("mobileclip_b", checkpoint=both, **SMALL_VIT)


TEXT: dict[str, Any] = {
    "embedding_width": 24,
    "text_width": 32,
    "text_heads": 2,
    "text_layers": 2,
    "vocabulary": 600,
    "context": 12,
}
NARROW_VIT: dict[str, Any] = {"embed_dim": 64, "depth": 2, "num_heads": 2, **TEXT}
NARROW_MCI: dict[str, Any] = {"layers": [1] * 4, "embed_dims": [16, 32, 64, 128], **TEXT}
OPEN_CLIP_TEXT: dict[str, Any] = {
    "context_length": 12,
    "vocab_size": 600,
    "width": 32,
    "heads": 2,
    "layers": 2,
}


def scattered(module: torch.nn.Module) -> torch.nn.Module:
    """Every parameter off its initial value, so that a misplaced one shows."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return module.eval()


@pytest.fixture(scope="module")
def tokens() -> Tensor:
    """Texts of three lengths; the last fills the context."""
    rows = torch.randint(1, 598, (3, 12), generator=torch.Generator().manual_seed(2))
    for row, end in zip(rows, (4, 8, 11), strict=True):
        row[end], row[end + 1 :] = 599, 0
    return rows


@torch.inference_mode()
@pytest.mark.parametrize("quick_gelu", [False, True])
def test_towers_are_open_clips(quick_gelu: bool, tokens: Tensor) -> None:
    """A plain ViT with flat names, as OpenAI's; its weights were trained with x * sigmoid(1.702 x)."""
    vision = {"layers": 2, "width": 64, "head_width": 32, "patch_size": 16, "image_size": 224}
    twin = scattered(
        open_clip.CLIP(embed_dim=24, vision_cfg=vision, text_cfg=OPEN_CLIP_TEXT, quick_gelu=quick_gelu)
    )
    sizes_as_tensors = {"input_resolution": torch.tensor(224), "vocab_size": torch.tensor(600)}
    weights = {**twin.state_dict(), **sizes_as_tensors}
    ours = create("clip_vit_b_16", checkpoint=weights, quick_gelu=quick_gelu, **NARROW_VIT)
    other = create("clip_vit_b_16", checkpoint=weights, quick_gelu=not quick_gelu, **NARROW_VIT)
    image = torch.randn(2, 3, 224, 224)
    torch.testing.assert_close(ours(image), twin.encode_image(image), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ours.encode_text(tokens), twin.encode_text(tokens), rtol=1e-4, atol=1e-5)
    assert (other(image) - twin.encode_image(image)).abs().max() > 1e-4
    assert (other.encode_text(tokens) - twin.encode_text(tokens)).abs().max() > 1e-4
    assert ours.scale() == pytest.approx(min(float(twin.logit_scale.exp()), 100))


def official_text_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """apple/ml-mobileclip's names of a text tower in open_clip's."""
    renames = (
        ("transformer.resblocks.", "transformer."),
        ("ln_final.", "final_layer_norm."),
        ("ln_1.", "pre_norm_mha.0."),
        ("attn.in_proj_", "pre_norm_mha.1.qkv_proj."),
        ("attn.", "pre_norm_mha.1."),
        ("ln_2.", "pre_norm_ffn.0."),
        ("mlp.c_fc.", "pre_norm_ffn.1."),
        ("mlp.c_proj.", "pre_norm_ffn.4."),
        ("token_embedding.", "embedding_layer."),
        ("text_projection", "projection_layer"),
    )
    official = {}
    for name, tensor in state.items():
        if name == "positional_embedding":
            name, tensor = "positional_embedding.pos_embed.pos_embed", tensor[None, None]
        for ours, theirs in renames:
            name = name.replace(ours, theirs)
        official[f"text_encoder.{name}"] = tensor
    return official


@torch.inference_mode()
def test_text_towers_load_in_every_layout(tokens: Tensor) -> None:
    """Without the causal mask, as in MobileCLIP-S1 and S2: the padding is read as well."""
    twin = scattered(
        open_clip.transformer.TextTransformer(**OPEN_CLIP_TEXT, output_dim=24, no_causal_mask=True)
    )
    trunk = create("mobileclip_s2", **NARROW_MCI).trunk.state_dict()
    scale = {"logit_scale": torch.tensor([6.0])}
    nested = {f"text.{name}": tensor for name, tensor in twin.state_dict().items()}
    layouts = (
        {f"visual.trunk.{name}": tensor for name, tensor in trunk.items()} | nested | scale,
        {f"trunk.{name}": tensor for name, tensor in trunk.items()} | nested | scale,
        {f"visual.trunk.{name}": tensor for name, tensor in trunk.items()} | dict(twin.state_dict()) | scale,
        {f"visual.trunk.{name}": tensor for name, tensor in trunk.items()}
        | official_text_names(twin.state_dict())
        | scale,
    )
    for layout in layouts:
        towers = create("mobileclip_s2", checkpoint=layout, **NARROW_MCI)
        torch.testing.assert_close(towers.encode_text(tokens), twin(tokens), rtol=1e-4, atol=1e-5)
        assert towers.scale() == 100  # exp(6) is more than CLIP lets it become
    again = create("mobileclip_s2", checkpoint=towers.state_dict(), **NARROW_MCI)
    assert torch.equal(again.encode_text(tokens), towers.encode_text(tokens))
    incomplete = {
        name: value for name, value in layouts[0].items() if not name.endswith("1.attn.in_proj_bias")
    }
    with pytest.raises(CheckpointError, match=r"1 missing: transformer\.resblocks\.1\.attn\.in_proj_bias"):
        create("mobileclip_s2", checkpoint=incomplete, **NARROW_MCI)


def test_text_towers_are_built_where_they_are_wanted() -> None:
    """63 million parameters that pictures alone do not need."""
    both = create("mobileclip_s2", text=True, **NARROW_MCI)
    weights = both.state_dict()
    image = [name for name in weights if name.startswith("trunk.")]
    assert set(create("mobileclip_s2", **NARROW_MCI).state_dict()) == set(image)
    assert set(create("mobileclip_s2", checkpoint=weights, text=False, **NARROW_MCI).state_dict()) == set(
        image
    )
    assert set(create("mobileclip_s2", checkpoint=weights, **NARROW_MCI).state_dict()) == set(weights)
    features = create("mobileclip_s2", checkpoint=weights, features=True, **NARROW_MCI)
    assert not any("text" in name for name in features.state_dict())
    only_image = {name: weights[name] for name in image}
    with pytest.raises(CheckpointError, match="no text tower"):
        create("mobileclip_s2", checkpoint=only_image, text=True, **NARROW_MCI)
    with pytest.raises(UsageError, match="text=True"):
        create("mobileclip_s2", checkpoint=only_image, **NARROW_MCI).encode_text(torch.zeros(1, 12).long())
    with pytest.raises(UsageError, match="no library here has it"):
        create("mobileclip_s0", text=True, **NARROW_MCI)
    with pytest.raises(UsageError, match="text_width 32 does not divide into 3 text_heads"):
        create("mobileclip_s2", text=True, **{**NARROW_MCI, "text_heads": 3})


@pytest.mark.parametrize(("name", "sizes"), [("mobileclip_s1", NARROW_MCI), ("mobileclip_b", TEXT)])
def test_text_graphs_take_any_batch(name: str, sizes: dict[str, Any], tokens: Tensor) -> None:
    """Without and with the causal mask, in ONNX Runtime."""
    small = sizes if name == "mobileclip_s1" else {**SMALL_VIT, "depth": 1, **sizes}
    text = create(name, text=True, **small).text
    graph = export_graph(
        scattered(text),
        [Input("tokens", ("batch", 12), draw=lambda rng, shape: rng.integers(1, 600, shape))],
        outputs=("embeddings",),
    )
    assert not any(node.op_type == "ArgMax" and node.input[0] == "tokens" for node in graph.graph.node)
    session = onnxruntime.InferenceSession(graph.SerializeToString())
    with torch.inference_mode():
        expected = text(tokens).numpy()
    for rows in (slice(0, 1), slice(1, 3), slice(0, 3)):
        (embeddings,) = session.run(None, {"tokens": tokens[rows].numpy()})
        np.testing.assert_allclose(embeddings, expected[rows], rtol=1e-4, atol=1e-5)
    cut = torch.nn.functional.pad(tokens[:1, :5], (0, 7), value=7)  # other tokens behind the end
    cut[0, 5:] = tokens[2, 5:].clamp(max=500)
    (behind,) = session.run(None, {"tokens": cut.numpy()})
    causal = name == "mobileclip_b"
    assert (np.abs(behind - expected[:1]).max() < 1e-5) == causal


@torch.inference_mode()
def test_an_embedding_classifier_is_cosine_similarity() -> None:
    matrix = F.normalize(torch.randn(6, 3), dim=0)
    embeddings = torch.randn(4, 6)
    logits = EmbeddingClassifier(torch.nn.Identity(), matrix)(embeddings)
    expected = 100 * F.cosine_similarity(embeddings[:, None], matrix.T[None], dim=-1)
    torch.testing.assert_close(logits, expected)
