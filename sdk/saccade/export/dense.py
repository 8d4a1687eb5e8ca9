"""Plans of semantic segmenters and depth estimators."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from saccade.errors import UsageError
from saccade.export.modules import card_of, module
from saccade.export.options import Options, preprocessing, read_labels, sizes
from saccade.export.plan import Part, Plan
from saccade.models.card import Card

if TYPE_CHECKING:
    import onnx

    from saccade.models.entry import Entry

# Where height and width are free, the graph is traced and compared at no more than this: oblong, since a
# graph that mistakes one side for the other agrees on squares; small, since the module is run in float64.
_TRACED_HW = (256, 320)
_MULTIPLE = 32  # of which every head and backbone takes sides


def plan(options: Options, entry: Entry) -> Plan:
    """image -> logits (batch, classes, h, w), or depth (batch, height, width); any size where pictures keep
    their shape."""
    import torch

    from saccade.engines.inputs import picture
    from saccade.models.dense import DenseModel
    from saccade.models.deploy import merge

    made = preprocessing(options, entry.card.preprocessing)
    chosen = sizes(options, entry)
    free = made.resize == "fit"
    traced_hw = _traced(made.input_size_hw) if free else made.input_size_hw
    built = module(options, chosen, [torch.randn(2, 3, *traced_hw)])
    names = read_labels(options.labels)
    assert isinstance(built, DenseModel)
    is_depth = built.gives_depth
    if names and is_depth:
        raise UsageError(f"{options.name} gives depths: for classes, give --num-classes N beside --labels")

    def card(graphs: Mapping[str, onnx.ModelProto]) -> Card:
        changes: dict[str, Any] = {"preprocessing": made}
        if is_depth:
            changes["unit"] = "metre" if chosen.get("max_depth") else entry.card.unit
        else:
            labels = _labels(names, graphs["model"])
            changes |= {"task": "semantic_segmentation", "unit": "", "labels": labels}
        return card_of(entry.card, built, published=not (chosen or options.random), **changes)

    image = picture(traced_hw, dynamic_size=free)
    outputs = ("depth",) if is_depth else ("logits",)
    return Plan({"model": Part(merge(built), (image,), outputs)}, card, chosen)


def _traced(size_hw: tuple[int, int]) -> tuple[int, int]:
    height, width = (
        max(_MULTIPLE, min(side, most) // _MULTIPLE * _MULTIPLE)
        for side, most in zip(size_hw, _TRACED_HW, strict=True)
    )
    return height, width


def _labels(names: tuple[str, ...], graph: onnx.ModelProto) -> tuple[str, ...]:
    """One label per class of the logits: `names`, ADE20K's for 150, or numbers."""
    from saccade.models.labels import ade20k_150

    count = graph.graph.output[0].type.tensor_type.shape.dim[1].dim_value
    if names and len(names) != count:
        raise UsageError(f"there are {len(names)} labels, but the model has {count} classes")
    if names:
        return names
    return ade20k_150() if count == len(ade20k_150()) else tuple(str(i) for i in range(count))
