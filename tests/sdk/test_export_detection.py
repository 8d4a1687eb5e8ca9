"""Detectors from checkpoint to predictor: exported, verified row by row, loaded, and refused where wrong."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from tests import tiny

import saccade
from saccade import CheckpointError, ExportError, UsageError, cli
from saccade.bundle import Bundle
from saccade.engines.conformance import read_sample
from saccade.export import export_bundle
from saccade.models import create
from saccade.verification import verify
from saccade.video import write_video

NAME = "mask_rcnn_swin_tiny"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("export")
    (folder / "names.txt").write_text("ant\nbee\ncat\n")
    out = folder / "small"
    return export_bundle(
        NAME,
        None,
        out,
        random=True,
        config=tiny.DETECTOR,
        labels=folder / "names.txt",
        input_size_hw=(128, 192),
    )


@pytest.mark.slow
def test_the_graph_takes_any_size_and_number_of_pictures(bundle: Bundle) -> None:
    graph = bundle.graphs["model"]
    assert {spec.name: spec.shape for spec in graph.inputs} == {
        "image": ("batch", 3, "height", "width"),
        "size_hw": ("batch", 2),
    }
    assert {spec.name: (spec.dtype, spec.shape) for spec in graph.outputs} == {
        "boxes": ("float32", ("batch", 20, 4)),
        "scores": ("float32", ("batch", 20)),
        "labels": ("int64", ("batch", 20)),
        "count": ("int64", ("batch",)),
        "masks": ("float32", ("batch", 20, 28, 28)),
    }
    onnx.checker.check_model(graph.files["source"], full_check=True)


@pytest.mark.slow
def test_every_engine_was_compared_and_agreed(bundle: Bundle) -> None:
    rows = json.loads((bundle.path / "verify.json").read_text())["comparisons"]
    assert {(row["engine"], row["output"], row["batch"]) for row in rows} == {
        (engine, output, batch)
        for engine in ("onnxruntime", "openvino")
        for output in ("boxes", "scores", "labels", "count", "masks")
        for batch in (1, 2)
    }
    assert all(row["agrees"] for row in rows)
    boxes = [row for row in rows if row["output"] == "boxes"]
    assert all(row["tolerance"] < 0.1 for row in boxes), boxes


@pytest.mark.slow
def test_the_sample_has_objects_and_repeats(bundle: Bundle) -> None:
    path = bundle.graphs["model"].sample
    assert path is not None
    assert read_sample(path).outputs["count"][0] >= 3
    assert path.stat().st_size < 2**19
    assert verify(bundle.path).agrees


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
@pytest.mark.slow
def test_it_predicts_and_proves_itself(bundle: Bundle, engine: str) -> None:
    pictures = [np.random.default_rng(n).integers(0, 256, (90, 120 + n, 3), dtype=np.uint8) for n in range(3)]
    with saccade.load(bundle.path, engine=engine, prove=True) as detect:
        assert isinstance(detect, saccade.InstanceSegmenter)
        assert detect.labels == ("ant", "bee", "cat")
        found = detect(pictures)
    for image, each in zip(pictures, found, strict=True):
        assert each.untrained
        assert each.size_hw == image.shape[:2]
        assert (each.scores > 0.05).all()
        assert each.masks is not None
        assert each.masks.shape == (len(each), *image.shape[:2])


@pytest.mark.parametrize("size_hw", [(1, 1), (5, 9), (20_000, 3), (3, 20_000), (1200, 900)])
@pytest.mark.slow
def test_pictures_of_any_shape_get_an_answer(bundle: Bundle, size_hw: tuple[int, int]) -> None:
    """Smaller than a window, and so long that one side is a single pixel."""
    with saccade.load(bundle.path) as detect:
        found = detect(np.full((*size_hw, 3), 90, np.uint8))
    assert np.isfinite(found.boxes_xyxy).all()
    assert (found.boxes_xyxy >= 0).all()
    assert (found.boxes_xyxy <= np.array(size_hw[::-1] * 2)).all()


@pytest.mark.slow
def test_an_engine_that_differs_does_not_prove_itself(bundle: Bundle) -> None:
    path = bundle.graphs["model"].sample
    assert path is not None
    sample = read_sample(path)
    with saccade.load(bundle.path) as detect:
        right = detect.engine.run(sample.inputs)
    assert all(row.agrees for row in sample.differences(right))
    reordered = {key: values[:, ::-1] if key != "count" else values for key, values in right.items()}
    assert all(row.agrees for row in sample.differences(reordered))
    sure = int(sample.outputs["count"][0])
    for name, change in {"boxes": 0.1, "scores": 0.01, "masks": 0.1}.items():
        row = int(np.abs(right["boxes"][0] - sample.outputs["boxes"][0, sure - 1]).max(axis=1).argmin())
        wrong = {key: values.copy() for key, values in right.items()}
        wrong[name][0, row] += change
        differing = [each.output for each in sample.differences(wrong) if not each.agrees]
        assert differing == [name]


@pytest.mark.slow
def test_the_command_line_takes_pictures_folders_videos_and_tiles(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (3, 96, 128, 3), dtype=np.uint8)
    (tmp_path / "folder").mkdir()
    Image.fromarray(frames[0]).save(tmp_path / "one.png")
    Image.fromarray(frames[1]).save(tmp_path / "folder" / "two.png")
    write_video(tmp_path / "three.mp4", frames)
    images = [tmp_path / name for name in ("one.png", "folder", "three.mp4")]
    options = ["--json", "--tile", "96,32", "--out", tmp_path / "drawn"]
    monkeypatch.setattr(sys, "argv", ["saccade", "predict", *map(str, [bundle.path, *images, *options])])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert not ended.value.code
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line.get("picture", line.get("frame")) for line in lines] == [
        str(tmp_path / "one.png"),
        str(tmp_path / "folder" / "two.png"),
        0,
        1,
        2,
    ]
    assert all(line["untrained"] and line["size_hw"] == [96, 128] for line in lines)
    assert any(line["detections"] for line in lines)
    assert sorted(path.name for path in (tmp_path / "drawn").rglob("*.*")) == [
        "one.png.png",
        "three.mp4",
        "two.png.png",
    ]


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {key: value.contiguous() for key, value in create(NAME, **tiny.DETECTOR).state_dict().items()}


def export(tmp_path: Path, state: dict[str, torch.Tensor], name: str = NAME, **options: Any) -> Bundle:
    save_file(state, tmp_path / "weights.safetensors")
    config = {"config": {"backbone": tiny.DETECTOR["backbone"]}} | options
    return export_bundle(name, tmp_path / "weights.safetensors", tmp_path / "out", **config)


def test_a_checkpoint_of_another_detector_is_refused(tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    with pytest.raises(CheckpointError, match="create one of mask_rcnn"):
        export(tmp_path, state, name="cascade_mask_rcnn_swin_tiny")
    assert not (tmp_path / "out").exists()


def test_a_classifiers_checkpoint_is_refused(tmp_path: Path) -> None:
    classifier = create("swin_tiny", depths=[1, 1, 1, 1], embed_dim=16, num_heads=[1, 2, 2, 2])
    with pytest.raises(CheckpointError, match="no weights of Mask R-CNN"):
        export(tmp_path, dict(classifier.state_dict()))


def test_a_missing_mask_head_is_refused_where_masks_are_asked_for(
    tmp_path: Path, state: dict[str, torch.Tensor]
) -> None:
    boxes = {key: value for key, value in state.items() if "mask_head" not in key}
    with pytest.raises(CheckpointError, match="mask_head"):
        export(tmp_path, boxes, config={"backbone": tiny.DETECTOR["backbone"], "masks": True})


@pytest.mark.slow
def test_weights_that_find_nothing_are_refused(tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    """A comparison of nothing with nothing would prove nothing."""
    blind = {key: torch.zeros_like(value) if "fc_cls" in key else value for key, value in state.items()}
    blind["roi_head.bbox_head.fc_cls.bias"] = torch.tensor([0.0, 0.0, 0.0, 20.0])  # the last is background
    with pytest.raises(ExportError, match="finds hardly any objects in noise"):
        export(tmp_path, blind)
    assert not (tmp_path / "out").exists()


def test_as_many_labels_as_classes(tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    (tmp_path / "names.txt").write_text("ant\nbee\n")
    with pytest.raises(UsageError, match="2 labels, but the model has 3 classes"):
        export(tmp_path, state, labels=tmp_path / "names.txt")
