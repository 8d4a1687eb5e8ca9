"""What a user may say about an export, and the preprocessing and sizes that follow from it."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from saccade.errors import CheckpointError, UsageError
from saccade.models import zoo
from saccade.models.card import Preprocessing
from saccade.models.hub import is_address

INTERPOLATIONS = {"bilinear": "pillow-bilinear", "bicubic": "pillow-bicubic"}


@dataclass(frozen=True, slots=True)
class Options:
    """One export.

    name: one of the zoo. weights: a checkpoint file, or an address of `saccade.models.hub`, such as "hub" or
    "timm:NAME.TAG". random: no weights; the bundle says "untrained" wherever it shows.
    labels: class names, one per line or a JSON list; as many as the head has outputs.
    input_size_hw, mean_rgb, std_rgb (in units of 0..1), crop (share of the resized side that is kept),
    interpolation ("bilinear", "bicubic"): replace what the model's card says of the preprocessing.
    config: sizes for `saccade.models.create`.
    templates: CLIP only: sentences with one {} for the name of a class, one per line.
    classes, class_matrix: CLIP only: class names to encode with the checkpoint's text tower, or a .npy file
    (width, classes) of normalised class embeddings, named by `labels`. Without them the bundle embeds.
    mmdet_config: detectors only: a configuration of mmdet, for its sizes, limits, preprocessing and classes;
    read without running it, unless execute_config.
    """

    name: str
    weights: Path | str | None = None
    random: bool = False
    labels: Path | None = None
    num_classes: int | None = None
    input_size_hw: tuple[int, int] | None = None
    mean_rgb: tuple[float, float, float] | None = None
    std_rgb: tuple[float, float, float] | None = None
    crop: float | None = None
    interpolation: str | None = None
    config: Mapping[str, Any] | None = None
    classes: Path | None = None
    class_matrix: Path | None = None
    mmdet_config: Path | None = None
    execute_config: bool = False
    templates: Path | None = None


def check(options: Options, entry: zoo.Entry) -> None:
    """Raise UsageError for options that contradict each other or do not apply to the model, CheckpointError
    for weights that are not there."""
    name = options.name
    _check_mmdet(options, entry)
    if (options.weights is None) != options.random:
        raise UsageError(f"give {name} either --weights FILE or --random, for a bundle without training")
    weights = str(options.weights or "hub")
    if not is_address(weights) and not Path(weights).is_file():
        raise CheckpointError(f"{weights}: no such file")  # before torch is imported and the model made
    tower = is_tower(entry)
    if (options.classes or options.class_matrix) and not tower:
        raise UsageError(f"{name} has classes of its own: --classes and --class-matrix are for CLIP towers")
    if options.classes and (options.class_matrix or options.labels or options.random):
        raise UsageError("--classes names and encodes the classes: leave --labels, --class-matrix, --random")
    if options.templates and (not tower or options.class_matrix):
        raise UsageError("--templates is for CLIP towers whose text tower reads the names of classes")
    if options.class_matrix and not options.labels:
        raise UsageError("--class-matrix needs --labels FILE to name its columns")
    if options.labels and tower and not options.class_matrix:
        raise UsageError(f"{name} has no classes of its own: give --classes FILE, or --class-matrix FILE too")


def _check_mmdet(options: Options, entry: zoo.Entry) -> None:
    if options.mmdet_config and entry.card.family != "detection":
        raise UsageError(f"--mmdet-config is for detectors; {options.name} is a {entry.card.task} model")
    if options.execute_config and not options.mmdet_config:
        raise UsageError("--execute-config needs --mmdet-config FILE, which it runs as a program")


def preprocessing(options: Options, default: Preprocessing) -> Preprocessing:
    """`default` with what the user gave; another size keeps the share that is cropped."""
    changes: dict[str, Any] = {}
    if options.interpolation is not None:
        if options.interpolation not in INTERPOLATIONS:
            known = ", ".join(INTERPOLATIONS)
            raise UsageError(f"interpolation {options.interpolation!r}: choose one of {known}")
        changes["resampler"] = INTERPOLATIONS[options.interpolation]
    # The user's colours are in units of 0..1, a card's in those that pixels are divided into.
    unit = 255.0 / default.value_range
    if options.mean_rgb is not None:
        changes["mean_rgb"] = tuple(unit * each for each in options.mean_rgb)
    if options.std_rgb is not None:
        if min(options.std_rgb) <= 0:
            raise UsageError(f"std {options.std_rgb}: all three must be positive")
        changes["std_rgb"] = tuple(unit * each for each in options.std_rgb)
    size_hw = options.input_size_hw or _configured_size(options.config or {})
    if default.resize == "fit":
        if options.crop is not None:
            raise UsageError(f"{options.name} sees whole pictures: --crop does not apply")
        changes |= {"input_size_hw": size_hw, "resize_hw": size_hw} if size_hw else {}
    elif size_hw is not None or options.crop is not None:
        changes |= _cropped(default, size_hw or default.input_size_hw, options.crop)
    return dataclasses.replace(default, **changes)


def _cropped(default: Preprocessing, size_hw: tuple[int, int], crop: float | None) -> dict[str, Any]:
    shares = [size / resized for size, resized in zip(default.input_size_hw, default.resize_hw, strict=True)]
    resized = [int(size / (crop or share)) for size, share in zip(size_hw, shares, strict=True)]
    if default.resize == "shorter":
        resized = [max(resized)] * 2
    return {"input_size_hw": size_hw, "resize_hw": tuple(resized)}


def sizes(options: Options, entry: zoo.Entry) -> dict[str, Any]:
    """Arguments for `create`: the user's, and the picture's size where the architecture depends on it."""
    config = dict(options.config or {})
    if options.num_classes is not None:
        config["num_classes"] = options.num_classes
    if options.input_size_hw is not None and "img_size" in _settings(entry):
        height, width = options.input_size_hw
        config["img_size"] = height if height == width else options.input_size_hw
    return config


def is_tower(entry: zoo.Entry) -> bool:
    """Whether the model can have no classes of its own: it is one half of a CLIP model."""
    return entry.card.task == "embedding" and "num_classes" not in _settings(entry)


def _settings(entry: zoo.Entry) -> Mapping[str, Any]:
    """What the model's builder takes, by name."""
    module, function = entry.builder.split(":")
    return inspect.signature(getattr(importlib.import_module(module), function)).parameters


def _configured_size(config: Mapping[str, Any]) -> tuple[int, int] | None:
    """The picture's size where `config` states it."""
    size = config.get("img_size")
    pair = tuple(size) if isinstance(size, list | tuple) else (size, size)
    if size is None:
        return None
    if len(pair) != 2 or not all(type(side) is int and side > 0 for side in pair):
        raise UsageError(f"img_size is {size!r} in the configuration: write 224 or [224, 288]")
    return pair[0], pair[1]


def read_labels(file: Path | None) -> tuple[str, ...]:
    """Class names from lines or from a JSON list; () without a file."""
    if file is None:
        return ()
    try:
        text = file.read_text(encoding="utf-8").strip()
        names = json.loads(text) if text.startswith("[") else [line.strip() for line in text.splitlines()]
    except (OSError, ValueError) as error:
        raise UsageError(f"{file} cannot be read as labels: {error}") from error
    if not names or not all(isinstance(each, str) and each for each in names):
        raise UsageError(f"{file} must hold one label a line, none empty, or a JSON list of strings")
    return tuple(names)
