"""Bundles of dense models: what they say of themselves, and what predictors make of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tests.dense import SWIN, scrambled

import saccade
from saccade.errors import UsageError
from saccade.export import Options, export_bundle
from saccade.export.dense import plan
from saccade.models import create, zoo
from saccade.models.labels import ade20k_150

CONFIG: dict[str, Any] = {"channels": 64, "backbone_config": SWIN}
PICTURE = np.random.default_rng(0).integers(0, 256, (70, 101, 3), dtype=np.uint8)


def planned(name: str, **options: Any) -> Any:
    """The one graph that is planned for a random `name`."""
    (part,) = plan(Options(name, random=True, **options), zoo.entry(name)).parts.values()
    return part


@pytest.mark.parametrize(
    ("name", "config", "output", "shape"),
    [
        ("fpn_swin_tiny", {}, "logits", ("batch", 3, "height", "width")),
        ("dpt_swin_tiny", {}, "depth", ("batch", 3, "height", "width")),
        ("dpt_swin_tiny", {"num_classes": 4}, "logits", ("batch", 3, "height", "width")),
    ],
)
def test_plans_follow_what_the_model_gives(
    name: str, config: dict[str, Any], output: str, shape: tuple[Any, ...]
) -> None:
    part = planned(name, config={**CONFIG, **config}, input_size_hw=(64, 96))
    assert part.outputs == (output,)
    assert part.inputs[0].shape == shape
    assert part.inputs[0].sizes == {"height": 64, "width": 96}


def test_labels_are_for_classes(tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_text("a\nb")
    with pytest.raises(UsageError, match="gives depths"):
        planned("dpt_swin_tiny", config=CONFIG, labels=tmp_path / "labels.txt", input_size_hw=(64, 64))


@pytest.mark.slow
def test_a_segmenters_bundle_answers_as_the_module(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = scrambled(create("upernet_swin_tiny", **CONFIG))
    save_file(module.state_dict(), tmp_path / "weights.safetensors")
    bundle = export_bundle(
        "upernet_swin_tiny",
        tmp_path / "weights.safetensors",
        tmp_path / "bundle",
        config=CONFIG,
        input_size_hw=(96, 192),
    )
    assert bundle.card.labels == ade20k_150()
    assert bundle.card.task == "semantic_segmentation"
    maps = []
    for engine in ("onnxruntime", "openvino"):
        with saccade.load(tmp_path / "bundle", engine=engine, prove=True) as segment:
            assert isinstance(segment, saccade.SemanticSegmenter)
            (batch,) = segment.preprocess([PICTURE])
            with torch.inference_mode():
                expected = module(torch.from_numpy(batch.image)).numpy()
            np.testing.assert_allclose(segment.run(batch)["logits"], expected, rtol=1e-3, atol=1e-4)
            maps.append(segment(PICTURE))
    assert maps[0].labels.shape == PICTURE.shape[:2]
    assert (maps[0].labels == maps[1].labels).mean() > 0.999


@pytest.mark.slow
@pytest.mark.parametrize(("config", "unit"), [({}, "relative"), ({"max_depth": 10.0}, "metre")])
def test_a_depth_bundle_names_its_unit(tmp_path: Path, config: dict[str, Any], unit: str) -> None:
    export_bundle(
        "dpt_swin_tiny",
        None,
        tmp_path / "bundle",
        random=True,
        config=CONFIG | config,
        input_size_hw=(64, 96),
    )
    with saccade.load(tmp_path / "bundle", engine="onnxruntime", prove=True) as measure:
        result = measure(PICTURE)
    assert isinstance(result, saccade.DepthMap)
    assert result.untrained
    assert result.unit == unit
    assert result.depth.shape == PICTURE.shape[:2]
    assert result.depth.min() > 0
