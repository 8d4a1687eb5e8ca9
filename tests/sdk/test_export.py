"""`saccade.export.export_bundle`: what a user's own weights become, and what is refused."""

from __future__ import annotations

import json
import re
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import saccade
from saccade.errors import CheckpointError, UsageError
from saccade.export import export_bundle
from saccade.models import create

CONFIG: dict[str, Any] = {"embed_dim": 16, "depths": [2, 2, 6, 2], "num_heads": [1, 2, 4, 8]}
DIMS = {"EMB": 64, "head": [2, 4], "QK": [16, 8], "V": [24, 16], "MLP": [96, 64]}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "stvit.safetensors"
    torch.manual_seed(0)
    save_file(create("stvit_r_swin_tiny", num_classes=3, **CONFIG).state_dict(), path)
    return path


@pytest.fixture(scope="module")
def bundle(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundles")
    labels = folder / "labels.txt"
    labels.write_text("cat\ndog\nbird\n")
    out = folder / "mine"
    steps: list[str] = []
    export_bundle(
        "stvit_r_swin_tiny", weights, out, labels=labels, config=CONFIG, crop=0.9, progress=steps.append
    )
    assert len(steps) >= 4
    return out


def test_bundle_predicts_what_the_module_does(bundle: Path, weights: Path) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8)
    model = create("stvit_r_swin_tiny", checkpoint=weights, **CONFIG)
    with saccade.load(bundle, prove=True) as classify, torch.no_grad():
        result = classify(picture)
        expected = model(torch.from_numpy(classify.preprocess([picture])[0].image)).softmax(1)[0]
    by_label = dict(zip(result.labels, result.scores, strict=True))
    for label, probability in zip(("cat", "dog", "bird"), expected.tolist(), strict=True):
        assert by_label[label] == pytest.approx(probability, abs=1e-5)


def test_manifest(bundle: Path) -> None:
    manifest = json.loads((bundle / "bundle.json").read_text())
    card = manifest["card"]
    assert card["labels"] == ["cat", "dog", "bird"]
    assert card["preprocessing"]["resize_hw"] == [248, 248]  # int(224 / 0.9)
    # The paper's accuracy and the licence of its weights are not this model's.
    assert (card["top1"], card["licence"], card["weights"], card["remark"]) == (None, "", "", "")
    assert manifest["untrained"] is False
    assert manifest["provenance"]["config"] == CONFIG
    report = json.loads((bundle / "verify.json").read_text())
    assert {row["engine"] for row in report["comparisons"]} == {"onnxruntime", "openvino"}
    assert {row["batch"] for row in report["comparisons"]} == {1, 2, 5}
    assert all(row["agrees"] and row["difference"] <= row["tolerance"] for row in report["comparisons"])


def test_graph_alone_knows_its_card(bundle: Path) -> None:
    with saccade.load(bundle / "graphs" / "model.onnx") as classify:
        assert set(classify(np.zeros((20, 20, 3), np.uint8)).labels) == {"cat", "dog", "bird"}


def test_random_bundle_says_untrained(tmp_path: Path) -> None:
    exported = export_bundle("nvit", None, tmp_path / "n", random=True, num_classes=4, config={"dims": DIMS})
    assert exported.untrained
    assert exported.card.labels == ("0", "1", "2", "3")


def test_clip_tower_classifies_through_a_matrix(tmp_path: Path) -> None:
    sizes = {"layers": [1, 1, 1, 1], "embed_dims": [16, 32, 64, 128]}
    torch.manual_seed(0)
    tower = create("mobileclip_s0", **sizes)
    save_file(tower.state_dict(), tmp_path / "tower.safetensors")
    (tmp_path / "labels.json").write_text('["a dog", "a cat", "a bird"]')
    matrix = np.random.default_rng(0).standard_normal((512, 3)).astype(np.float32)
    matrix /= np.linalg.norm(matrix, axis=0)
    np.save(tmp_path / "matrix.npy", matrix)
    export_bundle(
        "mobileclip_s0",
        tmp_path / "tower.safetensors",
        tmp_path / "out",
        config=sizes,
        labels=tmp_path / "labels.json",
        class_matrix=tmp_path / "matrix.npy",
    )
    picture = np.random.default_rng(1).integers(0, 256, (256, 256, 3), dtype=np.uint8)
    with saccade.load(tmp_path / "out") as classify, torch.no_grad():
        result = classify(picture)
        embedding = tower(torch.from_numpy(classify.preprocess([picture])[0].image))[0]
    similarity = 100 * (embedding / embedding.norm()) @ torch.from_numpy(matrix)
    assert result.top(1).labels[0] == ("a dog", "a cat", "a bird")[int(similarity.argmax())]
    np.testing.assert_allclose(
        sorted(result.scores), sorted(similarity.softmax(0).tolist()), rtol=1e-3, atol=1e-5
    )


