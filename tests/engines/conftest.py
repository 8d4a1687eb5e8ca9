"""Plans of the stand-in for TensorRT, and a machine to run them on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.engines.fake_tensorrt import IMAGE, IN_A_CHILD, VERSION, World

from saccade.engines.engine import TensorSpec
from saccade.engines.tensorrt.builder import Source, build_plan
from saccade.engines.tensorrt.options import BatchRange, BuildOptions


@pytest.fixture(scope="module")
def plan_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Where plans that are built here are noted as trusted."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SACCADE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def make(plan_cache: None, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Build a plan with the stand-in, in a child as always: the folder of the plan."""
    library = tmp_path_factory.mktemp("library")
    (library / "tensorrt.py").write_text(IN_A_CHILD.format(version=VERSION))

    def _make(**options: Any) -> Path:
        bundle = tmp_path_factory.mktemp("bundle")
        (bundle / "graphs").mkdir()
        (bundle / "graphs" / "model.onnx").write_text("FLOAT")
        digest = "acb3b2e1f0b4f1d9"  # of no file: only a refit compares it
        source = Source(
            "tiny",
            "model",
            bundle / "graphs" / "model.onnx",
            {"graphs/model.onnx": digest},
            (TensorSpec("image", "float32", ("batch", *IMAGE)),),
            (TensorSpec("logits", "float32", ("batch", 10)),),
        )
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("PYTHONPATH", str(library))
            chosen = BuildOptions(**{"batch": BatchRange(1, 2, 4), **options})
            folder, _ = build_plan(source, chosen, bundle / "engines")
        return folder

    return _make


@pytest.fixture(scope="module")
def plan(make: Callable[..., Path]) -> Path:
    return make()


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    return World(version=VERSION).enter(monkeypatch)
