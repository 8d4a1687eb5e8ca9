"""A bundle of two small towers with random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tests.clip_pair import CONFIG

from saccade.export import export_bundle
from saccade.models import create


@pytest.fixture(scope="session")
def pair() -> Any:
    """The torch module."""
    torch.manual_seed(0)
    return create("clip_vit_b_16", text=True, **CONFIG)


@pytest.fixture(scope="session")
def weights(pair: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "pair.safetensors"
    save_file(pair.state_dict(), path)
    return path


@pytest.fixture(scope="session")
def bundle(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("bundles") / "pair"
    return export_bundle("clip_vit_b_16", weights, out, config=CONFIG).path
