"""timm's models behind our contract, held to the official implementations' numbers and to timm itself."""

from __future__ import annotations

import hashlib
from typing import Any

import onnxruntime
import pytest
import timm
import torch
from tests import parity

from saccade.engines.export import export_graph
from saccade.engines.inputs import picture
from saccade.errors import CheckpointError, UsageError
from saccade.models import create
from saccade.models.deploy import merge
from saccade.models.timm_models import first_1k_of_22k

SMALL_TINY_VIT: dict[str, Any] = {
    "embed_dims": (32, 64, 96, 128),
    "depths": (1, 1, 2, 1),
    "num_heads": (1, 2, 3, 4),
}
SMALL_VIT: dict[str, Any] = {"embed_dim": 48, "depth": 8, "num_heads": 3}
SMALL_MCI: dict[str, Any] = {"embed_dims": (16, 32, 64, 128), "layers": (1, 1, 1, 1)}


def pictures(side: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(seed))


def randomised(module: torch.nn.Module) -> torch.nn.Module:
    """Every parameter and statistic off its initial value, so that none can be missed unnoticed."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for tensor in module.state_dict().values():
            if tensor.is_floating_point():
                tensor.add_(torch.rand(tensor.shape, generator=generator), alpha=0.05)
    return module.eval()


@pytest.mark.parametrize("name", parity.names("tinyvit"))
@torch.inference_mode()
def test_tiny_vit_agrees_with_the_official_implementation(name: str) -> None:
    reference = parity.load("tinyvit", name)
    image, weights = parity.inputs(reference)["image"], parity.state_dict(reference)
    model = create(reference.config["model"], checkpoint=weights)
    parity.check("logits", model(image), reference)
    parity.check("logits", merge(model)(image), reference)
    if "logits_1k" in reference.arrays:
        narrowed = create(reference.config["model"], checkpoint=weights, head="22k_as_1k")
        parity.check("logits_1k", narrowed(image), reference)
    if "stage0" in reference.arrays:
        backbone = create(reference.config["model"], checkpoint=weights, features=True)
        for i, feature in enumerate(backbone(image)):
            parity.check(f"stage{i}", feature, reference)


@pytest.mark.parametrize(
    "name",
    [
        name if name == "tiny_vit_5m_224" else pytest.param(name, marks=pytest.mark.slow)
        for name in parity.names("tinyvit")
    ],
)
def test_tiny_vit_graphs_agree_too(name: str) -> None:
    """The exported graph in ONNX Runtime: attention biases are constants, no lookup is left."""
    reference = parity.load("tinyvit", name)
    image = parity.inputs(reference)["image"]
    model = create(reference.config["model"], checkpoint=parity.state_dict(reference))
    graph = export_graph(merge(model), [picture((image.shape[2], image.shape[3]))], name=name)
    assert not {"GatherND", "BatchNormalization", "Erf"} & {node.op_type for node in graph.graph.node}
    session = onnxruntime.InferenceSession(graph.SerializeToString())
    parity.check("logits", session.run(None, {"image": image.numpy()})[0], reference)


def test_the_22k_indices_are_the_official_list() -> None:
    """sha256 of upstream's imagenet_1kto22k.txt, one index per line, as far as it was recorded."""
    text = "".join(f"{index}\n" for index in first_1k_of_22k())
    candidates = {hashlib.sha256(form.encode()).hexdigest() for form in (text, text.rstrip("\n"))}
    assert any(digest.startswith("f17c9e35") and digest.endswith("96ba4a1") for digest in candidates)


def test_a_1k_head_cannot_be_narrowed() -> None:
    with pytest.raises(UsageError, match="21841"):
        create("tiny_vit_5m_224", head="22k_as_1k", **SMALL_TINY_VIT)
    with pytest.raises(UsageError, match="22k_as_1k"):
        create("tiny_vit_5m_224", head="21k", **SMALL_TINY_VIT)


