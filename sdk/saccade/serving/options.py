"""What a client may say beside a picture, for each task: read from texts, applied to predictor and result.

One table, so that the endpoint, the OpenAPI description and the page agree.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from saccade import tiling
from saccade.errors import InputError
from saccade.results import Result

__all__ = ["OPTIONS", "Options", "count_tiles", "options_for", "parse_options", "predict", "reduced"]

_MAX_PROMPTS = 1000
_MAX_SENTENCES = 10_000  # prompts times templates; 80 templates, as CLIP's for ImageNet, leave 125 prompts
_MAX_TILES = 256  # 50 megapixels in tiles of 512 that share 64
_MAX_TEXT = 1000
_CLASSES = 5  # answers where there is a score for every class


@dataclass(frozen=True, slots=True)
class Option:
    """tasks: whose predictors take it. schema: of its value in OpenAPI. many: it may be repeated."""

    tasks: frozenset[str]
    schema: Mapping[str, Any]
    help: str
    many: bool = False


_CLASSIFYING = frozenset({"classification", "zero_shot"})
_DETECTING = frozenset({"detection", "instance_segmentation"})
_MAPPING = frozenset({"semantic_segmentation"})
_TEXT = {"type": "string", "minLength": 1, "maxLength": _MAX_TEXT}

OPTIONS: Mapping[str, Option] = {
    "top": Option(
        _CLASSIFYING | _DETECTING | _MAPPING,
        {"type": "integer", "minimum": 1, "maximum": 100_000},
        "How many answers, best first. Classes: 5; objects and areas: all.",
    ),
    "threshold": Option(
        _CLASSIFYING | _DETECTING,
        {"type": "number", "minimum": 0, "maximum": 1},
        "The least score of an answer.",
    ),
    "prompts": Option(frozenset({"zero_shot"}), _TEXT, "A class in words; repeat it for each.", many=True),
    "templates": Option(
        frozenset({"zero_shot"}),
        _TEXT,
        "A sentence with one {} for the class; may be repeated. Prompts times templates: at most "
        f"{_MAX_SENTENCES}.",
        many=True,
    ),
    "tile": Option(
        _DETECTING | _MAPPING,
        {"type": "string", "pattern": r"^\d{1,5},\d{1,5}$"},
        f"SIZE,OVERLAP in pixels: large pictures are cut into tiles, as 1024,128; at most {_MAX_TILES}.",
    ),
}


@dataclass(frozen=True, slots=True)
class Options:
    """Checked values; None or () where the client said nothing."""

    top: int | None = None
    threshold: float | None = None
    prompts: tuple[str, ...] = ()
    templates: tuple[str, ...] | None = None
    tile: tuple[int, int] | None = None


def options_for(task: str) -> dict[str, Option]:
    """The options that predictors for `task` take."""
    return {name: option for name, option in OPTIONS.items() if task in option.tasks}


def parse_options(task: str, given: Sequence[tuple[str, str]]) -> Options:
    """Options from pairs of name and text. InputError names what is unknown, repeated or out of range."""
    known = options_for(task)
    values: dict[str, list[str]] = {}
    for name, text in given:
        if name not in known:
            raise InputError(
                f"a model for {task} takes {', '.join(known) or 'no options'}; not {name[:64]!r}"
            )
        values.setdefault(name, []).append(text)
    for name, texts in values.items():
        if len(texts) > (_MAX_PROMPTS if known[name].many else 1):
            raise InputError(f"{name} is given {len(texts)} times")
        if not all(0 < len(text) <= _MAX_TEXT for text in texts):
            raise InputError(f"{name}: a text of 1 to {_MAX_TEXT} characters")
    return Options(
        top=_whole(values["top"][0]) if "top" in values else None,
        threshold=_share(values["threshold"][0]) if "threshold" in values else None,
        prompts=tuple(values.get("prompts", ())),
        templates=tuple(values["templates"]) if "templates" in values else None,
        tile=_tile(values["tile"][0]) if "tile" in values else None,
    )


def count_tiles(options: Options, size_hw: tuple[int, int]) -> int:
    """Into how many tiles a picture is cut; 0 where it is not. InputError where these are too many."""
    if options.tile is None:
        return 0
    size, overlap = options.tile
    if not 0 < overlap < size:
        raise InputError(f"tile is {size},{overlap}; the overlap is at least 1 and less than the size")
    count = tiling.count(size_hw, size, overlap)
    if count > _MAX_TILES:
        raise InputError(
            f"tile={size},{overlap} cuts {size_hw[1]}x{size_hw[0]} pixels into {count} tiles, and "
            f"{_MAX_TILES} is the most: give a larger size or a smaller overlap"
        )
    return count


def predict(predictor: Any, picture: bytes, options: Options) -> Result:
    """Call the predictor as its task wants it, and keep the answers that the options ask for.

    InputError for prompts and templates that make too many sentences, and for none where they are needed.
    """
    more: dict[str, Any] = {}
    if predictor.card.task == "zero_shot":
        if not options.prompts:
            raise InputError("this model takes its classes in words: prompts=a dog&prompts=a cat")
        _check_sentences(options, predictor.card.texts.templates)
        more = {"prompts": list(options.prompts), "templates": options.templates}
    if options.tile is not None:
        more = {"tile": options.tile}
    return reduced(predictor(picture, **more), options.threshold)


def _check_sentences(options: Options, default: Sequence[str]) -> None:
    """default: the templates where the client names none."""
    templates = len(default if options.templates is None else options.templates)
    sentences = len(options.prompts) * max(1, templates)
    if sentences > _MAX_SENTENCES:
        raise InputError(
            f"{len(options.prompts)} prompts in {templates} templates are {sentences} sentences, and "
            f"{_MAX_SENTENCES} is the most: send fewer prompts at once, or name fewer templates"
        )


def reduced(result: Any, threshold: float | None) -> Result:
    """The answers of at least `threshold`."""
    kept: Result = result if threshold is None else result[result.scores >= threshold]
    return kept


def shown(task: str, top: int | None) -> int | None:
    """How many answers are given: of all classes only the best ones, where the client says nothing."""
    return _CLASSES if top is None and task in _CLASSIFYING else top


def _whole(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 1 <= int(text[:9]) <= 100_000 and len(text) < 9):
        raise InputError(f"top is {text[:32]!r}; it is a whole number, 1 to 100000")
    return int(text)


def _share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 1:
        raise InputError(f"threshold is {text[:32]!r}; it is a number, 0 to 1")
    return value


def _tile(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"([0-9]{1,5}),([0-9]{1,5})", text)
    if match is None:
        raise InputError(f"tile is {text[:32]!r}; write SIZE,OVERLAP in pixels, as 1024,128")
    return int(match[1]), int(match[2])
