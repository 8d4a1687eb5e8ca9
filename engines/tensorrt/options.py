"""What to build: plain data, checked before any library is loaded."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

from saccade.engines.tensorrt.flavours import FLAVOURS, flavour
from saccade.errors import UsageError

Precision = Literal["fp32", "tf32", "fp16", "bf16", "int8"]
Binding = Literal["function", "plugin", "auto"]
Compatibility = Literal["none", "ampere+", "same_capability"]
CURRENT = "current"


class BatchRange(NamedTuple):
    """Batch sizes an engine serves: the first dimension of every input."""

    min: int = 1
    opt: int = 4
    max: int = 8


class ShapeRange(NamedTuple):
    """Shapes of one input: the least, the one to optimise for, the greatest."""

    min: tuple[int, ...]
    opt: tuple[int, ...]
    max: tuple[int, ...]


class SizeRange(NamedTuple):
    """Picture sizes (height, width) in pixels that an engine with free sizes serves."""

    min: tuple[int, int]
    opt: tuple[int, int]
    max: tuple[int, int]


_BATCH = BatchRange(1, 4, 16)


@dataclass(frozen=True, slots=True)
class BuildOptions:
    """Everything about a plan that is not in its graph.

    target: for TensorRT for RTX the GPUs that one plan serves, as "sm86+sm89", or "current"; elsewhere None.
    size: needed where the graph's height and width are free, refused elsewhere. binding: run semantic-token
    nodes from their function body or as plugins; "auto" takes plugins where an acceptance record speaks for
    them. version_compatible: newer TensorRT of the same major version, and the lean runtime, run the plan.
    hardware_compatible: it runs on other GPUs ("ampere+"), or others of its capability. stripped: without
    weights, which are filled in from the graph when it is opened. refittable: weights can be replaced.
    weight_streaming: weights may stay in host memory. optimization_level: 0 to 5, how long kernels are
    searched. workspace_mib: limit of scratch memory.
    """

    flavour: str = "tensorrt"
    precision: Precision = "fp32"
    batch: BatchRange = _BATCH
    size: SizeRange | None = None
    target: str | None = None
    binding: Binding = "function"
    version_compatible: bool = False
    hardware_compatible: Compatibility = "none"
    stripped: bool = False
    refittable: bool = False
    weight_streaming: bool = False
    optimization_level: int | None = None
    workspace_mib: int | None = None

    def __post_init__(self) -> None:
        for name, kind in (
            ("precision", Precision),
            ("binding", Binding),
            ("hardware_compatible", Compatibility),
        ):
            if getattr(self, name) not in get_args(kind):
                raise UsageError(f"{name} {getattr(self, name)!r}: choose {', '.join(get_args(kind))}")
        _check_range("batch", self.batch)
        if self.size is not None:
            for axis, name in enumerate(("height", "width")):
                _check_range(name, [size[axis] for size in self.size])
        if self.optimization_level is not None and not 0 <= self.optimization_level <= 5:
            raise UsageError(f"optimization_level is {self.optimization_level}; it is 0 to 5")
        if self.workspace_mib is not None and self.workspace_mib < 1:
            raise UsageError(f"workspace_mib is {self.workspace_mib}; it is a positive number")
        self._check_flavour()

    def _check_flavour(self) -> None:
        chosen = flavour(self.flavour)
        if not chosen.builds:
            makers = [name for name, each in FLAVOURS.items() if each.builds]
            raise UsageError(f"{chosen.name} runs plans and builds none; build with {' or '.join(makers)}")
        for name, reason in chosen.refuses.items():
            if getattr(self, name) != _DEFAULTS[name]:
                raise UsageError(f"{name}={getattr(self, name)!r} is not for {chosen.name}: {reason}")
        if self.binding == "plugin" and not chosen.aot_plugins:
            raise UsageError(f"{chosen.name} takes no plugins into its plans: build with binding function")
        if chosen.capabilities:
            if self.target is None:
                object.__setattr__(self, "target", CURRENT)
            capabilities(self)

    def dimensions(self) -> dict[str, tuple[int, int, int]]:
        """(min, opt, max) of each free dimension, by the name that graphs give it."""
        found: dict[str, tuple[int, int, int]] = {"batch": (self.batch.min, self.batch.opt, self.batch.max)}
        if self.size is not None:
            for axis, name in enumerate(("height", "width")):
                low, best, high = (size[axis] for size in self.size)
                found[name] = low, best, high
        return found

    def to_json(self) -> dict[str, Any]:
        """Plain dict of JSON types; `from_json` is its inverse."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> BuildOptions:
        """Read what `to_json` wrote and JSON carried."""
        size = data["size"] and SizeRange(*((int(height), int(width)) for height, width in data["size"]))
        return cls(**{**data, "batch": BatchRange(*data["batch"]), "size": size})


_DEFAULTS = {field.name: field.default for field in dataclasses.fields(BuildOptions)}


def capabilities(options: BuildOptions) -> tuple[str, ...]:
    """Compute capabilities that the target names, as ("86", "89"); () for the GPU at hand."""
    if options.target in (None, CURRENT):
        return ()
    known = flavour(options.flavour).capabilities
    names = str(options.target).lower().split("+")
    numbers = tuple(name.removeprefix("sm") for name in names)
    if not all(
        re.fullmatch(r"sm\d+", name) and number in known for name, number in zip(names, numbers, strict=True)
    ):
        raise UsageError(
            f"target {options.target!r}: {options.flavour} builds for {', '.join(f'sm{n}' for n in known)}, "
            f"several joined by +, or {CURRENT}"
        )
    return numbers


def _check_range(name: str, values: Any) -> None:
    low, best, high = values
    if not 1 <= low <= best <= high:
        raise UsageError(
            f"{name} {low},{best},{high}: write least, most frequent and greatest, rising from 1"
        )
