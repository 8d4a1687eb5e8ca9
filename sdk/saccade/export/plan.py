"""What a task gives the exporter: the graphs to make, and the card of the bundle."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from saccade.models.card import Card

if TYPE_CHECKING:
    import onnx
    from torch import nn

    from saccade.engines.inputs import Input
    from saccade.engines.verify import Expectation

Progress: TypeAlias = Callable[[str], None]


@dataclass(frozen=True)
class Part:
    """One graph: the module that it must agree with, called with `inputs` and giving `outputs`.

    expect: makes what the graph is compared with; by default what the module gives for random inputs, output
    by output.
    """

    module: nn.Module
    inputs: tuple[Input, ...]
    outputs: tuple[str, ...]
    expect: Callable[[], Sequence[Expectation]] | None = None


@dataclass(frozen=True)
class Plan:
    """parts: by graph name. card: made of the exported graphs, which know the sizes of their outputs.

    sizes: what `create` was given, for the record.
    """

    parts: Mapping[str, Part]
    card: Callable[[Mapping[str, onnx.ModelProto]], Card]
    sizes: Mapping[str, Any]
