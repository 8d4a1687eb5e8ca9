"""Plans of CLIP models: two towers, an embedder of pictures, or a classifier over a fixed set of classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from saccade.errors import CheckpointError, UsageError
from saccade.export import classification
from saccade.export.modules import card_of, module
from saccade.export.options import Options, is_tower, preprocessing, read_labels, sizes
from saccade.export.plan import Part, Plan
from saccade.models.card import Card, Preprocessing, Texts
from saccade.prompts import Embed, class_matrix, read_templates
from saccade.results.embeddings import normalised
from saccade.tokenizer import Tokenizer

if TYPE_CHECKING:
    import onnx
    from torch import nn

    from saccade.engines.inputs import Input
    from saccade.models.clip import Towers
    from saccade.models.entry import Entry
    from saccade.models.text_tower import TextTower


def plan(options: Options, entry: Entry) -> Plan:
    """image -> embeddings, and tokens -> embeddings with a text tower; with classes image -> logits."""
    import torch

    from saccade.models.clip import Towers

    chosen = sizes(options, entry)
    if not is_tower(entry) and (options.labels or "num_classes" in chosen):
        return classification.plan(options, entry)  # timm's encoder under a head of the user's own
    made = preprocessing(options, entry.card.preprocessing)
    needless = {"text": False} if options.class_matrix else {}
    built = module(options, {**chosen, **needless}, [torch.randn(2, 3, *made.input_size_hw)])
    image = Towers(built.trunk).eval() if isinstance(built, Towers) else built
    published = not (chosen or options.random)
    if options.classes or options.labels:
        return _classifier(image, built, options, entry, made, chosen)
    changes: dict[str, Any] = {"preprocessing": made}
    parts = {"model": _image_part(image, made, "embeddings")}
    if isinstance(built, Towers) and built.text is not None:
        parts = {"image": parts["model"], "text": Part(built.text, (_tokens(built.text),), ("embeddings",))}
        changes |= {"task": "zero_shot", "texts": _texts(built, options)}
    card = card_of(entry.card, image, published=published, **changes)
    return Plan(parts, lambda graphs: card, chosen)


def _image_part(module: nn.Module, made: Preprocessing, output: str) -> Part:
    from saccade.engines.inputs import picture
    from saccade.models.deploy import merge

    return Part(merge(module), (picture(made.input_size_hw),), (output,))


# --- texts ---------------------------------------------------------------------------------------------


def _texts(towers: Towers, options: Options) -> Texts:
    assert towers.text is not None
    return Texts(
        vocabulary=towers.text.vocab_size,
        context=towers.text.context_length,
        scale=towers.scale(),
        templates=_templates(options),
    )


def _tokens(tower: TextTower) -> Input:
    """The text graph's input; drawn are texts of all lengths, with their end and their padding."""
    from saccade.engines.inputs import Input

    end = tower.vocab_size - 1

    def draw(rng: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.int64]:
        tokens = rng.integers(1, end - 1, shape)
        tokens[:, 0] = end - 1
        shortest = min(2, shape[1] - 1)  # two empty texts would be the same one
        for row, length in zip(tokens, rng.integers(shortest, shape[1], shape[0]), strict=True):
            row[length], row[length + 1 :] = end, 0
        return tokens

    return Input("tokens", ("batch", tower.context_length), draw=draw)


def _templates(options: Options) -> tuple[str, ...]:
    if options.templates is None:
        return ()
    try:
        return read_templates(options.templates.read_text(encoding="utf-8").splitlines())
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{options.templates} cannot be read as templates: {error}") from error


# --- a fixed set of classes ------------------------------------------------------------------------------


def _classifier(
    image: nn.Module,
    built: nn.Module,
    options: Options,
    entry: Entry,
    made: Preprocessing,
    chosen: Mapping[str, Any],
) -> Plan:
    """The towers as an ordinary classifier: the text tower ran once, here."""
    import torch

    from saccade.models.clip import EmbeddingClassifier

    names = read_labels(options.classes or options.labels)
    if options.class_matrix is not None:
        matrix = _read_matrix(options.class_matrix, len(names))
    else:
        matrix = class_matrix(_encoder(built, options), names, _templates(options) or _openai_templates())
    part = _image_part(EmbeddingClassifier(image, torch.from_numpy(matrix)).eval(), made, "logits")

    def card(graphs: Mapping[str, onnx.ModelProto]) -> Card:
        labels = classification.labels_of(names, graphs["model"])
        changes = {"task": "classification", "preprocessing": made, "labels": labels}
        return card_of(entry.card, image, published=False, **changes)

    return Plan({"model": part}, card, chosen)


def _encoder(towers: nn.Module, options: Options) -> Embed:
    """Texts to vectors of length one, by the torch module."""
    import torch

    from saccade.models.clip import Towers

    if not isinstance(towers, Towers) or towers.text is None:
        raise CheckpointError(f"the weights of {options.name} hold no text tower that can encode the classes")
    tokenize = Tokenizer(towers.text.vocab_size, towers.text.context_length)

    def embed(texts: Sequence[str]) -> NDArray[np.float32]:
        with torch.inference_mode():
            return normalised(towers.encode_text(torch.from_numpy(tokenize(texts))).numpy())

    return embed


def _openai_templates() -> tuple[str, ...]:
    """OpenAI's 80 for ImageNet, as formats."""
    from open_clip import OPENAI_IMAGENET_TEMPLATES

    return tuple(template("{}") for template in OPENAI_IMAGENET_TEMPLATES)


def _read_matrix(file: Path, classes: int) -> NDArray[np.float32]:

    try:
        matrix = np.lib.format.open_memmap(file, mode="r")
    except (OSError, ValueError) as error:
        raise UsageError(f"{file} is not a .npy file of numbers: {error}") from error
    if matrix.ndim != 2 or matrix.shape[1] != classes:
        raise UsageError(f"{file} has the shape {matrix.shape}, but there are {classes} labels")
    return np.array(matrix, np.float32)
