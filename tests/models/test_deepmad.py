"""DeepMAD held to the official numbers, through torch and ONNX Runtime; structures read as data."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch
from tests import parity

from saccade.engines.export import export_graph
from saccade.engines.inputs import picture
from saccade.errors import CheckpointError, UsageError
from saccade.models import create
from saccade.models.deepmad_structure import Structure, known_structures, read_structure

FEATURES = ("feature_0", "feature_1", "feature_2", "feature_3")

# Full-size networks take seconds to export; the synthetic one has every kind of unit.
FULL_SIZE = ("deepmad_r18", "deepmad_29m_224")


def model_name(reference: str) -> str:
    return next((name for name in FULL_SIZE if reference.startswith(name)), "deepmad_r18")


def build(reference: parity.Parity, *, features: bool) -> torch.nn.Module:
    return create(
        model_name(reference.name),
        checkpoint=parity.state_dict(reference),
        features=features,
        structure=reference.config["blocks"],
    )


def exported(names: list[str]) -> list[Any]:
    return [
        pytest.param(name, marks=pytest.mark.slow) if name.startswith(FULL_SIZE) else name for name in names
    ]


@pytest.mark.parametrize("name", parity.names("deepmad", "*_logits"))
@torch.inference_mode()
def test_logits_agree_with_the_official_implementation(name: str) -> None:
    reference = parity.load("deepmad", name)
    model, image = build(reference, features=False), parity.inputs(reference)["image"]
    parity.check("logits", model(image), reference)
    parity.check("pooled", model.embed(image), reference)


@pytest.mark.parametrize("name", parity.names("deepmad", "*_features"))
@torch.inference_mode()
def test_features_agree_with_the_official_implementation(name: str) -> None:
    reference = parity.load("deepmad", name)
    model, image = build(reference, features=True), parity.inputs(reference)["image"]
    maps = model(image)
    for key, feature in zip(FEATURES, maps, strict=True):
        parity.check(key, feature, reference)
    assert model.channels == tuple(feature.shape[1] for feature in maps)
    assert model.strides == tuple(image.shape[2] // feature.shape[2] for feature in maps) == (4, 8, 16, 32)


@pytest.mark.parametrize("name", parity.names("deepmad", "*_blocks"))
@torch.inference_mode()
def test_every_block_agrees_on_its_own(name: str) -> None:
    reference = parity.load("deepmad", name)
    model = build(reference, features=True)
    for index, (key, x) in enumerate(parity.inputs(reference).items()):
        parity.check(key, model.block_list[index](x), reference)


@pytest.mark.parametrize("name", exported(parity.names("deepmad", "*_logits")))
@torch.inference_mode()
def test_exported_logits_agree_with_the_official_implementation(name: str) -> None:
    reference = parity.load("deepmad", name)
    model, image = build(reference, features=False), parity.inputs(reference)["image"]
    graph = export_graph(model, [picture((image.shape[2], image.shape[3]))])
    session = onnxruntime.InferenceSession(graph.SerializeToString())
    parity.check("logits", session.run(None, {"image": image.numpy()})[0], reference)
    single = session.run(None, {"image": image[1:].numpy()})[0]
    torch.testing.assert_close(torch.from_numpy(single), model(image[1:]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", exported(parity.names("deepmad", "*_features")))
@torch.inference_mode()
def test_features_exported_at_free_sizes_agree(name: str) -> None:
    """Traced at one size, run at the reference's and at one more, with another batch."""
    reference = parity.load("deepmad", name)
    model, image = build(reference, features=True), parity.inputs(reference)["image"]
    graph = export_graph(model, [picture((128, 96), dynamic_size=True)], outputs=FEATURES)
    session = onnxruntime.InferenceSession(graph.SerializeToString())
    for key, feature in zip(FEATURES, session.run(None, {"image": image.numpy()}), strict=True):
        parity.check(key, feature, reference)
    other = torch.from_numpy(parity.image((3, 3, 32, 160), seed=1))
    for feature, expected in zip(session.run(None, {"image": other.numpy()}), model(other), strict=True):
        scale = float(expected.abs().max())
        torch.testing.assert_close(torch.from_numpy(feature), expected, rtol=1e-4, atol=1e-5 * scale)


