"""COCO's metrics: known scores for known mistakes, categories by name, and refusals that say what to do."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests.blobs import CARD, Blob, BlobEngine, detector, picture

from saccade import Detector, UsageError
from saccade.evaluation import evaluate
from saccade.evaluation.coco import CocoAccuracy

SCENES: tuple[tuple[Blob, ...], ...] = (
    ((4, 8, 44, 40, 0), (50, 20, 80, 60, 2)),
    ((10, 10, 50, 50, 1),),
    ((0, 0, 30, 30, 0), (40, 0, 90, 50, 0)),
)
Categories = Sequence[tuple[int, str]]
PERFECT = pytest.approx((100, 100, 100))
CATEGORIES: Categories = ((1, "red"), (2, "green"), (3, "blue"))


def write(
    folder: Path,
    truth: Sequence[Sequence[Blob]] = SCENES,
    painted: Sequence[Sequence[Blob]] = SCENES,
    categories: Categories = CATEGORIES,
    **more: Any,
) -> Path:
    """A folder of pictures with `painted` and annotations of `truth`; the path of the latter."""
    images, annotations = [], []
    for index, (blobs, seen) in enumerate(zip(truth, painted, strict=True)):
        (folder / "images").mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture((64, 96), seen)).save(folder / "images" / f"{index}.png")
        images.append({"id": index + 7, "file_name": f"images/{index}.png", "height": 64, "width": 96})
        for left, top, right, bottom, label in blobs:
            corners = [left, top, right, top, right, bottom, left, bottom]
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": index + 7,
                    "category_id": categories[label][0],
                    "bbox": [left, top, right - left, bottom - top],
                    "area": (right - left) * (bottom - top),
                    "iscrowd": 0,
                    "segmentation": [list(map(float, corners))],
                }
            )
    path = folder / "annotations.json"
    named = [{"id": key, "name": name} for key, name in categories]
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": named, **more}))
    return path


def measure(annotations: Path, detect: Detector | None = None, **more: Any) -> CocoAccuracy:
    report = evaluate(detect or detector(), annotations.parent, annotations=annotations, **more)
    assert isinstance(report, CocoAccuracy)
    return report


def test_right_answers_score_100(tmp_path: Path) -> None:
    steps: list[tuple[int, int]] = []
    report = measure(write(tmp_path), batch=2, progress=lambda *step: steps.append(step))
    assert (report.boxes.ap, report.boxes.ap50, report.boxes.ap75) == PERFECT
    assert (report.boxes.small, report.boxes.medium) == pytest.approx((100, 100))
    assert report.boxes.large is None
    assert report.masks is not None
    assert report.masks.ap == pytest.approx(100)
    assert (report.pictures, report.objects) == (3, 5)
    assert [(each.label, each.objects, each.boxes) for each in report.classes] == [
        ("red", 3, pytest.approx(100)),
        ("green", 1, pytest.approx(100)),
        ("blue", 1, pytest.approx(100)),
    ]
    assert steps == [(2, 3), (3, 3)]


def test_boxes_that_are_too_small_score_at_the_lower_thresholds_only(tmp_path: Path) -> None:
    """IoU 40 * 40 / (40 * 50) = 0.8: seven of the ten thresholds."""
    report = measure(write(tmp_path, truth=[[(10, 0, 50, 50, 1)]], painted=[[(10, 10, 50, 50, 1)]]))
    assert report.boxes.ap == pytest.approx(70)
    assert (report.boxes.ap50, report.boxes.ap75) == pytest.approx((100, 100))


def test_missed_objects_and_wrong_classes_count(tmp_path: Path) -> None:
    wrong = [[(4, 8, 44, 40, 1), (50, 20, 80, 60, 2)], [], SCENES[2]]
    report = measure(write(tmp_path, painted=wrong))
    by_class = {each.label: each.boxes for each in report.classes}
    # Two of three: COCO reads precision at 101 recalls, 0 to 0.66 of them are reached.
    assert by_class == {"red": pytest.approx(100 * 67 / 101), "green": 0.0, "blue": pytest.approx(100)}


def test_nothing_found_scores_0(tmp_path: Path) -> None:
    report = measure(write(tmp_path, painted=[(), (), ()]))
    assert report.boxes.ap == 0
    assert report.masks is not None
    assert report.masks.ap50 == 0


def test_boxes_only_have_no_masks_to_measure(tmp_path: Path) -> None:
    card = dataclasses.replace(CARD, task="detection")
    report = measure(write(tmp_path), Detector({"model": BlobEngine(masks=False)}, card))
    assert report.boxes.ap == pytest.approx(100)
    assert report.masks is None
    assert "mask" not in report.table().closing


@pytest.mark.parametrize(
    "categories",
    [
        ((90, "Red"), (13, "GREEN"), (44, " blue")),
        ((3, "red"), (1, "green"), (2, "blue")),
    ],
)
def test_categories_are_known_by_name(tmp_path: Path, categories: Categories) -> None:
    assert measure(write(tmp_path, categories=categories)).boxes.ap == pytest.approx(100)


def test_classes_with_numbers_for_names_follow_the_ids(tmp_path: Path) -> None:
    card = dataclasses.replace(CARD, labels=("0", "1", "2"))
    annotations = write(tmp_path, categories=((13, "some"), (18, "other"), (90, "last")))
    assert measure(annotations, detector(card=card)).boxes.ap == pytest.approx(100)


def test_a_category_without_a_label_scores_0_and_is_named(tmp_path: Path) -> None:
    report = measure(write(tmp_path, categories=((1, "red"), (2, "green"), (3, "mauve"))))
    assert report.unknown == ("mauve",)
    assert report.boxes.ap == pytest.approx(200 / 3)
    assert "no label for mauve" in report.table().closing


def test_the_table_and_the_json_say_the_same(tmp_path: Path) -> None:
    report = measure(write(tmp_path))
    shown = report.table()
    assert shown.heading == ("class", "objects>", "box AP, %>", "mask AP, %>")
    assert shown.rows[0] == ("red", "3", "100.0", "100.0")
    assert shown.closing.startswith("3 pictures, 5 objects: box AP 100.0 % (AP50 100.0, AP75 100.0; small")
    assert json.loads(json.dumps(report.to_json()))["boxes"]["ap"] == report.boxes.ap


def test_annotations_are_asked_for(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="give --annotations"):
        evaluate(detector(), tmp_path)


def renamed(annotations: Path) -> None:
    text = annotations.read_text()
    for _, name in CATEGORIES:
        text = text.replace(f'"{name}"', f'"{name[:-1]}"')
    annotations.write_text(text)


def without_pictures(annotations: Path) -> None:
    (annotations.parent / "images" / "1.png").unlink()


def without_folder(annotations: Path) -> None:
    images = annotations.parent / "images"
    images.rename(images.with_name("pictures"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda path: path.write_text("{"), "cannot be read as JSON"),
        (lambda path: path.write_text("[]"), "no list of images and none of annotations"),
        (lambda path: path.write_text('{"images": [], "annotations": []}'), "no list of categories"),
        (lambda path: path.write_text(path.read_text().replace('"file_name"', '"name"')), "has no file_name"),
        (lambda path: path.write_text(path.read_text().replace('"image_id"', '"image"')), "lacks 'image_id'"),
        (renamed, "labels: red, green, blue"),
        (without_pictures, "1 of the 3 pictures of the annotations are not below"),
        (without_folder, "3 of the 3 pictures"),
    ],
)
def test_annotations_that_cannot_be_used(
    tmp_path: Path, change: Callable[[Path], object], message: str
) -> None:
    annotations = write(tmp_path)
    change(annotations)
    with pytest.raises(UsageError, match=message):
        measure(annotations)


def test_a_result_file_is_what_pycocotools_reads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from pycocotools.coco import COCO

    annotations = write(tmp_path)
    found = detector()(picture((64, 96), SCENES[0]))
    (tmp_path / "results.json").write_text(json.dumps(found.to_coco(7, {"red": 1, "green": 2, "blue": 3})))
    results = COCO(str(annotations)).loadRes(str(tmp_path / "results.json"))
    areas = [results.anns[key]["area"] for key in sorted(results.anns)]
    np.testing.assert_allclose(areas, [40 * 32, 30 * 40])
    assert "DONE" in capsys.readouterr().out
