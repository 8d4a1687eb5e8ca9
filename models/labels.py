"""Names of classes, for predictors that have none of their own. Torch-free."""

from __future__ import annotations

from functools import cache
from importlib.resources import files

__all__ = ["imagenet_1k"]


@cache
def imagenet_1k() -> tuple[str, ...]:
    """Short, distinct English names of the 1000 classes of ImageNet-1k, in the order of the logits.

    The first WordNet lemma of each class, except where two classes share it.
    """
    text = files("saccade.models").joinpath("data/imagenet_1k.txt").read_text(encoding="utf-8")
    return tuple(text.splitlines())
