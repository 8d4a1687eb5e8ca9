"""Accuracy of a zero-shot classifier on a labelled folder: the names of the subfolders are the classes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from saccade.errors import UsageError
from saccade.evaluation.classification import Accuracy
from saccade.evaluation.classification import evaluate as measure

if TYPE_CHECKING:
    from saccade.predictors.zero_shot import ZeroShotClassifier


def evaluate(
    classify: ZeroShotClassifier,
    data: Path,
    *,
    batch: int = 16,
    progress: Callable[[int, int], None] | None = None,
) -> Accuracy:
    """Classify every picture under `data` and compare with its subfolder.

    The classes are those that `classify` was given, or else the subfolders' names, with blanks for "_".
    """
    if not classify.labels:
        if not data.is_dir():
            raise UsageError(f"{data} is not a folder: --data wants one subfolder of pictures per class")
        folders = sorted(each.name for each in data.iterdir() if each.is_dir() and each.name[0] != ".")
        classify = classify.with_classes([name.replace("_", " ") for name in folders])
    return measure(classify, data, batch=batch, progress=progress)
