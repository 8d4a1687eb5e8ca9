"""Scenes for detection and segmentation: reproducible, split, and with ground truth that fits the picture."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from digits import folders, objects, scenes

PARTS: tuple[objects.Part, ...] = ("train", "validation", "held-out")
WIDE = objects.Layout((96, 160), (2, 3), (24.0, 48.0))


@pytest.mark.parametrize("part", PARTS)
def test_short_set_begins_long_one(part: objects.Part) -> None:
    short, long = objects.render(part, 2, seed=3), objects.render(part, 4, seed=3)
    for one, other in zip(short, long, strict=False):
        assert np.array_equal(one.image, other.image)
        assert np.array_equal(one.masks, other.masks)
        assert np.array_equal(one.labels, other.labels)


def test_seeds_and_parts_give_other_pictures() -> None:
    images = [objects.scene(part, seed, 0).image for part in PARTS for seed in (0, 1)]
    assert len({image.tobytes() for image in images}) == 6


@pytest.mark.parametrize("layout", [objects.Layout(), WIDE])
def test_truth_fits_the_picture(layout: objects.Layout) -> None:
    for scene in objects.render("train", 20, 0, layout):
        assert scene.image.shape == (*layout.size_hw, 3)
        assert 1 <= len(scene) <= layout.objects[1]
        assert scene.masks.sum(0).max() <= 1
        for box, label, mask in zip(scene.boxes_xyxy, scene.labels, scene.masks, strict=True):
            rows, columns = np.nonzero(mask)
            assert box.tolist() == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            assert set(scene.semantic[mask]) == {label + 1}
        assert np.array_equal(scene.semantic > 0, scene.masks.any(0))


def test_masks_cover_the_ink() -> None:
    """Ink is bright and photographs are dimmed: almost all bright pixels are masked, and few others."""
    for scene in objects.render("train", 20, 0):
        luminance = scene.image @ np.array([0.299, 0.587, 0.114])
        covered = scene.masks.any(0)
        assert luminance[covered].mean() >= 130
        assert (luminance[covered] >= 90).mean() >= 0.97
        assert (luminance[~covered] <= 150).mean() >= 0.99


def test_no_digit_is_mostly_hidden() -> None:
    scenes_drawn = objects.render("train", 40, 1)
    smallest = min(mask.sum() for scene in scenes_drawn for mask in scene.masks)
    assert smallest >= 60
    assert np.mean([len(scene) for scene in scenes_drawn]) >= 4


def test_parts_are_disjoint() -> None:
    glyphs = [{glyph.tobytes() for glyph in objects.read(part).glyphs} for part in PARTS]
    assert [len(objects.read(part).labels) for part in PARTS] == [1250, 150, 397]
    assert not glyphs[0] & glyphs[1]
    assert not (glyphs[0] | glyphs[1]) & glyphs[2]
    assert sum(objects.read(part).photographs[0].width for part in PARTS) == 640
    assert set(objects.read("validation").labels) == set(range(10))


def test_aerial_picture() -> None:
    scene = objects.aerial()
    assert scene.image.shape == (1200, 1600, 3)
    assert len(scene) >= 55


def test_clip_keeps_identities_and_moves_little() -> None:
    frames = list(objects.clip(12, layout=objects.Layout((160, 160), (4, 4), (32.0, 48.0))))
    assert len(frames) == 12
    centres: dict[int, np.ndarray] = {}
    labels: dict[int, int] = {}
    for frame in frames:
        for identity, label, box in zip(frame.ids, frame.labels, frame.boxes_xyxy, strict=True):
            centre = box.reshape(2, 2).mean(0)
            assert labels.setdefault(int(identity), int(label)) == label
            moved = np.abs(centre - centres.get(int(identity), centre)).max()
            assert moved <= 24  # a step, and what comes out from under another digit
            centres[int(identity)] = centre
    assert len(centres) == 4
    assert not np.array_equal(frames[0].image, frames[-1].image)
    again = next(objects.clip(1, layout=objects.Layout((160, 160), (4, 4), (32.0, 48.0))))
    assert np.array_equal(again.image, frames[0].image)


@pytest.mark.parametrize(
    ("position", "expected"), [(3.0, 3.0), (12.0, 8.0), (-1.0, 1.0), (21.0, 1.0), (20.0, 0.0), (10.0, 10.0)]
)
def test_bouncing(position: float, expected: float) -> None:
    assert objects.bounced(position, 0.0, 10.0) == pytest.approx(expected)


# pycocotools 2.0.11 wraps its masks in a class without NumPy 2's `copy` argument.
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_coco_folder_is_what_pycocotools_reads(tmp_path: Path) -> None:
    drawn = objects.held_out(3)
    path = folders.write_coco(drawn, tmp_path)
    coco = COCO(str(path))
    assert [category["name"] for category in coco.loadCats(coco.getCatIds())] == list(scenes.LABELS)
    for index, scene in enumerate(drawn):
        (image,) = coco.loadImgs(index)
        with Image.open(tmp_path / folders.IMAGES / image["file_name"]) as stored:
            assert np.array_equal(np.asarray(stored), scene.image)
        annotations = coco.loadAnns(coco.getAnnIds(index))
        assert [each["category_id"] - 1 for each in annotations] == scene.labels.tolist()
        for each, mask, box in zip(annotations, scene.masks, scene.boxes_xyxy, strict=True):
            assert np.array_equal(coco.annToMask(each).astype(bool), mask)
            assert each["area"] == mask.sum()
            x, y, width, height = each["bbox"]
            assert [x, y, x + width, y + height] == box.tolist()
    assert json.loads(path.read_text())["annotations"][0]["id"] == 1  # 0 means "no match" to pycocotools


@pytest.mark.parametrize(
    ("rows", "counts"),
    [([[0, 1], [0, 1]], [2, 2]), ([[1, 0], [0, 0]], [0, 1, 3]), ([[0, 0]], [2]), ([[1, 1]], [0, 2])],
)
def test_run_lengths(rows: list[list[int]], counts: list[int]) -> None:
    mask = np.array(rows, bool)
    assert folders.run_lengths(mask) == {"size": list(mask.shape), "counts": counts}


def test_semantic_folder(tmp_path: Path) -> None:
    (scene,) = objects.validation(1)
    folders.write_semantic([scene], tmp_path)
    with Image.open(tmp_path / folders.LABEL_MAPS / "000000.png") as stored:
        assert stored.mode == "L"
        assert np.array_equal(np.asarray(stored), scene.semantic)