def test_loading_leaves_no_stale_attention_bias() -> None:
    """timm caches gathered biases in eval mode; weights loaded after a forward must still count."""
    first = create("tiny_vit_5m_224", **SMALL_TINY_VIT)
    weights = randomised(create("tiny_vit_5m_224", **SMALL_TINY_VIT)).state_dict()
    second = create("tiny_vit_5m_224", checkpoint=weights, **SMALL_TINY_VIT)
    with torch.inference_mode():
        image = pictures(224)
        first(image)
        first.train().load_state_dict(weights)
        torch.testing.assert_close(second(image), first.eval()(image), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("name", "architecture", "sizes", "side"),
    [
        ("tiny_vit_11m_224", "tiny_vit_11m_224", SMALL_TINY_VIT, 224),
        ("deit_small", "deit_small_patch16_224", SMALL_VIT, 224),
        ("deit_small_distilled", "deit_small_distilled_patch16_224", SMALL_VIT, 224),
        ("vit_base_patch16_clip_224", "vit_base_patch16_clip_224", SMALL_VIT, 224),
        ("fastvit_mci1", "fastvit_mci1", SMALL_MCI, 256),
    ],
)
@torch.inference_mode()
def test_agrees_with_timm(name: str, architecture: str, sizes: dict[str, Any], side: int) -> None:
    twin = randomised(timm.create_model(architecture, num_classes=7, **sizes))
    image = pictures(side)
    for checkpoint in (twin.state_dict(), {"model": twin.state_dict(), "epoch": 1}):
        model = create(name, checkpoint=checkpoint, **sizes)
        torch.testing.assert_close(model(image), twin(image), rtol=0, atol=0)

    backbone = create(name, checkpoint=twin.state_dict(), features=True, **sizes)
    maps = backbone(image)
    assert [feature.shape[1] for feature in maps] == list(backbone.channels)
    assert [side // feature.shape[2] for feature in maps] == list(backbone.strides)
    expected = twin.forward_intermediates(image, indices=list(backbone.out_indices), intermediates_only=True)
    for ours, theirs in zip(maps, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


@torch.inference_mode()
def test_a_distilled_prediction_is_the_mean_of_two_heads() -> None:
    model = randomised(create("deit_tiny_distilled", num_classes=5, **SMALL_VIT))
    image = pictures(224)
    tokens = model.forward_features(image)
    expected = (model.head(tokens[:, 0]) + model.head_dist(tokens[:, 1])) / 2
    torch.testing.assert_close(model(image), expected)


@torch.inference_mode()
def test_plain_vit_features_can_be_chosen_and_follow_the_size() -> None:
    weights = randomised(create("deit_small", **SMALL_VIT)).state_dict()
    backbone = create("deit_small", checkpoint=weights, features=True, img_size=(192, 256), **SMALL_VIT)
    assert backbone.out_indices == (1, 3, 5, 7)
    assert [tuple(m.shape) for m in backbone(torch.zeros(1, 3, 192, 256))] == [(1, 48, 12, 16)] * 4
    assert backbone.strides == (16, 16, 16, 16)
    chosen = create("deit_small", features=True, out_indices=(0, 1, 2, 7), **SMALL_VIT)
    assert chosen.out_indices == (0, 1, 2, 7)
    for wrong in ((0, 1, 2), (3, 2, 1, 0), (0, 1, 2, 8)):
        with pytest.raises(UsageError, match=r"0\.\.7"):
            create("deit_small", features=True, out_indices=wrong, **SMALL_VIT)


@torch.inference_mode()
def test_features_need_no_head_in_the_checkpoint() -> None:
    weights = randomised(create("tiny_vit_5m_224", **SMALL_TINY_VIT)).state_dict()
    headless = {name: tensor for name, tensor in weights.items() if not name.startswith("head.")}
    whole = create("tiny_vit_5m_224", checkpoint=weights, features=True, **SMALL_TINY_VIT)
    half = create("tiny_vit_5m_224", checkpoint=headless, features=True, **SMALL_TINY_VIT)
    for one, other in zip(whole(pictures(224)), half(pictures(224)), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    with pytest.raises(CheckpointError, match=r"missing: head\."):
        create("tiny_vit_5m_224", checkpoint=headless, **SMALL_TINY_VIT)


@pytest.mark.parametrize(
    ("name", "sizes"),
    [("tiny_vit_5m_224", SMALL_TINY_VIT), ("fastvit_mci0", SMALL_MCI), ("deit_tiny", SMALL_VIT)],
)
@torch.inference_mode()
def test_merging_keeps_the_function_and_the_original(name: str, sizes: dict[str, Any]) -> None:
    model = randomised(create(name, **sizes))
    image = pictures(224 if name != "fastvit_mci0" else 256)
    before = model(image)
    merged = merge(model)
    torch.testing.assert_close(merged(image), before, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(model(image), before, rtol=0, atol=0)
    fewer = len(list(merged.modules())) < len(list(model.modules()))
    assert fewer == (name != "deit_tiny")


def test_wrong_checkpoints_and_sizes_are_refused() -> None:
    weights = create("deit_tiny", **SMALL_VIT).state_dict()
    with pytest.raises(CheckpointError, match=r"does not fit tiny_vit_5m_224[\s\S]*look like those of deit"):
        create("tiny_vit_5m_224", checkpoint=weights, **SMALL_TINY_VIT)
    with pytest.raises(CheckpointError, match=r"head\.weight: file \(1000, 48\) model \(3, 48\)"):
        create("deit_tiny", checkpoint=weights, num_classes=3, **SMALL_VIT)
    with pytest.raises(UsageError, match="window_sizes"):
        create("deit_tiny", window_sizes=(7, 7, 7, 7))


def test_class_count_comes_from_the_head() -> None:
    weights = create("fastvit_mci0", num_classes=11, **SMALL_MCI).state_dict()
    assert create("fastvit_mci0", checkpoint=weights, **SMALL_MCI).num_classes == 11
    assert create("fastvit_mci0", **SMALL_MCI).num_classes == 512
    assert create("deit_tiny", **SMALL_VIT).num_classes == 1000
