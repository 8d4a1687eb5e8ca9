"""Results with an answer per pixel: what they say of it, in words, JSON and colours."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from PIL import Image

import saccade
from saccade import DepthMap, SemanticMap
from saccade.errors import UsageError
from saccade.palette import class_colours, ramp

NAMES = ("background", "sky", "sea", "sand")
LABELS = np.repeat(np.uint8([[1], [1], [2], [0]]), 6, axis=1)  # (4, 6): half sky, a quarter each of two
LABELS[0, 0] = 2


@pytest.fixture
def coast() -> SemanticMap:
    return SemanticMap(LABELS, NAMES)


def test_areas_are_shares_largest_first(coast: SemanticMap) -> None:
    assert [(area.label, area.index) for area in coast.areas()] == [("sky", 1), ("sea", 2), ("background", 0)]
    assert [area.share for area in coast.areas()] == [11 / 24, 7 / 24, 6 / 24]


def test_json_holds_the_whole_map(coast: SemanticMap) -> None:
    data = json.loads(json.dumps(coast.to_json()))
    runs = data["runs"]
    again = np.repeat(runs["indices"], runs["lengths"]).reshape(data["size_hw"])
    np.testing.assert_array_equal(again, LABELS)
    assert len(runs["indices"]) == 4
    assert data["areas"][0] == {"label": "sky", "share": 11 / 24, "index": 1}
    assert "untrained" not in data


def test_json_of_random_maps_comes_back() -> None:
    rng = np.random.default_rng(0)
    for shape in ((1, 1), (1, 9), (40, 3), (17, 23)):
        labels = rng.integers(0, 3, shape).astype(np.uint16)
        runs = SemanticMap(labels, NAMES).to_json()["runs"]
        np.testing.assert_array_equal(np.repeat(runs["indices"], runs["lengths"]).reshape(shape), labels)


def test_top_limits_the_areas_only(coast: SemanticMap) -> None:
    data = coast.to_json(1)
    assert [area["label"] for area in data["areas"]] == ["sky"]
    assert sum(data["runs"]["lengths"]) == LABELS.size
    assert coast.summary(2) == "sky 45.8 %   sea 29.2 %   1 more classes"


def test_untrained_maps_say_so() -> None:
    assert SemanticMap(LABELS, NAMES, untrained=True).to_json()["untrained"] is True
    assert "UNTRAINED" in repr(SemanticMap(LABELS, NAMES, untrained=True))
    assert DepthMap(np.ones((2, 2), np.float32), "metre", untrained=True).to_json()["untrained"] is True


def test_a_class_has_its_colour_in_every_map(coast: SemanticMap) -> None:
    colours = coast.colour()
    assert colours.shape == (4, 6, 3)
    assert colours.dtype == np.uint8
    np.testing.assert_array_equal(colours[1, 1], class_colours(150)[1])
    np.testing.assert_array_equal(colours[0, 0], class_colours(3)[2])


def test_the_first_thirty_colours_can_be_told_apart() -> None:
    colours = class_colours(30).astype(int)
    apart = np.abs(colours[:, None] - colours[None]).sum(-1)
    assert apart[~np.eye(30, dtype=bool)].min() > 40
    assert np.abs(colours[1:] - colours[:-1]).sum(-1).min() > 100


def test_the_ramp_falls_from_light_to_dark() -> None:
    luminance = ramp(np.linspace(0, 1, 64, dtype=np.float32)) @ np.array([0.299, 0.587, 0.114])
    assert (np.diff(luminance) < 1).all()
    assert luminance[0] > 200
    assert luminance[-1] < 40


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.zeros((2, 2, 2), np.uint8), r"\(H, W\)"),
        (np.zeros((2, 2), np.int64), "int64"),
        (np.full((2, 2), 4, np.uint8), "label 4 has no name: there are 4"),
    ],
)
def test_maps_that_cannot_be_are_refused(labels: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        SemanticMap(labels, NAMES)


def test_depths_say_their_range() -> None:
    result = DepthMap(np.float32([[1, 2], [4, 8]]), "metre")
    assert result.summary() == "1 to 8 metre, median 3"
    assert result.to_json() == {
        "size_hw": [2, 2],
        "unit": "metre",
        "nearest": 1.0,
        "median": 3.0,
        "farthest": 8.0,
    }
    colours = result.colour()
    np.testing.assert_array_equal(colours[0, 0], ramp(np.float32(0)))
    np.testing.assert_array_equal(colours[1, 1], ramp(np.float32(1)))


def test_a_flat_depth_map_has_one_colour() -> None:
    colours = DepthMap(np.full((3, 4), 2.5, np.float32), "relative").colour()
    assert len(np.unique(colours.reshape(-1, 3), axis=0)) == 1


@pytest.mark.parametrize(
    "depth", [np.ones((2, 2)), np.ones((2, 2, 1), np.float32), np.ones((0, 2), np.float32)]
)
def test_depths_that_cannot_be_are_refused(depth: Any) -> None:
    with pytest.raises(UsageError, match=r"depth \(H, W\) of float32"):
        DepthMap(depth, "metre")


# --- drawings ------------------------------------------------------------------------------------------


def drawn(result: SemanticMap | DepthMap, size: int = 500, **more: Any) -> np.ndarray[Any, Any]:
    picture = np.full((size, size, 3), 90, np.uint8)
    drawing = saccade.draw(picture, result, **more)
    assert isinstance(drawing, Image.Image)
    assert drawing.mode == "RGB"
    return np.asarray(drawing)


def halves() -> SemanticMap:
    labels = np.zeros((500, 500), np.uint8)
    labels[:, 250:] = 3
    return SemanticMap(labels, NAMES)


def test_background_stays_bare_and_classes_get_their_colour() -> None:
    sheet = drawn(halves())
    assert (sheet[:500, :249] == 90).all()
    sand = class_colours(4)[3].astype(float)
    np.testing.assert_allclose(sheet[100, 400], 0.55 * sand + 0.45 * 90, atol=2)
    assert (sheet[:500, 250] > sheet[:500, 260]).all(), "borders are light"


def test_the_legend_shows_the_classes() -> None:
    legend = drawn(halves())[500:]
    swatches = (np.abs(legend.astype(int) - class_colours(4)[3]).sum(-1) < 3).sum()
    assert swatches > 80
    assert not (np.abs(legend.astype(int) - class_colours(4)[0]).sum(-1) < 3).any(), "no background"


def test_untrained_drawings_warn() -> None:
    red = np.array([196, 43, 28])
    for result in (
        SemanticMap(halves().labels, NAMES, untrained=True),
        DepthMap(np.ones((500, 500), np.float32), "metre", untrained=True),
    ):
        assert (drawn(result)[500:] == red).all(-1).any()


@pytest.mark.parametrize("size_hw", [(1, 1), (3, 700), (900, 2), (40, 30), (2800, 30)])
def test_any_size_can_be_drawn(size_hw: tuple[int, int]) -> None:
    picture = np.zeros((*size_hw, 3), np.uint8)
    labels = np.arange(np.prod(size_hw)).reshape(size_hw) % 4
    for result in (
        SemanticMap(labels.astype(np.uint8), NAMES),
        DepthMap(labels.astype(np.float32) + 1, "relative"),
    ):
        drawing = saccade.draw(picture, result)
        assert 200 < max(drawing.size) < 6000


def test_many_classes_are_cut_to_the_largest() -> None:
    labels = np.arange(500, dtype=np.uint16).repeat(500).reshape(500, 500)
    many = SemanticMap(labels, tuple(f"class {i}" for i in range(500)))
    assert len(drawn(many, top=3)) < len(drawn(many, top=60))


def test_depth_stands_beside_its_picture() -> None:
    depth = np.tile(np.linspace(1, 9, 500, dtype=np.float32), (500, 1))
    sheet = drawn(DepthMap(depth, "metre"))
    assert sheet.shape[1] == 1000
    assert (sheet[:500, :500] == 90).all()
    assert sheet[250, 510].mean() > sheet[250, 990].mean()
