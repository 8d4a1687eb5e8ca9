"""Saccade: efficient vision models from a trained checkpoint to a predictor in production.

    classify = saccade.load("digits-stvit")
    print(classify("street.jpg").top(5))

Importing this package loads NumPy and the standard library; the rest is loaded when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

import numpy as _numpy  # noqa: F401 -- every predictor needs it: fail here, not in the first call

from saccade.errors import (
    BundleError,
    CheckpointError,
    ClosedError,
    DeadlineError,
    EngineError,
    EngineMismatch,
    ExportError,
    InputError,
    MissingDependency,
    OverloadedError,
    SaccadeError,
    UsageError,
)

if TYPE_CHECKING:
    from saccade.builds import BuildOptions, build
    from saccade.drawing import draw
    from saccade.gallery import Gallery
    from saccade.loading import load
    from saccade.models.card import Card
    from saccade.predictors.classification import Classifier
    from saccade.predictors.depth import DepthEstimator
    from saccade.predictors.detection import Detector, InstanceSegmenter
    from saccade.predictors.embedding import Embedder
    from saccade.predictors.predictor import Predictor
    from saccade.predictors.semantic_segmentation import SemanticSegmenter
    from saccade.predictors.zero_shot import ZeroShotClassifier
    from saccade.results.classification import Classification
    from saccade.results.detections import Detections
    from saccade.results.embeddings import Embeddings
    from saccade.results.maps import DepthMap, SemanticMap

__all__ = [
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

_HOME = {
    "BuildOptions": "saccade.builds",
    "Card": "saccade.models.card",
    "Classification": "saccade.results.classification",
    "Classifier": "saccade.predictors.classification",
    "DepthEstimator": "saccade.predictors.depth",
    "DepthMap": "saccade.results.maps",
    "Detections": "saccade.results.detections",
    "Detector": "saccade.predictors.detection",
    "Embedder": "saccade.predictors.embedding",
    "Embeddings": "saccade.results.embeddings",
    "Gallery": "saccade.gallery",
    "InstanceSegmenter": "saccade.predictors.detection",
    "build": "saccade.builds",
    "draw": "saccade.drawing",
    "load": "saccade.loading",
    "Predictor": "saccade.predictors.predictor",
    "SemanticMap": "saccade.results.maps",
    "ZeroShotClassifier": "saccade.predictors.zero_shot",
    "SemanticSegmenter": "saccade.predictors.semantic_segmentation",
}


def __getattr__(name: str) -> Any:
    """Import a public name from its module when it is first used (PEP 562)."""
    if name not in _HOME:
        raise AttributeError(f"module 'saccade' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
