"""Classes from words: names put into sentences, and the sentences' embeddings as a classifier."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from saccade.errors import UsageError
from saccade.results.embeddings import normalised

__all__ = ["Embed", "checked_names", "checked_templates", "class_matrix", "read_templates"]

# Texts to vectors (n, width) float32, rows of length one.
Embed: TypeAlias = Callable[[Sequence[str]], NDArray[np.float32]]
_BATCH = 64


def class_matrix(embed: Embed, names: Sequence[str], templates: Sequence[str] = ()) -> NDArray[np.float32]:
    """Class weights (width, classes) float32, columns of length one.

    templates: sentences with one {} for the name; () takes the names themselves. Each sentence's vector has
    length one, and so has their mean per class (Radford et al., arXiv 2103.00020, section 3.1.4).
    """
    classes, formats = checked_names(names), checked_templates(templates) or ("{}",)
    sentences = (_filled(each, name) for name in classes for each in formats)
    sums: NDArray[np.float64] | None = None
    done = 0
    while batch := list(islice(sentences, _BATCH)):
        vectors = embed(batch)
        if sums is None:
            sums = np.zeros((len(classes), vectors.shape[1]))
        np.add.at(sums, np.arange(done, done + len(batch)) // len(formats), vectors)
        done += len(batch)
    assert sums is not None
    return np.ascontiguousarray(normalised(sums).T)


def checked_names(names: Sequence[str]) -> tuple[str, ...]:
    """`names` as a tuple. UsageError for what is not a sequence of at least one text."""
    if isinstance(names, str) or not all(isinstance(each, str) for each in names):
        raise UsageError(f"the classes are {str(names)[:80]!r}; give texts, in a list or tuple")
    if len(names) == 0:
        raise UsageError("there are no classes: give at least one text")
    return tuple(names)


def checked_templates(templates: Sequence[str]) -> tuple[str, ...]:
    """`templates` as a tuple. UsageError for one without exactly one {}."""
    if isinstance(templates, str):
        raise UsageError(f"templates is the text {templates[:80]!r}; give a list of them")
    for each in templates:
        if not isinstance(each, str) or each.count("{}") != 1:
            raise UsageError(
                f"the template {str(each)[:80]!r} must have exactly one {{}} for the name of a class"
            )
    return tuple(templates)


def read_templates(lines: Iterable[str]) -> tuple[str, ...]:
    """One template per line, empty lines left out."""
    return checked_templates([line.strip() for line in lines if line.strip()])


def _filled(template: str, name: str) -> str:
    """Not `str.format`: the other braces of a sentence are its own."""
    return template.replace("{}", name)
