"""The public names. A name that is missing here was not meant to be public; a change here is a decision."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import saccade

ROOT = Path(__file__).resolve().parents[1]

SACCADE = [
    "BuildOptions",
    "BundleError",
    "Card",
    "CheckpointError",
    "Classification",
    "Classifier",
    "ClosedError",
    "DeadlineError",
    "DepthEstimator",
    "DepthMap",
    "Detections",
    "Detector",
    "Embedder",
    "Embeddings",
    "EngineError",
    "EngineMismatch",
    "ExportError",
    "Gallery",
    "InputError",
    "InstanceSegmenter",
    "MissingDependency",
    "OverloadedError",
    "Predictor",
    "SaccadeError",
    "SemanticMap",
    "SemanticSegmenter",
    "UsageError",
    "ZeroShotClassifier",
    "build",
    "draw",
    "load",
]
# Modules whose public names others import by path.
MODULES = {
    "saccade.batching": {"Batcher", "Limits", "Statistics"},
    "saccade.bundle": {"Bundle", "SCHEMA", "read", "resolve", "write"},
    "saccade.engines.engine": {"Engine", "EngineOptions", "TensorSpec", "open_engine", "resolve_engine"},
    "saccade.evaluation": {"Report", "Table", "evaluate"},
    "saccade.export": {"Options", "export_bundle"},
    "saccade.models": {"create"},
    "saccade.models.card": {"Card", "Preprocessing"},
    "saccade.models.zoo": {"ENTRIES", "entry", "names"},
    "saccade.verification": {"Verification", "verify"},
}


def test_the_list_of_public_names() -> None:
    assert sorted(saccade.__all__) == SACCADE
    for name in saccade.__all__:
        assert getattr(saccade, name) is not None


def test_dir_shows_the_public_names_before_any_is_used() -> None:
    program = "import saccade; print(set(saccade.__all__) - set(dir(saccade)))"
    child = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert child.stdout.strip() == "set()"


@pytest.mark.parametrize(("module", "names"), MODULES.items())
def test_modules_that_are_imported_by_path(module: str, names: set[str]) -> None:
    loaded = importlib.import_module(module)
    assert not names - set(vars(loaded))
    if hasattr(loaded, "__all__"):
        assert names <= set(loaded.__all__)


def test_every_error_is_public() -> None:
    tree = ast.parse((ROOT / "sdk" / "saccade" / "errors.py").read_text(encoding="utf-8"))
    assert {node.name for node in tree.body if isinstance(node, ast.ClassDef)} <= set(saccade.__all__)


def test_unknown_names_fail() -> None:
    with pytest.raises(AttributeError, match="lode"):
        _ = saccade.lode  # type: ignore[attr-defined]
