"""Plans of CLIP towers: an embedder, or a classifier over a set of classes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saccade.errors import UsageError
from saccade.export import classification
from saccade.export.modules import card_of, module
from saccade.export.options import Options, is_tower, preprocessing, read_labels, sizes
from saccade.export.plan import Part, Plan
from saccade.models.card import Card

if TYPE_CHECKING:
    import onnx
    from torch import nn

    from saccade.models.entry import Entry


def plan(options: Options, entry: Entry) -> Plan:
    """image -> embeddings; with classes image -> logits."""
    import torch

    from saccade.engines.inputs import picture
    from saccade.models.deploy import merge

    chosen = sizes(options, entry)
    if not is_tower(entry) and (options.labels or "num_classes" in chosen):
        return classification.plan(options, entry)  # timm's encoder under a head of the user's own
    made = preprocessing(options, entry.card.preprocessing)
    built = module(options, chosen, [torch.randn(2, 3, *made.input_size_hw)])
    names = read_labels(options.classes or options.labels)
    if names:
        built = _with_classes(built, options, entry, names, chosen)
    published = not (chosen or options.random or names)

    def card(graphs: Mapping[str, onnx.ModelProto]) -> Card:
        changes: dict[str, Any] = {"preprocessing": made}
        if names:
            changes |= {"task": "classification", "labels": classification.labels_of(names, graphs["model"])}
        return card_of(entry.card, built, published=published, **changes)

    output = "logits" if names else "embeddings"
    return Plan({"model": Part(merge(built), (picture(made.input_size_hw),), (output,))}, card, chosen)


def _with_classes(
    tower: nn.Module, options: Options, entry: Entry, names: tuple[str, ...], chosen: Mapping[str, Any]
) -> nn.Module:
    from saccade.models.clip import EmbeddingClassifier, class_matrix
    from saccade.models.hub import fetch, is_address

    if options.class_matrix is not None:
        return EmbeddingClassifier(tower, _read_matrix(options.class_matrix, len(names))).eval()
    weights = str(options.weights)
    source = fetch(weights, entry) if is_address(weights) else weights
    quick_gelu = bool(chosen.get("quick_gelu"))  # both towers were trained with one or the other
    matrix = class_matrix(options.name, source, names, quick_gelu=quick_gelu)
    return EmbeddingClassifier(tower, matrix).eval()


def _read_matrix(file: Path, classes: int) -> Any:
    import numpy as np
    import torch

    try:
        matrix = np.lib.format.open_memmap(file, mode="r")
    except (OSError, ValueError) as error:
        raise UsageError(f"{file} is not a .npy file of numbers: {error}") from error
    if matrix.ndim != 2 or matrix.shape[1] != classes:
        raise UsageError(f"{file} has the shape {matrix.shape}, but there are {classes} labels")
    return torch.from_numpy(np.array(matrix, np.float32))
