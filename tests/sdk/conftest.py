"""Bundles and pictures that the tests of the run time share."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tests import tiny

from saccade.bundle import Bundle


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle that no test may change."""
    return tiny.write_bundle(tmp_path_factory.mktemp("bundles") / "tiny")


@pytest.fixture(autouse=True)
def empty_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No test sees, or fills, the bundles of whoever runs it."""
    home = tmp_path / "saccade-home"
    monkeypatch.setenv("SACCADE_HOME", str(home))
    return home


@pytest.fixture
def noise() -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """A picture (48, 64, 3) in which every pixel matters."""
    return np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