# Facts of the published networks: exact parameters for 1000 classes, entries of the state dict, channels
# of the four maps. Counted on upstream's own modules.
PUBLISHED = {
    "deepmad_r18": (11_826_088, 722, (96, 384, 1024, 672)),
    "deepmad_r34": (21_690_160, 920, (128, 512, 1024, 616)),
    "deepmad_r50": (25_441_144, 974, (128, 512, 1024, 1232)),
    "deepmad_29m_224": (28_669_956, 704, (85, 134, 201, 1792)),
    "deepmad_29m_288": (28_703_630, 704, (61, 96, 217, 1792)),
    "deepmad_50m": (49_408_964, 824, (112, 168, 252, 2048)),
    "deepmad_89m": (88_325_780, 944, (136, 204, 326, 2560)),
}


def test_all_published_structures_are_listed() -> None:
    assert set(known_structures()) == set(PUBLISHED)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_networks_have_the_published_sizes(name: str) -> None:
    parameters, entries, channels = PUBLISHED[name]
    with torch.device("meta"):
        model, backbone = create(name), create(name, features=True)
    assert sum(tensor.numel() for tensor in model.parameters()) == parameters
    assert len(model.state_dict()) == entries
    assert backbone.channels == channels
    assert backbone.strides == (4, 8, 16, 32)


@pytest.mark.parametrize("name", FULL_SIZE)
def test_published_structures_are_those_of_the_references(name: str) -> None:
    reference = parity.load("deepmad", f"{name}_features")
    assert read_structure(name) == read_structure(reference.config["blocks"])
    assert list(read_structure(name).stage_ends()) == reference.config["stage_last_block"]


# --- reading structures --------------------------------------------------------------------------------

OURS: list[dict[str, Any]] = [
    {"type": "conv", "in": 3, "out": 16, "k": 3, "stride": 2},
    {"type": "SuperResK1KXK1", "in": 16, "out": 24, "mid": 8, "k": 5, "stride": 2, "layers": 2},
    {"type": "SuperResK1DWSEK1", "in": 24, "out": 24, "mid": 48, "k": 3, "stride": 2, "layers": 1},
    {"type": "SuperResK1DWK1", "in": 24, "out": 32, "mid": 48, "k": 3, "stride": 2, "layers": 1},
    {"type": "conv", "in": 32, "out": 40, "k": 1, "stride": 1},
]
UPSTREAM = """{'best_structures': [[
    {'class': 'ConvKXBNRELU', 'in': 3, 'out': 16, 'k': 3, 's': 2},
    {'class': 'SuperResK1KXK1', 'in': 16, 'out': 24, 'btn': 8, 'k': 5, 's': 2, 'L': 2,
     'inner_class': 'ResK1KXK1', 'force_resproj_skip': 4},
    {'class': 'SuperResK1DWSEK1', 'in': 24, 'out': 24, 'btn': 48, 'k': 3, 's': 2, 'L': 1, 'p': 1, 'g': 1},
    {'class': 'SuperResK1DWK1', 'in': 24, 'out': 32, 'btn': 48, 'k': 3, 's': 2, 'L': 1},
    {'class': 'ConvKXBNRELU', 'in': 32, 'out': 40, 'k': 1, 'act': 'relu'},
]], 'space_arch': 'CnnNet'}   """


def structures(folder: Path) -> list[Structure]:
    """The same structure in every spelling."""
    text, data = folder / "structure.txt", folder / "structure.json"
    text.write_text(UPSTREAM)
    data.write_text(json.dumps({"blocks": OURS}))
    return [read_structure(source) for source in (OURS, text, str(data), {"best_structures": [OURS]})]


def test_every_spelling_reads_as_the_same_structure(tmp_path: Path) -> None:
    first, *others = structures(tmp_path)
    assert all(other == first for other in others)


@pytest.mark.parametrize(
    ("activation", "function"),
    [
        ("relu", torch.relu),
        ("relu6", torch.nn.functional.relu6),
        ("sigmoid", torch.sigmoid),
        ("swish", torch.nn.functional.silu),
        ("learkyrelu", torch.nn.functional.leaky_relu),
    ],
)
@torch.inference_mode()
def test_conv_blocks_take_an_activation(activation: str, function: Callable[[torch.Tensor], Any]) -> None:
    conv = {"in": 3, "out": 8, "k": 3}
    plain = create("deepmad_r18", structure=[{"class": "ConvKXBN", **conv}])
    active = create(
        "deepmad_r18",
        structure=[{"class": "ConvKXBNRELU", "act": activation, **conv}],
        checkpoint=plain.state_dict(),
    )
    x = 5 * torch.from_numpy(parity.image((1, 3, 8, 8)))
    torch.testing.assert_close(active.block_list[0](x), function(plain.block_list[0](x)))


