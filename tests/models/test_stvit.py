"""STViT-R against what the official classification and detection code computed."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from tests import parity
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from saccade.engines.export import export_graph
from saccade.engines.inputs import picture
from saccade.engines.passes.inline import inline
from saccade.errors import CheckpointError, UsageError
from saccade.models import create
from saccade.models.stvit import CLASSIFICATION, DETECTION, CrossBlock, pool_seeds

SMALL: dict[str, Any] = {"embed_dim": 32, "depths": (2, 2, 6, 2), "num_heads": (1, 2, 4, 8)}
BLOCKS = [name for name in parity.names("stvit") if "_semantic_" in name or "_token_recovery" in name]
ROLES = ("generation", "refine", "local", "global", "recovery")
GRIDS = {"10x17": (10, 17), "14x21": (14, 21), "cls": (14, 14)}


@pytest.fixture(autouse=True)
def _no_gradients() -> Any:
    with torch.no_grad():
        yield


def _whole(reference: parity.Parity, *, features: bool) -> nn.Module:
    size = "small" if "small" in reference.name else "tiny"
    return create(f"stvit_r_swin_{size}", checkpoint=parity.state_dict(reference), features=features)


@pytest.mark.parametrize("name", ["stvit_r_swin_tiny_224", "stvit_r_swin_small_224"])
def test_classifier_and_its_blocks(name: str) -> None:
    reference = parity.load("stvit", name)
    model = _whole(reference, features=False)
    stage = model.get_submodule("layers.2")
    seen: dict[str, torch.Tensor] = {}
    for i, block in enumerate(stage.get_submodule("blocks").children()):
        block.register_forward_hook(lambda _m, _i, out, i=i: seen.update({f"stage2_block{i}": out}))
    model.get_submodule("patch_embed").register_forward_hook(
        lambda _m, _i, out: seen.update({"patch_embed": out})
    )
    parity.check("logits", model(parity.inputs(reference)["x"]), reference)
    checked = [key for key in seen if key in reference.arrays]
    assert len(checked) > 6
    for key in checked:
        parity.check(key, seen[key].flatten(1, 2), reference)


@pytest.mark.parametrize("name", ["stvit_r_det_swin_tiny_224x224", "stvit_r_det_swin_small_192x256"])
def test_backbone(name: str) -> None:
    reference = parity.load("stvit", name)
    model = _whole(reference, features=True)
    maps = model(parity.inputs(reference)["x"])
    assert tuple(m.shape[1] for m in maps) == model.channels
    for i, feature in enumerate(maps):
        parity.check(f"out{i}", feature, reference)


@pytest.mark.parametrize("name", BLOCKS)
def test_single_block(name: str) -> None:
    reference = parity.load("stvit", name)
    role = next(i for i, role in enumerate(ROLES) if role in name)
    roles = DETECTION if "_det_" in name else CLASSIFICATION
    block: CrossBlock = roles[role](384, 12, 7, 4.0).eval()
    block.load_state_dict(parity.state_dict(reference, strip_prefix=True), strict=True)
    height, width = next(hw for key, hw in GRIDS.items() if key in name)
    semantic = (6, 6) if "_cls_" in name else (3 * -(-height // 7), 3 * -(-width // 7))
    given = parity.inputs(reference)
    grids = {"x": (height, width), "semantic": semantic}
    order = {"refine": ("semantic", "x"), "recovery": ("x", "semantic")}.get(ROLES[role], tuple(given))
    result = block(*(given[key].unflatten(1, grids[key]) for key in order))
    parity.check("recovered" if ROLES[role] == "recovery" else "tokens", result.flatten(1, 2), reference)


def test_seeds_equal_adaptive_pooling() -> None:
    for window in (7, 8):
        x = torch.randn(2, 2 * window, 3 * window, 5)
        windows = x.unflatten(2, (3, window)).unflatten(1, (2, window)).permute(0, 1, 3, 5, 2, 4)
        expected = nn.functional.adaptive_max_pool2d(windows.flatten(0, 2), 3)
        expected = expected.unflatten(0, (2, 2, 3)).permute(0, 1, 4, 2, 5, 3).flatten(3, 4).flatten(1, 2)
        assert torch.equal(pool_seeds(x, window), expected)


def test_keys_are_projected_once() -> None:
    """134 G multiply-accumulates at 800x1344, not the 241 G of the released form (matmul and conv)."""
    with torch.device("meta"):
        model = create("stvit_r_swin_small", features=True)
        counter = FlopCounterMode(display=False)
        with counter:
            model(torch.empty(1, 3, 800, 1344))
    assert counter.get_total_flops() / 2e9 == pytest.approx(134.0, rel=0.03)


def _with_visible_layer_scale(model: nn.Module) -> nn.Module:
    """Fresh layer scales are 1e-5, which would hide mistakes of the scaled branches."""
    for name, parameter in model.named_parameters():
        if "layer_scale" in name:
            nn.init.ones_(parameter)
    return model


def test_classifier_in_onnx_runtime() -> None:
    model = _with_visible_layer_scale(create("stvit_r_swin_tiny", **SMALL))
    graph = export_graph(model, [picture((224, 224))])
    assert sum(node.domain == "saccade" for node in graph.graph.node) == 12
    for form in (graph, inline(graph)):
        session = onnxruntime.InferenceSession(form.SerializeToString())
        for batch in (1, 3):
            image = torch.randn(batch, 3, 224, 224)
            (actual,) = session.run(None, {"image": image.numpy()})
            np.testing.assert_allclose(actual, model(image).numpy(), rtol=1e-4, atol=1e-5)


def test_one_backbone_graph_serves_every_size() -> None:
    model = _with_visible_layer_scale(create("stvit_r_swin_tiny", features=True, **SMALL))
    outputs = [f"feature_{i}" for i in range(4)]
    graph = export_graph(model, [picture((224, 320), dynamic_size=True)], outputs=outputs)
    for form in (graph, inline(graph)):
        session = onnxruntime.InferenceSession(form.SerializeToString())
        for batch, height, width in [(1, 224, 224), (2, 256, 320), (1, 200, 333), (1, 64, 97), (1, 30, 500)]:
            image = torch.randn(batch, 3, height, width)
            for actual, expected in zip(
                session.run(None, {"image": image.numpy()}), model(image), strict=True
            ):
                np.testing.assert_allclose(actual, expected.numpy(), rtol=1e-3, atol=2e-5)


def test_classification_weights_in_a_backbone(caplog: pytest.LogCaptureFixture) -> None:
    state = create("stvit_r_swin_tiny", **SMALL).state_dict()
    model = create("stvit_r_swin_tiny", checkpoint=state, features=True, **SMALL)
    assert "norm0 to norm3" in caplog.text
    assert torch.equal(
        model.state_dict()["layers.3.blocks.1.mlp.fc2.weight"], state["layers.3.blocks.1.mlp.fc2.weight"]
    )


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"depths": (2, 2, 8, 2)}, "multiple of 6"),
        ({"img_size": 384, "window_size": 12}, "key patches"),
        ({"img_size": 225}, "multiple of 32"),
        ({"img_size": (224, 288)}, "square pictures"),
        ({"embed_dim": 100}, "heads do not divide"),
        ({"depths": (2, 2, 6)}, "four entries"),
    ],
)
def test_impossible_sizes(config: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        create("stvit_r_swin_tiny", **config)


def test_stvit_deit_takes_square_pictures() -> None:
    with pytest.raises(UsageError, match="one number"):
        create("stvit_deit_tiny", img_size=(224, 288))


def test_window_8_at_256() -> None:
    assert create("stvit_r_swin_tiny", img_size=256, window_size=8, **SMALL)(
        torch.zeros(1, 3, 256, 256)
    ).shape == (1, 1000)


def test_wrong_weights_name_the_keys() -> None:
    state = create("stvit_r_swin_tiny", **SMALL).state_dict()
    del state["layers.2.blocks.1.attn.kv.bias"]
    with pytest.raises(CheckpointError, match=r"layers\.2\.blocks\.1\.attn\.kv\.bias"):
        create("stvit_r_swin_tiny", checkpoint=state, **SMALL)


@pytest.mark.parametrize(("size", "gmacs"), [("small", 1.91)])
def test_stvit_deit_has_the_cost_of_the_paper(size: str, gmacs: float) -> None:
    with torch.device("meta"):
        model = create(f"stvit_deit_{size}")
        counter = FlopCounterMode(display=False)
        with counter:
            assert model(torch.empty(1, 3, 224, 224)).shape == (1, 1000)
    assert counter.get_total_flops() / 2e9 == pytest.approx(gmacs, rel=0.01)


def test_stvit_deit_in_onnx_runtime() -> None:
    model = create("stvit_deit_tiny", embed_dim=32, num_heads=2, num_classes=5)
    session = onnxruntime.InferenceSession(export_graph(model, [picture((224, 224))]).SerializeToString())
    image = torch.randn(3, 3, 224, 224)
    (actual,) = session.run(None, {"image": image.numpy()})
    np.testing.assert_allclose(actual, model(image).numpy(), rtol=1e-4, atol=1e-5)
    with pytest.raises(UsageError, match="no feature maps"):
        create("stvit_deit_tiny", features=True)
