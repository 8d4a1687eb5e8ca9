"""What the tests of acceptance share."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.sdk.acceptance.bundles import write_two_graphs

from saccade.acceptance import baselines


@pytest.fixture
def quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SACCADE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(baselines, "_SECONDS", 0.0)
    monkeypatch.setattr(baselines, "_LEAST", 1)
    monkeypatch.setattr(baselines, "_WARM_UP", 2)  # the second run is recorded, the third replayed


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_two_graphs(tmp_path_factory.mktemp("bundle") / "two").path


@pytest.fixture
def labelled(tmp_path: Path) -> Path:
    """Eight pictures in two folders of classes."""
    rng = np.random.default_rng(0)
    for name in ("ant", "bee"):
        (tmp_path / "val" / name).mkdir(parents=True)
        for index in range(4):
            pixels = rng.integers(0, 256, (4, 4, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / "val" / name / f"{index}.png")
    return tmp_path / "val"
