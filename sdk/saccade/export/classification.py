"""Plans of classifiers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from saccade.errors import UsageError
from saccade.export.modules import card_of, module
from saccade.export.options import Options, preprocessing, read_labels, sizes
from saccade.export.plan import Part, Plan
from saccade.models.card import Card

if TYPE_CHECKING:
    import onnx

    from saccade.models.entry import Entry


def plan(options: Options, entry: Entry) -> Plan:
    """image -> logits."""
    import torch

    from saccade.engines.inputs import picture
    from saccade.models.deploy import merge

    made = preprocessing(options, entry.card.preprocessing)
    chosen = sizes(options, entry)
    built = module(options, chosen, [torch.randn(2, 3, *made.input_size_hw)])
    names = read_labels(options.labels)
    published = entry.card.task == "classification" and not (chosen or options.random)

    def card(graphs: Mapping[str, onnx.ModelProto]) -> Card:
        labels = labels_of(names, graphs["model"])
        changes = {"task": "classification", "preprocessing": made, "labels": labels}
        return card_of(entry.card, built, published=published, **changes)

    return Plan({"model": Part(merge(built), (picture(made.input_size_hw),), ("logits",))}, card, chosen)


def labels_of(names: tuple[str, ...], graph: onnx.ModelProto) -> tuple[str, ...]:
    """One label per class of the graph's first output: `names`, ImageNet's for 1,000, or numbers."""
    from saccade.models.labels import imagenet_1k

    count = graph.graph.output[0].type.tensor_type.shape.dim[1].dim_value
    if names and len(names) != count:
        raise UsageError(f"there are {len(names)} labels, but the model has {count} classes")
    if names:
        return names
    return imagenet_1k() if count == 1000 else tuple(str(i) for i in range(count))
