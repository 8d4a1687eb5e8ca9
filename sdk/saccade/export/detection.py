"""Plans of detectors and instance segmenters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

from saccade.errors import UsageError
from saccade.export.mmdet import Described, describe
from saccade.export.modules import card_of, module
from saccade.export.options import Options, preprocessing, read_labels, sizes
from saccade.export.plan import Part, Plan
from saccade.export.python_config import execute, read
from saccade.models.card import Card

if TYPE_CHECKING:
    import onnx
    import torch

    from saccade.engines.verify import Expectation
    from saccade.models.detection import Detector
    from saccade.models.entry import Entry
    from saccade.models.heads.box_head import BoxHead

OUTPUTS = ("boxes", "scores", "labels", "count")
# Where sizes are free, graphs are traced and compared at these: oblong, since a graph that mistakes one side
# for the other agrees on squares; small, since the module runs in float64.
_TRACED_HW, _OTHER_HW = (160, 224), (192, 128)
_SPREAD = 3.0  # deviation of the logits of random heads: some classes pass the score threshold


def plan(options: Options, entry: Entry) -> Plan:
    """image, size_hw -> boxes, scores, labels, count and, with a mask head, masks."""
    from saccade.engines.inputs import Input, picture
    from saccade.models.deploy import merge

    described = _described(options, entry)
    made = preprocessing(options, described.preprocessing)
    chosen = {**described.sizes, **sizes(options, entry)}
    free = made.pad_multiple < max(made.resize_hw)
    traced_hw = _rounded(_TRACED_HW, made.pad_multiple) if free else made.input_size_hw
    built = cast("Detector", module(options, chosen, _feeds(traced_hw)))
    if options.random:
        _spread(built, _feeds(traced_hw))
    outlines = bool(built.roi_head.mask_heads)
    outputs = (*OUTPUTS, "masks") if outlines else OUTPUTS
    names = read_labels(options.labels) or described.labels
    labels = _labels(names, entry.card.labels, _classes(built))

    def card(graphs: Mapping[str, onnx.ModelProto]) -> Card:
        changes: dict[str, Any] = {
            "task": "instance_segmentation" if outlines else "detection",
            "preprocessing": made,
            "labels": labels,
        }
        return card_of(entry.card, built, published=not (chosen or options.random), **changes)

    merged = cast("Detector", merge(built))
    other_hw = _rounded(_OTHER_HW, made.pad_multiple) if free else traced_hw

    def expect() -> Sequence[Expectation]:
        from saccade.engines.verify_detections import expectations

        return expectations(merged, outputs, ((1, traced_hw), (2, other_hw)), options.name)

    inputs = (picture(traced_hw, dynamic_size=free), Input("size_hw", ("batch", 2), draw=_sizes(traced_hw)))
    return Plan({"model": Part(merged, inputs, outputs, expect)}, card, chosen)


def _described(options: Options, entry: Entry) -> Described:
    """What the user's configuration says, if there is one; else the card's own."""
    card = entry.card
    if options.mmdet_config is None:
        return Described({}, card.preprocessing, ())
    config = (execute if options.execute_config else read)(options.mmdet_config)
    return describe(
        config,
        options.mmdet_config,
        cascade=bool(entry.config["cascade"]),
        architecture=str(entry.config["architecture"]),
        default=card.preprocessing,
    )


def _rounded(size_hw: tuple[int, int], multiple: int) -> tuple[int, int]:
    """Up to what pictures are padded to."""
    height, width = (-(-side // multiple) * multiple for side in size_hw)
    return height, width


def _feeds(size_hw: tuple[int, int]) -> list[torch.Tensor]:
    import torch

    return [torch.randn(2, 3, *size_hw), torch.tensor([size_hw] * 2, dtype=torch.float32)]


def _sizes(size_hw: tuple[int, int]) -> Any:
    """Draws the sizes of pictures that fill what they are padded to."""
    import numpy as np

    return lambda rng, shape: np.broadcast_to(np.array(size_hw, np.float32), shape).copy()


def _spread(detector: Detector, feeds: Sequence[torch.Tensor]) -> None:
    """Make random heads differ between classes, as trained ones do: nothing is found otherwise."""
    import torch

    with torch.inference_mode():
        for head in _box_heads(detector):
            seen: list[torch.Tensor] = []
            hook = head.fc_cls.register_forward_hook(lambda *given, seen=seen: seen.append(given[2]))
            detector(*feeds)
            hook.remove()
            head.fc_cls.weight.mul_(_SPREAD / seen[0].std())


def _classes(detector: Detector) -> int:
    """Without the background."""
    return _box_heads(detector)[0].fc_cls.out_features - 1


def _box_heads(detector: Detector) -> list[BoxHead]:
    return cast("list[BoxHead]", detector.roi_head.box_heads)


def _labels(names: tuple[str, ...], published: tuple[str, ...], count: int) -> tuple[str, ...]:
    """One label per class: `names`, those of the card where there are as many, or numbers."""
    if names and len(names) != count:
        raise UsageError(f"there are {len(names)} labels, but the model has {count} classes")
    return names or (published if len(published) == count else tuple(map(str, range(count))))
