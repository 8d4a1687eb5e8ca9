"""Asking for one row."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import saccade
from saccade import bundle
from saccade.acceptance import AcceptanceRecord, Request
from saccade.acceptance.records import Step
from saccade.engines.tensorrt.options import BatchRange, Precision, SizeRange

SIZE = SizeRange((32, 32), (32, 64), (96, 96))


def request_for(path: Path, out: Path, precision: Precision = "tf32", **more: Any) -> Request:
    return Request((str(path),), out, (precision,), **{"batch": BatchRange(1, 2, 4), "again": True, **more})


def steps(record: AcceptanceRecord) -> dict[str, Step]:
    return {step.call: step for step in record.steps}


def published(path: Path, top1: float) -> None:
    """Write on the card of the bundle what was published of it."""
    manifest = json.loads((path / bundle.MANIFEST).read_text())
    manifest["card"]["top1"] = top1
    (path / bundle.MANIFEST).write_text(json.dumps(manifest))


def accuracy_of(path: Path, labelled: Path) -> Any:
    with saccade.load(path, "onnxruntime") as predictor:
        return saccade.evaluation.evaluate(predictor, labelled)
