"""Published accuracy, reproduced by a plan: top-1, box and mask AP; the rest is skipped."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests import every_task
from tests.sdk.acceptance.bundles import write_bundle
from tests.sdk.acceptance.machine import GraphWorld
from tests.sdk.acceptance.rows import SIZE, accuracy_of, published, request_for, steps

import saccade
from saccade import acceptance
from saccade.acceptance import accuracy
from saccade.evaluation import evaluate

pytestmark = pytest.mark.usefixtures("quick")


@pytest.mark.parametrize(("off", "failed_call"), [(0.0, ""), (0.2, "compare accuracy")])
def test_published_accuracy_is_reproduced_by_the_plan(
    tmp_path: Path, labelled: Path, monkeypatch: pytest.MonkeyPatch, off: float, failed_call: str
) -> None:
    GraphWorld().enter(monkeypatch)
    path = write_bundle(tmp_path / "tiny").path
    expected = accuracy_of(path, labelled).top1
    published(path, expected + off)
    (record,) = acceptance.accept(request_for(path, tmp_path / "records", "fp32", imagenet=labelled))
    assert record.failed_call == failed_call, record.steps
    assert record.accuracy == {"top1": expected}


@pytest.mark.parametrize(("off", "failed_call"), [(0.0, ""), (0.3, "compare accuracy")])
def test_published_ap_is_reproduced_by_the_plan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, off: float, failed_call: str
) -> None:
    """More pictures than a detector's plan takes at once, annotated with what ONNX Runtime finds in them."""
    GraphWorld().enter(monkeypatch)
    path = every_task.write("instance_segmentation", tmp_path / "detector").path
    data = annotated(path, tmp_path / "coco")
    with saccade.load(path, "onnxruntime") as predictor:
        expected: Any = evaluate(
            predictor, data / "val2017", annotations=data / "annotations" / "instances_val2017.json"
        )
    ap = {"box_ap": expected.boxes.ap, "mask_ap": expected.masks.ap}
    assert ap["box_ap"] > 50  # in percent
    published = {"small_instance_segmentation": (ap["box_ap"] + off, ap["mask_ap"])}
    monkeypatch.setattr(accuracy, "PUBLISHED_AP", published)
    (record,) = acceptance.accept(request_for(path, tmp_path / "records", "fp32", coco=data, size=SIZE))
    assert record.failed_call == failed_call, record.steps
    assert record.accuracy == pytest.approx(ap)


def annotated(path: Path, data: Path) -> Path:
    """COCO's layout: six pictures, and what the detector at `path` finds in them as the truth."""
    rng = np.random.default_rng(0)
    (data / "val2017").mkdir(parents=True)
    (data / "annotations").mkdir()
    files = [data / "val2017" / f"{index}.png" for index in range(6)]
    for file in files:
        Image.fromarray(rng.integers(0, 256, (40, 60, 3), np.uint8)).save(file)
    with saccade.load(path, "onnxruntime") as predictor:
        results: list[Any] = predictor(files)
        names = predictor.labels
    category_ids = {name: index + 1 for index, name in enumerate(names)}
    found = [row for index, each in enumerate(results) for row in each.to_coco(index, category_ids)]
    objects = [
        {**row, "id": index + 1, "iscrowd": 0, "area": row["bbox"][2] * row["bbox"][3]}
        for index, row in enumerate(found)
    ]
    truth = {
        "images": [
            {"id": index, "file_name": file.name, "height": 40, "width": 60}
            for index, file in enumerate(files)
        ],
        "annotations": objects,
        "categories": [{"id": key, "name": name} for name, key in category_ids.items()],
    }
    (data / "annotations" / "instances_val2017.json").write_text(json.dumps(truth))
    return data


def test_accuracy_of_other_tasks_is_skipped_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where a top-1 was published: it is that of a classifier made of texts."""
    GraphWorld().enter(monkeypatch)
    path = every_task.write("embedding", tmp_path / "towers").path
    published(path, 74.4)
    request = request_for(path, tmp_path / "records", "fp32", coco=tmp_path, imagenet=tmp_path)
    (record,) = acceptance.accept(request)
    step = steps(record)["measure accuracy"]
    assert (step.outcome, step.message) == ("skipped", "none is reproduced of models made for embedding")
    assert (record.verdict, record.data) == ("accepted", "")
