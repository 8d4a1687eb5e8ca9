"""How good a predictor's answers are, one module per task. Each gives a report with `to_json` and `table`."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from saccade.errors import UsageError

if TYPE_CHECKING:
    from saccade.predictors.predictor import Predictor

# The module that measures each task: `evaluate(predictor, data, batch=, progress=, **its own) -> Report`.
_MODULES: Mapping[str, str] = {
    "classification": "saccade.evaluation.classification",
    "zero_shot": "saccade.evaluation.zero_shot",
    "detection": "saccade.evaluation.coco",
    "instance_segmentation": "saccade.evaluation.coco",
    "semantic_segmentation": "saccade.evaluation.segmentation",
}


@dataclass(frozen=True, slots=True)
class Table:
    """What the command line prints: a heading (a trailing ">" aligns right), rows, and one closing line."""

    heading: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    closing: str


class Report(Protocol):
    """What the command line knows of an evaluation."""

    def to_json(self) -> dict[str, Any]: ...
    def table(self) -> Table: ...


def evaluate(
    predictor: Predictor[Any],
    data: Path,
    *,
    batch: int = 16,
    progress: Callable[[int, int], None] | None = None,
    **more: Any,
) -> Report:
    """Predict for everything under `data` and compare with what is right, as the predictor's task has it.

    batch: pictures per run. progress: called with (done, total) after every batch. more: what the task's own
    module takes.
    """
    task = predictor.card.task
    if task not in _MODULES:
        raise UsageError(
            f"{predictor.card.name} is made for {task}: only {', '.join(_MODULES)} can be measured"
        )
    measured: Any = importlib.import_module(_MODULES[task])
    if foreign := sorted(set(more) - set(inspect.signature(measured.evaluate).parameters)):
        raise UsageError(f"{predictor.card.name} is made for {task}: it is not measured with {foreign[0]}")
    report: Report = measured.evaluate(predictor, data, batch=batch, progress=progress, **more)
    return report
