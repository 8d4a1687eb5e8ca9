"""Dense models: every head over every backbone, against the libraries they come from, and as graphs."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import segmentation_models_pytorch as smp
import torch
import torch.nn.functional as F
from tests.dense import BACKBONES, HEADS, NAMES, SWIN, scrambled, small
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from saccade.engines import readiness
from saccade.engines.export import export_graph
from saccade.engines.inputs import picture
from saccade.engines.tensorrt.parser import BatchRange, ShapeRange, judge
from saccade.errors import CheckpointError, UsageError
from saccade.models import create, zoo
from saccade.models.card import Card
from saccade.models.deploy import merge
from saccade.models.heads.upernet import UPerHead, adaptive_mean

DENSE = [name for name in zoo.names() if zoo.entry(name).card.task in ("semantic_segmentation", "depth")]


@pytest.fixture(autouse=True)
def _no_gradients() -> Any:
    torch.manual_seed(0)
    with torch.no_grad():
        yield


@pytest.mark.parametrize("name", NAMES)
def test_outputs_have_one_answer_per_place(name: str) -> None:
    output = small(name)(torch.randn(2, 3, 64, 96))
    if name.startswith("dpt"):
        assert output.shape == (2, 64, 96)
        assert (output > 0).all()
    else:
        assert output.shape == (2, 7, 16, 24)


@pytest.mark.parametrize("backbone", ["swin_tiny", "clip_vit_b_16"])
def test_dpt_segments_at_stride_two(backbone: str) -> None:
    model = small(f"dpt_{backbone}", num_classes=5)
    image = torch.randn(1, 3, 64, 96)
    assert model(image).shape == (1, 5, 32, 48)
    size = {"img_size": (64, 96)} if backbone == "clip_vit_b_16" else {}
    config = {"channels": 32, "backbone_config": BACKBONES[backbone], **size}
    again = create(f"dpt_{backbone}", checkpoint=model.state_dict(), **config)  # classes from the head
    torch.testing.assert_close(again(image), model(image))


def test_metric_depth_stays_below_its_bound() -> None:
    module = small("dpt_swin_tiny", max_depth=10.0)
    module.get_submodule("decode_head.conv_depth").bias.fill_(50.0)  # type: ignore[union-attr,operator]
    assert module(torch.randn(1, 3, 64, 64)).max() <= 10.0


# --- against the libraries -----------------------------------------------------------------------------


def _maps(model: nn.Module, image: Tensor) -> list[Tensor]:
    return list(model.get_submodule("backbone")(image))


def test_fpn_is_the_librarys() -> None:
    """smp's whole model over the same maps: decoder and classifier, with our weights by position."""
    model = small("fpn_swin_tiny")
    reference = smp.FPN(
        "resnet18",
        encoder_weights=None,
        decoder_pyramid_channels=64,
        decoder_segmentation_channels=32,
        classes=7,
    ).eval()
    own = model.get_submodule("decode_head")
    reference.decoder = smp.decoders.fpn.decoder.FPNDecoder(
        [16, 32, 64, 128], pyramid_channels=64, segmentation_channels=32
    ).eval()
    reference.decoder.load_state_dict(own.get_submodule("decoder").state_dict())
    reference.segmentation_head[0].load_state_dict(own.get_submodule("conv_seg").state_dict())
    image = torch.randn(1, 3, 64, 96)
    full = reference.segmentation_head(reference.decoder(_maps(model, image)))
    ours = F.interpolate(model(image), scale_factor=4.0, mode="bilinear", align_corners=True)
    torch.testing.assert_close(ours, full)


