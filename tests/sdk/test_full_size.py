"""Full-size bundles: verified at export, proven at load, accepted by NVIDIA's parser and builder."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import saccade
from saccade import bundle as bundles
from saccade.benchmarks import tensorrt_builds
from saccade.benchmarks.tensorrt_zoo import ALL_TARGETS, SIZES
from saccade.engines import readiness
from saccade.engines.engine import open_engine
from saccade.engines.tensorrt.parser import judge
from saccade.export import export_bundle

RECORD = Path(__file__).parents[2] / "benchmarks" / "results" / tensorrt_builds.RECORD
MODELS: dict[str, dict[str, Any]] = {
    "stvit_r_swin_small": {},
    "nvit": SIZES["nvit"],
    "tiny_vit_21m_224": {},
    "deepmad_r50": {},
    "deepmad_29m_224": {},
    "mobileclip_s2": {},
}


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx_bindings") is None,
    reason="NVIDIA's parser is not installed: pip install 'saccade[tensorrt-rtx]'",
)
@pytest.mark.parametrize("name", MODELS)
def test_full_size_bundle(name: str, tmp_path: Path) -> None:
    """Export compares batches 1, 2 and 5 with the module; layers may not rise above the record."""
    bundle = export_bundle(name, None, tmp_path / "bundle", random=True, config=MODELS[name])
    graph = "image" if name == "mobileclip_s2" else "model"  # the record has both towers
    (recorded,) = (
        row
        for row in json.loads(RECORD.read_text())["rows"]
        if (row["model"], row["graph"], row["precision"], row["target"])
        == (name, graph, "fp32", ALL_TARGETS["fp32"])
    )
    files = bundle.graphs["model"].files
    for variant in ("source", "onnxruntime"):
        if variant not in files:
            continue
        report = readiness.check(files[variant])
        assert report.ok, "\n".join(report.text())
        verdict = judge(files[variant])
        assert verdict.ok, verdict.errors
        by_parser = recorded["source_layers"] if variant == "source" else None
        assert verdict.layers <= (by_parser or recorded["layers"]), variant
    if bundle.task == "classification":
        with saccade.load(bundle.path, prove=True) as classify:
            answer = classify(np.zeros((480, 640, 3), np.uint8))
        assert len(answer) == 1000
    else:
        with open_engine(bundles.read(bundle.path).graphs["model"].files) as engine:
            assert engine.run({"image": np.zeros((2, 3, 256, 256), np.float32)})["embeddings"].shape == (
                2,
                512,
            )
