"""Ranges for profilers: which ones a prediction opens, in which order, and that nothing needs the package."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from tests.engines.fake_tensorrt import World, image

import saccade
from saccade.engines.engine import EngineOptions
from saccade.engines.nvtx import span
from saccade.engines.tensorrt.runtime import TensorRtEngine


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    span.cache_clear()
    yield
    span.cache_clear()


@pytest.fixture
def heard(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the stand-in for the package is told."""
    heard: list[str] = []

    class annotate:
        """As the package has it: reusable, and nothing but a pair of calls."""

        def __init__(self, message: str, *, domain: str) -> None:
            self.words = f"{domain}: {message}"

        def __enter__(self) -> None:
            heard.append(self.words)

        def __exit__(self, *failure: object) -> None:
            heard.append("end")

    monkeypatch.setitem(sys.modules, "nvtx", SimpleNamespace(annotate=annotate))  # type: ignore[arg-type]
    return heard


def predict() -> None:
    with saccade.load("digits-stvit", engine="onnxruntime", threads=1) as classify:
        classify(np.zeros((32, 32, 3), np.uint8))


def test_a_prediction_is_three_ranges(heard: list[str]) -> None:
    predict()
    assert heard == ["saccade: preprocess", "end", "saccade: run", "end", "saccade: postprocess", "end"]


def test_tensorrt_copies_in_and_out(plan: Path, world: World, heard: list[str]) -> None:
    with TensorRtEngine(plan, EngineOptions()) as engine:
        engine.run({"image": image(1)})
    assert heard == ["saccade: copy", "end", "saccade: copy", "end"]


def test_without_the_package_there_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nvtx", None)  # type: ignore[arg-type]
    predict()
    with span("run") as entered:
        assert entered is None


def test_the_package_takes_what_it_is_given() -> None:
    pytest.importorskip("nvtx", reason="the package nvtx is not installed")

    @contextmanager
    def nested() -> Iterator[None]:
        with span("run"), span("run"), span("copy"):
            yield

    with nested():
        assert type(span("run")).__module__.startswith("nvtx")