def test_upernet_is_the_librarys_without_its_norms() -> None:
    """smp's decoder has one LayerNorm per map more, and other names; the rest must be the same numbers."""
    own = scrambled(UPerHead((16, 32, 64, 128), 32, 7)).eval()
    reference = smp.decoders.upernet.decoder.UPerNetDecoder(
        (3, 8, 16, 32, 64, 128), decoder_channels=32
    ).eval()
    reference.feature_norms = nn.ModuleList(nn.Identity() for _ in range(4))
    reference.load_state_dict(_smp_names({k: v for k, v in own.state_dict().items() if "conv_seg" not in k}))
    maps = [torch.randn(2, width, 20 // 2**i, 28 // 2**i) for i, width in enumerate((16, 32, 64, 128))]
    fused = reference([torch.empty(0), torch.empty(0), *maps])
    torch.testing.assert_close(own(maps), own.conv_seg(fused), rtol=1e-4, atol=1e-5)


def _smp_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Names of `UPerHead` as smp's decoder has them: coarse levels first, layers by number."""
    rules: tuple[tuple[str, Any], ...] = (
        (r"^psp_modules\.(\d)\.1\.", r"psp.blocks.\1.1."),
        (r"^bottleneck\.", "psp.out_conv."),
        (r"^lateral_convs\.(\d)\.", lambda m: f"fpn_lateral_blocks.{2 - int(m[1])}.conv_norm_relu."),
        (r"^fpn_convs\.(\d)\.", lambda m: f"fpn_conv_blocks.{2 - int(m[1])}."),
        (r"^fpn_bottleneck\.", "fusion_block."),
        (r"\.conv\.", ".0."),
        (r"\.bn\.", ".1."),
    )
    renamed = {}
    for name, value in state.items():
        for pattern, replacement in rules:
            name = re.sub(pattern, replacement, name)
        renamed[name] = value
    return renamed


@pytest.mark.parametrize("backbone", ["swin_tiny", "clip_vit_b_16"])
def test_dpt_reads_the_librarys_decoder_out_as_the_paper_does(backbone: str) -> None:
    model = small(f"dpt_{backbone}")
    image = torch.randn(1, 3, 64, 96)
    head = model.get_submodule("decode_head")
    x = head.get_submodule("decoder")(_maps(model, image), [None] * 4)
    weights = head.state_dict()
    x = F.conv2d(x, weights["reduce.weight"], weights["reduce.bias"], padding=1)
    x = nn.UpsamplingBilinear2d(scale_factor=2)(x)
    x = F.conv2d(x, weights["refine.weight"], weights["refine.bias"], padding=1).clamp(min=0)
    x = F.conv2d(x, weights["conv_depth.weight"], weights["conv_depth.bias"])
    torch.testing.assert_close(model(image), torch.log1p(x.exp())[:, 0])


@pytest.mark.parametrize("size", [(1, 1), (2, 5), (6, 6), (7, 13), (16, 25)])
@pytest.mark.parametrize("side", [1, 2, 3, 6])
def test_adaptive_mean_is_torchs(size: tuple[int, int], side: int) -> None:
    x = torch.randn(2, 3, *size)
    torch.testing.assert_close(adaptive_mean(x, side), F.adaptive_avg_pool2d(x, side))


def test_a_plain_vits_maps_are_resampled_to_four_strides() -> None:
    model = small("upernet_clip_vit_b_16")
    image = torch.randn(1, 3, 64, 96)
    maps = _maps(model, image)
    assert {tuple(each.shape[2:]) for each in maps} == {(4, 6)}
    sizes = ((16, 24), (8, 12), (4, 6), (2, 3))
    resized = [F.interpolate(each, size, mode="bilinear") for each, size in zip(maps, sizes, strict=True)]
    torch.testing.assert_close(model(image), model.get_submodule("decode_head")(resized))


def test_an_mci_backbone_is_merged_for_deployment() -> None:
    model = small("fpn_fastvit_mci2")
    image = torch.randn(1, 3, 64, 96)
    merged = merge(model)
    assert len(list(merged.modules())) < len(list(model.modules()))
    torch.testing.assert_close(merged(image), model(image), rtol=1e-3, atol=1e-4)


# --- checkpoints ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_its_own_weights_come_back(name: str) -> None:
    model = small(name)
    head, backbone = name.split("_", 1)
    config: dict[str, Any] = {"channels": 64 if head == "fpn" else 32, "backbone_config": BACKBONES[backbone]}
    if backbone == "clip_vit_b_16":
        config["img_size"] = (64, 96)
    again = create(name, checkpoint=model.state_dict(), **config)  # classes from the head
    image = torch.randn(1, 3, 64, 96)
    torch.testing.assert_close(again(image), model(image))


# What mmsegmentation's UPerHead calls its weights, from its source; no downloaded checkpoint was compared.
MMSEG_HEAD = (
    *(f"psp_modules.{i}.1" for i in range(4)),
    "bottleneck",
    *(f"{part}.{i}" for part in ("lateral_convs", "fpn_convs") for i in range(3)),
    "fpn_bottleneck",
)


def _mmseg_1x(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Our (the official) Swin names as mmseg 1.x writes them; patch merging in the order of its `unfold`."""
    renamed = {}
    for name, value in state.items():
        if name.startswith("backbone."):
            if ".downsample." in name:
                grouped = value.unflatten(-1, (4, -1))[..., [0, 2, 1, 3], :]
                value = grouped.transpose(-1, -2).flatten(-2)
            for old, new in (
                ("layers.", "stages."),
                ("patch_embed.proj.", "patch_embed.projection."),
                (".attn.", ".attn.w_msa."),
                (".mlp.fc1.", ".ffn.layers.0.0."),
                (".mlp.fc2.", ".ffn.layers.1."),
            ):
                name = name.replace(old, new)
        renamed[name] = value
    return renamed


@pytest.mark.parametrize("layout", [dict, _mmseg_1x])
def test_mmseg_checkpoints_load(layout: Any) -> None:
    model = small("upernet_swin_tiny")
    state = {name: value for name, value in model.state_dict().items() if "num_batches" not in name}
    ends = ("conv.weight", "bn.weight", "bn.bias", "bn.running_mean", "bn.running_var")
    manifest = {f"decode_head.{part}.{end}" for part in MMSEG_HEAD for end in ends}
    manifest |= {"decode_head.conv_seg.weight", "decode_head.conv_seg.bias"}
    assert {name for name in state if name.startswith("decode_head.")} == manifest
    auxiliary = {"auxiliary_head.convs.0.conv.weight": torch.zeros(4, 64, 3, 3)}
    checkpoint = {"state_dict": {**layout(state), **auxiliary}, "meta": {"epoch": 1}}
    again = create("upernet_swin_tiny", checkpoint=checkpoint, channels=32, backbone_config=SWIN)
    image = torch.randn(1, 3, 60, 90)
    torch.testing.assert_close(again(image), model(image))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: {k: v for k, v in s.items() if not k.startswith("decode_head.")}, r"no decode_head\.\*"),
        (lambda s: {k: v for k, v in s.items() if not k.startswith("backbone.")}, r"no backbone\.\*"),
        (lambda s: {**s, "neck.lateral.weight": torch.zeros(1)}, r"\['neck'\]"),
        (lambda s: {k: v for k, v in s.items() if "bottleneck.conv" not in k}, "2 missing: bottleneck"),
    ],
)
def test_other_checkpoints_are_refused(change: Any, message: str) -> None:
    state = change(small("upernet_swin_tiny").state_dict())
    with pytest.raises(CheckpointError, match=message):
        create("upernet_swin_tiny", checkpoint=state, channels=32, num_classes=7, backbone_config=SWIN)


@pytest.mark.parametrize(
    ("name", "config", "message"),
    [
        ("fpn_swin_tiny", {"channels": 48}, "channels=48"),
        ("fpn_swin_tiny", {"features": True}, "create the backbone by its own name"),
        ("dpt_swin_tiny", {"num_classes": 3, "max_depth": 10.0}, "leave max_depth=10.0"),
        ("fpn_swin_tiny", {"head": "unet"}, "'unet'.*dpt, fpn, upernet"),
        ("fpn_swin_tiny", {"backbone": "swin_tiniest"}, "swin_tiny"),
    ],
)
def test_settings_that_cannot_be_are_refused(name: str, config: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        create(name, **config)


# --- cards and graphs ----------------------------------------------------------------------------------


def test_every_head_stands_on_every_backbone() -> None:
    assert len(DENSE) == 3 * 14
    assert {name.split("_", 1)[0] for name in DENSE} == set(HEADS)
    assert {Card.from_json(zoo.entry(name).card.to_json()).unit for name in DENSE} == {"", "relative"}


def _counted(name: str) -> None:
    card = zoo.entry(name).card
    with torch.device("meta"):
        model = create(name)
    assert sum(parameter.numel() for parameter in model.parameters()) == card.parameters
    counter = FlopCounterMode(display=False)
    with counter:
        output = model(torch.zeros(1, 3, *card.preprocessing.input_size_hw, device="meta"))
    assert output.shape == ((1, 512, 512) if card.task == "depth" else (1, 150, 128, 128))
    assert counter.get_total_flops() // 2 == card.multiply_accumulates


@pytest.mark.parametrize("name", ["upernet_swin_tiny", "dpt_clip_vit_b_16"])
def test_cards_count_what_is_built(name: str) -> None:
    _counted(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", DENSE)
def test_all_cards_count_what_is_built(name: str) -> None:
    _counted(name)


@pytest.mark.parametrize(
    "name",
    [name if name == "upernet_swin_tiny" else pytest.param(name, marks=pytest.mark.slow) for name in NAMES],
)
def test_graphs_equal_modules_and_parse(name: str, tmp_path: Path) -> None:
    """In ONNX Runtime at several sizes (the plain ViT has one), and NVIDIA's parser takes them."""
    model = small(name)
    free = "clip" not in name
    graph = export_graph(model, (picture((64, 96), dynamic_size=free),), outputs=("answer",), name=name)
    _equal(model, graph)
    report = readiness.check(graph)
    assert report.ok, "\n".join(report.text())
    if importlib.util.find_spec("tensorrt_rtx_bindings"):
        onnx.save(graph, tmp_path / "model.onnx")
        sizes = ShapeRange((1, 3, 64, 64), (1, 3, 64, 96), (2, 3, 128, 192))
        profile = {"image": sizes} if free else BatchRange(1, 2, 4)
        # One of each head is built too.
        verdict = judge(tmp_path / "model.onnx", profile=profile, build=name.endswith("_stvit_r_swin_tiny"))
        assert verdict.ok, verdict.errors


def _equal(model: nn.Module, graph: Any) -> None:
    """At the traced size, at another one, and for UperNet, which needs no multiple of 32, at an odd one."""
    session = onnxruntime.InferenceSession(graph.SerializeToString())
    sizes = [(64, 96)]
    if "clip" not in graph.graph.name:
        sizes += [(128, 64)]
    if graph.graph.name.startswith("upernet_s"):
        sizes += [(45, 103)]
    for size in sizes:
        image = torch.randn(3, 3, *size)
        (actual,) = session.run(None, {"image": image.numpy()})
        expected = model(image).numpy()
        np.testing.assert_allclose(actual, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())
