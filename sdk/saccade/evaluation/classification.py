"""Accuracy of a classifier on a labelled folder: one subfolder per class, pictures inside. No torch."""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from saccade.errors import UsageError
from saccade.evaluation import Table
from saccade.pictures import list_pictures

if TYPE_CHECKING:
    from saccade.predictors.classification import Classifier
    from saccade.predictors.zero_shot import ZeroShotClassifier


@dataclass(frozen=True, slots=True)
class ClassAccuracy:
    """`correct` of `pictures` of one class had it as their first answer."""

    label: str
    pictures: int
    correct: int


@dataclass(frozen=True, slots=True)
class Accuracy:
    """Share of pictures, in percent, whose class is the first answer, or among the first five."""

    pictures: int
    top1: float
    top5: float
    classes: tuple[ClassAccuracy, ...]

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def table(self) -> Table:
        """A row per class."""
        return Table(
            ("class", "pictures>", "top-1, %>"),
            tuple((c.label, str(c.pictures), f"{100 * c.correct / c.pictures:.1f}") for c in self.classes),
            f"{self.pictures} pictures: top-1 {self.top1:.2f} %, top-5 {self.top5:.2f} %",
        )


@dataclass(frozen=True, slots=True)
class LabelledPicture:
    """A file and the index of its class in the classifier's labels."""

    path: Path
    target: int


def evaluate(
    classify: Classifier | ZeroShotClassifier,
    data: Path,
    *,
    batch: int = 16,
    progress: Callable[[int, int], None] | None = None,
) -> Accuracy:
    """Classify every picture under `data` and compare with its subfolder.

    progress: called with (done, total) after every batch. An unreadable picture raises InputError naming it.
    """
    pictures = labelled_pictures(data, classify.labels)
    places = np.empty(len(pictures), np.int64)
    for start in range(0, len(pictures), batch):
        chunk = pictures[start : start + batch]
        found = classify([picture.path for picture in chunk])
        targets = np.array([picture.target for picture in chunk])
        places[start : start + batch] = _places(np.stack([result.scores for result in found]), targets)
        if progress is not None:
            progress(min(start + batch, len(pictures)), len(pictures))
    return _accuracy(pictures, places, classify.labels)


def labelled_pictures(data: Path, labels: Sequence[str]) -> tuple[LabelledPicture, ...]:
    """Every picture below the subfolders of `data`, sorted by path, with its class.

    A subfolder is named by the label, by one of its synonyms ("tench" for "tench, Tinca tinca"), or by the
    class index in decimal digits. ImageNet's own folders (n01440764, ...) are understood when all classes
    are there: in sorted order they are the class indices.
    """
    if not data.is_dir():
        raise UsageError(f"{data} is not a folder: --data wants one subfolder of pictures per class")
    folders = sorted(folder for folder in data.iterdir() if folder.is_dir() and folder.name[0] != ".")
    if not folders:
        raise UsageError(f"{data} has no subfolders: it wants one subfolder of pictures per class")
    targets = _targets([folder.name for folder in folders], labels)
    found = tuple(_pictures_of(folders, targets))
    if not found:
        raise UsageError(f"{data} has {len(folders)} subfolders and no picture in them")
    return found


def _pictures_of(folders: Sequence[Path], targets: Sequence[int]) -> Iterator[LabelledPicture]:
    for folder, target in zip(folders, targets, strict=True):
        yield from (LabelledPicture(path, target) for path in list_pictures(folder))


def _targets(names: Sequence[str], labels: Sequence[str]) -> list[int]:
    if len(names) == len(labels) and all(re.fullmatch(r"n\d{8}", name) for name in names):
        return list(range(len(names)))
    spellings = _spellings(labels)
    return [_target(name, spellings, len(labels)) for name in names]


def _spellings(labels: Sequence[str]) -> dict[str, set[int]]:
    """The class indices that a folder name may mean. A full label outweighs another label's synonym."""
    spellings: dict[str, set[int]] = {}
    for index, label in enumerate(labels):
        spellings.setdefault(label.casefold(), set()).add(index)
    whole = frozenset(spellings)
    for index, label in enumerate(labels):
        for synonym in label.casefold().split(","):
            if synonym.strip() not in whole:
                spellings.setdefault(synonym.strip(), set()).add(index)
    return spellings


def _target(name: str, spellings: dict[str, set[int]], classes: int) -> int:
    meant = spellings.get(name.casefold(), spellings.get(name.casefold().replace("_", " "), set()))
    if len(meant) > 1:
        raise UsageError(
            f"the folder {name!r} could be class {' or '.join(map(str, sorted(meant)))}: "
            "name it by the class index"
        )
    if meant:
        return min(meant)
    if name.isascii() and name.isdecimal() and int(name) < classes:
        return int(name)
    near = difflib.get_close_matches(name.casefold(), spellings, n=3)
    hint = f"did you mean {' or '.join(map(repr, near))}?" if near else f"there are {classes} classes"
    raise UsageError(f"the folder {name!r} is no label of this bundle; {hint}")


def _places(scores: np.ndarray[Any, Any], targets: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """How many classes score above the right one, (n,); equal scores count in order of the class index."""
    own = scores[np.arange(len(targets)), targets][:, None]
    earlier = np.arange(scores.shape[1])[None] < targets[:, None]
    return ((scores > own) | ((scores == own) & earlier)).sum(axis=1)


def _accuracy(
    pictures: Sequence[LabelledPicture], places: np.ndarray[Any, Any], labels: Sequence[str]
) -> Accuracy:
    targets = np.array([picture.target for picture in pictures])
    classes = tuple(
        ClassAccuracy(labels[c], int((targets == c).sum()), int((places[targets == c] == 0).sum()))
        for c in np.unique(targets)
    )
    return Accuracy(
        len(pictures), 100.0 * float((places == 0).mean()), 100.0 * float((places < 5).mean()), classes
    )
