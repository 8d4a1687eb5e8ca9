"""Names of classes, for predictors that have none of their own. Torch-free."""

from __future__ import annotations

from functools import cache
from importlib.resources import files

__all__ = ["ade20k_150", "coco_80", "imagenet_1k"]


@cache
def imagenet_1k() -> tuple[str, ...]:
    """Short, distinct English names of the 1000 classes of ImageNet-1k, in the order of the logits.

    The first WordNet lemma of each class, except where two classes share it.
    """
    return _lines("imagenet_1k.txt")


@cache
def coco_80() -> tuple[str, ...]:
    """COCO's 80 classes of objects (Lin et al., arXiv 1405.0312) by their place in detectors' outputs."""
    return _lines("coco_80.txt")


@cache
def ade20k_150() -> tuple[str, ...]:
    """The 150 classes of ADE20K's scene parsing benchmark (Zhou et al., arXiv 1608.05442), in its order."""
    return _lines("ade20k_150.txt")


def _lines(file: str) -> tuple[str, ...]:
    text = files("saccade.models").joinpath(f"data/{file}").read_text(encoding="utf-8")
    return tuple(text.splitlines())
