"""TensorRT's operator table: which ONNX operators and types its parser takes, and under which restrictions.

The table is data (`engines/data/trt_operators.json`); `saccade.engines.tensorrt.checks` holds one node to it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any, Literal, NamedTuple

import onnx
from numpy.typing import NDArray


class Finding(NamedTuple):
    """A restriction that does not hold ("restricted") or cannot be decided from the file ("unknown")."""

    verdict: Literal["restricted", "unknown"]
    reason: str


@dataclass(frozen=True, slots=True)
class OperatorTable:
    """Facts of one TensorRT release. `types`: supported operator -> tensor types, in TensorRT's names.

    They are the documentation's, less those that a real parser was seen to refuse (`refused_types`).
    """

    tensorrt: str
    opset_min: int
    opset_max: int
    types: Mapping[str, frozenset[str]]
    unsupported: frozenset[str]
    restrictions: Mapping[str, str]


@cache
def operator_table() -> OperatorTable:
    """The table shipped with this version."""
    text = resources.files("saccade.engines").joinpath("data", "trt_operators.json").read_text("utf-8")
    data = json.loads(text)
    refused = data["refused_types"]
    return OperatorTable(
        tensorrt=data["tensorrt"],
        opset_min=data["opset_min"],
        opset_max=data["opset_max"],
        types={
            name: frozenset(types.split()) - frozenset(refused.get(name, "").split())
            for name, types in data["types"].items()
        },
        unsupported=frozenset(data["unsupported"]),
        restrictions=data["restrictions"],
    )


@dataclass(frozen=True, slots=True)
class Value:
    """What is known of one tensor before anything runs.

    dtype: an `onnx.TensorProto` element type. shape: sizes, None where dynamic; None for an unknown rank.
    constant: the value of a small constant. fixed: a constant, known here or not. fed: a graph input.
    """

    dtype: int | None = None
    shape: tuple[int | None, ...] | None = None
    constant: NDArray[Any] | None = None
    fixed: bool = False
    fed: bool = False


@dataclass(frozen=True, slots=True)
class Call:
    """One node with what is known of its tensors. An absent optional input or output is None."""

    node: onnx.NodeProto
    attributes: Mapping[str, Any]
    inputs: tuple[Value | None, ...]
    outputs: tuple[Value | None, ...]
    opset: int

    def input(self, index: int) -> Value | None:
        return self.inputs[index] if index < len(self.inputs) else None

    def text(self, name: str, default: str) -> str:
        value = self.attributes.get(name, default)
        return value.decode() if isinstance(value, bytes) else str(value)