def test_published_figures_are_not_those_of_a_head_of_ones_own(tmp_path: Path) -> None:
    """Nothing but the checkpoint says that there are three classes."""
    torch.manual_seed(0)
    model = create("deit_tiny", num_classes=3)
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    card = export_bundle("deit_tiny", tmp_path / "w.safetensors", tmp_path / "out").card
    assert card.labels == ("0", "1", "2")
    assert (card.top1, card.multiply_accumulates) == (None, None)
    assert card.parameters == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ("name", "in_config"), [("vit_base_patch16_clip_224", False), ("fastvit_mci0", True)]
)
def test_an_encoder_with_a_head_classifies(name: str, in_config: bool, tmp_path: Path) -> None:
    narrow: dict[str, Any] = {"embed_dim": 32, "depth": 2, "num_heads": 2, "img_size": 64}
    config = narrow if name.startswith("vit") else {"layers": [1] * 4, "embed_dims": [16, 32, 64, 128]}
    (tmp_path / "labels.txt").write_text("cat\ndog\n")
    exported = export_bundle(
        name,
        None,
        tmp_path / "out",
        random=True,
        labels=None if in_config else tmp_path / "labels.txt",
        num_classes=None if in_config else 2,
        config={**config, "num_classes": 2} if in_config else config,
    )
    assert exported.task == "classification"
    assert exported.graphs["model"].outputs[0].name == "logits"
    assert exported.card.labels == (("0", "1") if in_config else ("cat", "dog"))
    side = 64 if name.startswith("vit") else 256
    assert exported.graphs["model"].inputs[0].shape == ("batch", 3, side, side)


@pytest.mark.parametrize("content", [b"", b"not numbers", b"PK\x03\x04"])
def test_a_class_matrix_that_is_none(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "matrix.npy").write_bytes(content)
    (tmp_path / "labels.txt").write_text("cat\ndog\n")
    with pytest.raises(UsageError, match=r"is not a \.npy file"):
        export_bundle(
            "mobileclip_s0",
            None,
            tmp_path / "out",
            random=True,
            config={"layers": [1] * 4, "embed_dims": [16, 32, 64, 128]},
            labels=tmp_path / "labels.txt",
            class_matrix=tmp_path / "matrix.npy",
        )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weights": None}, "either --weights FILE or --random"),
        ({"random": True}, "either --weights FILE or --random"),
        ({"class_matrix": Path("m.npy")}, "for CLIP towers"),
        ({"interpolation": "lanczos"}, "bilinear, bicubic"),
        ({"std_rgb": (0.0, 1.0, 1.0)}, "must be positive"),
        ({"config": {**CONFIG, "widht": 3}}, "takes no widht"),
        ({"config": {**CONFIG, "depths": [2, 2, 7, 2]}}, "multiple of 6"),
        ({"input_size_hw": (200, 200)}, "multiple of 32"),
        ({"input_size_hw": (224, 288)}, "square pictures"),
        ({"config": {**CONFIG, "img_size": "224x224"}}, "write 224 or [224, 288]"),
    ],
)
def test_refused_arguments(options: dict[str, Any], message: str, weights: Path, tmp_path: Path) -> None:
    arguments = {"weights": weights, "config": CONFIG, **options}
    with pytest.raises(UsageError, match=re.escape(message)):
        export_bundle("stvit_r_swin_tiny", arguments.pop("weights"), tmp_path / "out", **arguments)
    assert not (tmp_path / "out").exists()


def test_labels_of_another_length(weights: Path, tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_text("cat\ndog\n")
    with pytest.raises(UsageError, match="2 labels, but the model has 3 classes"):
        export_bundle(
            "stvit_r_swin_tiny", weights, tmp_path / "out", labels=tmp_path / "labels.txt", config=CONFIG
        )


def test_weights_of_another_model(weights: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="does not fit"):
        export_bundle("deepmad_r18", weights, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_missing_weights_are_told_before_a_model_is_made(tmp_path: Path) -> None:
    told: list[str] = []
    with pytest.raises(CheckpointError, match=r"small\.pth: no such file"):
        export_bundle("swin_small", tmp_path / "small.pth", tmp_path / "out", progress=told.append)
    assert told == []


WITHOUT_TORCH = """
import sys
sys.modules["torch"] = sys.modules["timm"] = None
from saccade.errors import MissingDependency
from saccade.export import export_bundle
try:
    export_bundle(sys.argv[1], None, sys.argv[2], random=True)
except MissingDependency as error:
    print(error)
"""


@pytest.mark.parametrize("name", ["swin_tiny", "mobileclip_s2"])
def test_without_torch_the_error_has_the_install_line(name: str, tmp_path: Path) -> None:
    command = [sys.executable, "-c", WITHOUT_TORCH, name, tmp_path / "out"]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "pip install 'saccade[export,cpu]'" in said


def test_full_disk_leaves_nothing(weights: Path, tmp_path: Path) -> None:
    """The kernel refuses to let any file grow past 200 KB: the weights do not fit."""
    program = (
        "import resource, signal, sys, pathlib\n"
        "from saccade.export import export_bundle\n"
        "from saccade.errors import SaccadeError\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))\n"
        "try:\n"
        f"    export_bundle('stvit_r_swin_tiny', pathlib.Path({str(weights)!r}),"
        f" pathlib.Path({str(tmp_path / 'out')!r}), config={CONFIG!r})\n"
        "except SaccadeError as error:\n"
        "    print(type(error).__name__, error); sys.exit(3)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 3, done.stderr
    assert "large" in done.stdout or "space" in done.stdout
    assert list(tmp_path.iterdir()) == []
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 200_000
