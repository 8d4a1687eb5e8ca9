"""Folders become classes by documented rules only, and accuracies are counts of places."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from saccade.engines.engine import Engine, TensorSpec
from saccade.errors import InputError, UsageError
from saccade.evaluation.classification import evaluate, labelled_pictures
from saccade.models.card import Card, Preprocessing
from saccade.predictors.classification import Classifier
from saccade.results.classification import Classification

LABELS = ("tench, Tinca tinca", "crane", "crane", "Sea Snake", "kite")


def folder(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).mkdir(parents=True)
        Image.new("RGB", (4, 4)).save(root / name / "a.png")
    return root


FOLDERS = [
    (("tench, Tinca tinca",), [0]),
    (("tench",), [0]),
    (("Tinca Tinca",), [0]),
    (("sea_snake", "kite"), [4, 3]),
    (("0", "1", "4"), [0, 1, 4]),
    (("n00000001", "n00000002", "n00000003", "n00000004", "n00000005"), [0, 1, 2, 3, 4]),
]


@pytest.mark.parametrize(("names", "targets"), FOLDERS)
def test_folder_names(names: tuple[str, ...], targets: list[int], tmp_path: Path) -> None:
    pictures = labelled_pictures(folder(tmp_path, *names), LABELS)
    assert [picture.target for picture in pictures] == targets
    assert [picture.path.parent.name for picture in pictures] == sorted(names)


REFUSED = [
    (("crane",), "could be class 1 or 2"),
    (("tenche",), "did you mean 'tench'"),
    (("5",), "is no label"),
    (("n00000001", "n00000002"), "is no label"),
    ((), "has no subfolders"),
]


@pytest.mark.parametrize(("names", "message"), REFUSED)
def test_what_is_unclear_is_refused(names: tuple[str, ...], message: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=message):
        labelled_pictures(folder(tmp_path, *names), LABELS)


def test_a_label_that_is_a_number_outweighs_the_index(tmp_path: Path) -> None:
    (picture,) = labelled_pictures(folder(tmp_path, "1"), ("2", "1", "0"))
    assert picture.target == 1
    (picture,) = labelled_pictures(folder(tmp_path / "reversed", "0"), ("2", "1", "0"))
    assert picture.target == 2


def test_a_folder_that_is_missing_or_empty(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is not a folder"):
        labelled_pictures(tmp_path / "none", LABELS)
    (tmp_path / "kite").mkdir()
    with pytest.raises(UsageError, match="no picture in them"):
        labelled_pictures(tmp_path, LABELS)


class TableEngine:
    """An engine whose logits are the row of `table` that the picture's red value names."""

    inputs: ClassVar = {"image": TensorSpec("image", "float32", ("batch", 3, 2, 2))}
    outputs: ClassVar = {"logits": TensorSpec("logits", "float32", ("batch", 6))}

    def __init__(self, table: NDArray[np.float32]) -> None:
        self.table = table

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        return {"logits": self.table[np.rint(feeds["image"][:, 0, 0, 0] * 255).astype(int)]}

    def close(self) -> None:
        pass


def classifier(table: NDArray[np.float32]) -> Classifier:
    preprocessing = Preprocessing((2, 2), "stretch", (2, 2), mean_rgb=(0, 0, 0), std_rgb=(1, 1, 1))
    card = Card("table", "test", preprocessing=preprocessing, labels=tuple("abcdef"))
    return Classifier({"model": cast(Engine, TableEngine(table))}, card)


@pytest.mark.parametrize("batch", [1, 4, 100])
def test_accuracy_is_the_share_of_first_places(batch: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    # Whole numbers, so that many are equal: the lower index then comes first, as in `top`.
    scores = rng.integers(0, 4, (30, 6)).astype(np.float32)
    targets = rng.integers(0, 6, 30)
    for row, target in enumerate(targets):
        kept = tmp_path / "abcdef"[target]
        kept.mkdir(exist_ok=True)
        Image.new("RGB", (2, 2), (row, 0, 0)).save(kept / f"{row:02}.png")
    steps: list[tuple[int, int]] = []
    accuracy = evaluate(classifier(scores), tmp_path, batch=batch, progress=lambda *step: steps.append(step))

    order = [Classification(tuple("abcdef"), row, np.arange(6)).top(6).indices for row in scores]
    place = np.array([list(row).index(target) for row, target in zip(order, targets, strict=True)])
    assert accuracy.pictures == 30
    assert accuracy.top1 == pytest.approx(100 * (place == 0).mean())
    assert accuracy.top5 == pytest.approx(100 * (place < 5).mean())
    for row in accuracy.classes:
        mine = targets == "abcdef".index(row.label)
        assert (row.pictures, row.correct) == (mine.sum(), (place[mine] == 0).sum())
    assert steps[-1] == (30, 30)


def test_an_unreadable_picture_is_named(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "bad.png").write_bytes(b"not a picture")
    with pytest.raises(InputError, match=r"bad\.png"):
        evaluate(classifier(np.zeros((1, 6), np.float32)), tmp_path)
