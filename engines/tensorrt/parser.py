"""NVIDIA's own verdict on a graph: its parser and builder, run in a child process.

TensorRT for RTX parses, and builds engines for chosen compute capabilities, without a GPU or driver. A
verdict says what NVIDIA's library answered; where it gave no answer (crash, time or memory limit) `judge`
raises EngineError with the library's last words.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from saccade.engines.tensorrt import child
from saccade.engines.tensorrt.compiler import Request
from saccade.engines.tensorrt.flavours import FLAVOURS, is_installed
from saccade.engines.tensorrt.options import BatchRange, BuildOptions, Precision, ShapeRange, SizeRange
from saccade.engines.tensorrt.words import Refusal
from saccade.errors import MissingDependency, UsageError

__all__ = ["BatchRange", "Refusal", "ShapeRange", "SizeRange", "Verdict", "judge"]

_RTX = FLAVOURS["tensorrt_rtx"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What parser and builder said.

    built: None where no build was asked for, or parsing failed. layers: of the network after parsing, local
    functions inlined. plan_bytes: size of the plan, which is not kept. errors: why it was refused.
    peak_memory_mib: most memory that the process held.
    """

    parsed: bool
    built: bool | None
    layers: int
    parse_seconds: float
    build_seconds: float | None
    plan_bytes: int | None
    errors: tuple[Refusal, ...]
    peak_memory_mib: int
    tensorrt_rtx: str
    compute_capabilities: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Parsed, and built if that was asked for."""
        return self.parsed and self.built is not False

    def to_json(self) -> dict[str, Any]:
        """Plain dict of JSON types."""
        refusals = [refusal._asdict() for refusal in self.errors]
        return {**dataclasses.asdict(self), "ok": self.ok, "errors": refusals}


def judge(
    path: str | Path,
    *,
    profile: BatchRange | Mapping[str, ShapeRange] = BatchRange(),  # noqa: B008 - immutable
    compute_capabilities: Sequence[str] = ("80",),
    precision: Precision = "fp32",
    build: bool = True,
    timeout_s: float = 600.0,
    memory_limit_mib: int = 8192,
) -> Verdict:
    """Parse the ONNX file at `path` (external weights beside it) and build it, on CPU, in a child process.

    profile: shapes of inputs with dynamic dimensions; a BatchRange serves those whose batch alone is
    dynamic. compute_capabilities: such as ("80", "120"); one plan serves all. precision: that of the graph.
    memory_limit_mib: resident memory above which the child is ended. Raises EngineError where the child
    crashed or overran a limit, UsageError where the request does not fit the graph, MissingDependency without
    TensorRT for RTX.
    """
    path = Path(path).resolve()
    if not path.is_file():
        raise UsageError(f"{path} is no file; pass the ONNX graph, such as BUNDLE/graphs/model.onnx")
    if not is_installed(_RTX):
        raise MissingDependency(f"TensorRT for RTX is not installed: {_RTX.install}")
    options = BuildOptions(
        flavour=_RTX.name,
        precision=precision,
        batch=profile if isinstance(profile, BatchRange) else BatchRange(),
        target="+".join(f"sm{number}" for number in compute_capabilities),
    )
    shapes = {} if isinstance(profile, BatchRange) else profile
    request = Request(path, options, shapes=shapes, build=build)
    outcome, peak = child.run(request, limits=child.Limits(timeout_s, memory_limit_mib))
    return Verdict(
        parsed=outcome.parsed,
        built=outcome.built,
        layers=outcome.layers,
        parse_seconds=outcome.parse_seconds,
        build_seconds=outcome.build_seconds,
        plan_bytes=outcome.plan_bytes,
        errors=outcome.refusals,
        peak_memory_mib=peak,
        tensorrt_rtx=outcome.version,
        compute_capabilities=tuple(compute_capabilities),
    )