def changed(index: int, **keys: Any) -> list[dict[str, Any]]:
    blocks = [dict(block) for block in OURS]
    blocks[index] |= keys
    return blocks


@pytest.mark.parametrize(
    ("structure", "message"),
    [
        ("deepmad_r19", "deepmad_r18"),
        ([], "list of blocks"),
        ({"blocks_": OURS}, "best_structures"),
        ({"best_structures": [OURS, OURS]}, "structure_index"),
        (["conv"], "block 0 is a str"),
        (changed(1, type="SuperResK2"), "known classes are"),
        (changed(1, type=["conv"]), "known classes are"),
        (changed(1, stride=3), "stride is 3"),
        (changed(1, k=4), "kernel is 4"),
        (changed(1, mid=None), "`btn` must be a whole number"),
        (changed(1, layers=0), "`L` must be a whole number of at least 1"),
        (changed(1, out=True), "`out` must be a whole number"),
        (changed(1, act="relu"), "`act` belongs to conv blocks"),
        (changed(1, g=3), "does not divide"),
        (changed(1, p=0), "a residual unit needs 2"),
        (changed(1, nbitsA=[8]), "quantised"),
        (changed(1, inner_class="ResK1DWK1"), "implies 'ResK1KXK1'"),
        (changed(1, depth=3), "unknown keys: depth"),
        (changed(0, act="gelu"), "known are relu"),
        (changed(0, **{"in": 4}), "a picture has 3"),
        (changed(2, **{"in": 40}), "block 2 takes 40 channels, the one before gives 24"),
    ],
)
def test_malformed_structures_are_refused_by_name(structure: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        create("deepmad_r18", structure=structure)


@pytest.mark.parametrize("text", ["__import__('os').getcwd()", "[", "[" * 5000, "{'best_structures': [f()]}"])
def test_structure_files_are_never_evaluated(text: str, tmp_path: Path) -> None:
    path = tmp_path / "structure.txt"
    path.write_text(text)
    with pytest.raises(UsageError, match="no structure file"):
        create("deepmad_r18", structure=path)


# --- sizes, stages, weights ----------------------------------------------------------------------------


@pytest.mark.parametrize(("height", "width"), [(72, 72), (225, 225), (224, 216)])
def test_sizes_that_cannot_be_halved_are_refused(height: int, width: int) -> None:
    model = create("deepmad_r18", num_classes=2)
    with pytest.raises(UsageError, match="multiples of 32"):
        model(torch.zeros(1, 3, height, width))
    with pytest.raises(UsageError, match="multiples of 32"):
        create("deepmad_r18", img_size=(height, width))


@torch.inference_mode()
def test_networks_without_pooled_shortcuts_take_any_size() -> None:
    maps = create("deepmad_29m_224", features=True)(torch.zeros(1, 3, 75, 65))
    assert [tuple(feature.shape[2:]) for feature in maps] == [(19, 17), (10, 9), (5, 5), (3, 3)]


def test_out_indices_choose_the_stages() -> None:
    backbone = create("deepmad_r18", features=True, out_indices=[0, 1, 2, 3])
    assert (backbone.channels, backbone.strides) == ((32, 96, 384, 1024), (2, 4, 8, 16))
    for wrong in ([1, 2, 3], [1, 2, 3, 5], [4, 3, 2, 1]):
        with pytest.raises(UsageError, match=r"0\.\.4"):
            create("deepmad_r18", features=True, out_indices=wrong)


def test_weights_must_fit() -> None:
    weights = create("deepmad_r18", structure=OURS, num_classes=7).state_dict()
    assert create("deepmad_r18", structure=OURS, checkpoint=weights).fc_linear.out_features == 7
    with pytest.raises(CheckpointError, match=r"fc_linear.weight: file \(7, 40\) model \(8, 40\)"):
        create("deepmad_r18", structure=OURS, checkpoint=weights, num_classes=8)
    with pytest.raises(CheckpointError, match="missing"):
        create("deepmad_r18", checkpoint=weights)
    weights.pop("block_list.2.block_list.0.se2.conv1.conv1.weight")
    with pytest.raises(CheckpointError, match=r"1 missing: block_list\.2\.block_list\.0\.se2"):
        create("deepmad_r18", structure=OURS, checkpoint=weights, features=True)
