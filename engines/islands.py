"""Which nodes of a graph need float32 so that fp16 or bf16 answers what float32 does.

Some ten runs tell, however large the graph. In the first, every node is computed twice from the same float32
inputs, once with its inputs, weights and result rounded, and the graph itself compares the two. A node whose
numbers come near the end of the type's range stays float32: other pictures would overflow it. If the outputs
then miss their tolerances, nodes are added in the order of what rounding did to each, or to one that reads
it; how many is found by bisection.

Everything runs by emulation (`passes.rounding`) in ONNX Runtime on the CPU.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_ir as ir

from saccade.engines.conformance import Difference, Sample
from saccade.engines.engine import Arrays
from saccade.engines.passes.rounding import emulate
from saccade.engines.precision import FLOAT, Converted, convert, convertible, precision_named, typed
from saccade.engines.scratch import opened
from saccade.errors import ExportError

HEADROOM = 8.0  # how many times larger the numbers of other pictures may be
OPSET = 20  # of what is run here
_TWIN = "{}@rounded"


@dataclass(frozen=True, slots=True)
class Effect:
    """What rounding does to one node, or to one that reads its results.

    error: the largest difference as a share of the node's largest result; infinite where the rounded one is
    not finite. Readers count because their inputs are rounded here. magnitude: the largest number that the
    node reads or gives.
    """

    error: float
    magnitude: float


@dataclass(frozen=True)
class Search:
    """The converted graph that meets the tolerances. measured: the nodes that are float32 because of them.

    runs: graphs that were run.
    """

    converted: Converted
    differences: tuple[Difference, ...]
    measured: Mapping[str, Effect]
    runs: int


def search(
    model: onnx.ModelProto,
    precision: str,
    samples: Sequence[Sample],
    progress: Callable[[str], None] = lambda step: None,
) -> Search:
    """Convert `model`, with as few measured float32 islands as range and the samples' tolerances ask for.

    Raises ExportError where even float32 misses a tolerance.
    """
    progress("measuring what rounding does to each node")
    limit = precision_named(precision).largest / HEADROOM
    effects = measure(model, precision, [sample.inputs for sample in samples])
    ranked = sorted(effects, key=lambda name: (effects[name].magnitude <= limit, -effects[name].error))
    tried: dict[int, tuple[Converted, tuple[Difference, ...]]] = {}

    def meets(count: int) -> bool:
        progress(f"trying {precision} with {count} of {len(ranked)} nodes in float32")
        converted = convert(model, precision, ranked[:count])
        tried[count] = converted, compare(emulate(converted.model, OPSET), samples)
        return all(each.agrees for each in tried[count][1])

    count = least_count(meets, sum(each.magnitude > limit for each in effects.values()), len(ranked))
    if count is None:
        wrong = next(each for each in tried[len(ranked)][1] if not each.agrees)
        raise ExportError(
            f"output {wrong.output!r} differs by {wrong.largest:.3g} with every node in float32; the "
            f"tolerance is {wrong.tolerance:.3g}: is this the graph that the samples were made with?"
        )
    return Search(*tried[count], {name: effects[name] for name in ranked[:count]}, 1 + len(tried))


def least_count(meets: Callable[[int], bool], least: int, most: int) -> int | None:
    """The least count from `least` on that meets, by doubling and then halving; None if `most` does not."""
    failed, count = least - 1, least
    while not meets(count):
        if count == most:
            return None
        failed, count = count, min(max(2 * count, 1), most)
    while count - failed > 1 and failed >= least:
        middle = (failed + count) // 2
        failed, count = (failed, middle) if meets(middle) else (middle, count)
    return count


def compare(model: onnx.ModelProto, samples: Sequence[Sample]) -> tuple[Difference, ...]:
    """Run `model` in ONNX Runtime on all samples: for every output the row worst for its tolerance."""
    rows: dict[str, list[Difference]] = {}
    with opened(model) as engine:
        for sample in samples:
            for row in sample.differences(engine.run(sample.inputs)):
                rows.setdefault(row.output, []).append(row)
    return tuple(max(each, key=_badness) for each in rows.values())


def _badness(row: Difference) -> float:
    """How many tolerances apart; NaN is worst."""
    return row.largest / max(row.tolerance, 1e-30) if row.largest == row.largest else math.inf


# --- what rounding does to each node ----------------------------------------------------------------------


def measure(model: onnx.ModelProto, precision: str, feeds: Sequence[Arrays]) -> dict[str, Effect]:
    """The effect of `precision` on every node that it would convert and that gives floats."""
    read = typed(model)
    nodes = [read.graph.node(name) for name in convertible(read, precision_named(precision))]
    probe = _Probe(read.graph)
    for node in nodes:
        probe.add(node)
    doubled = ir.to_proto(read)
    others = [node.name for node in doubled.graph.node if node.name not in probe.twins]
    with opened(emulate(convert(doubled, precision, others).model, OPSET)) as engine:
        figures = [engine.run(each) for each in feeds]
    alone = {name: probe.effect(name, figures) for name in probe.names()}
    return {name: _with_readers(effect, read.graph.node(name), alone) for name, effect in alone.items()}


def _with_readers(effect: Effect, node: ir.Node, alone: Mapping[str, Effect]) -> Effect:
    readers = {str(use.node.name) for value in node.outputs for use in value.uses()}
    errors = [alone[name].error for name in readers if name in alone]
    return Effect(max([effect.error, *errors]), effect.magnitude)


class _Probe:
    """Adds rounded twins of nodes to a graph, and scalar outputs that say what became of their results."""

    def __init__(self, graph: ir.Graph) -> None:
        self.twins: set[str] = set()
        self._graph = graph
        self._largest: dict[ir.Value, str] = {}
        self._errors: dict[str, list[tuple[str, str]]] = {}
        self._touched: dict[str, list[str]] = {}
        tensor = ir.tensor(np.float32(np.inf), name="infinity@rounded")
        self._infinity = ir.Value(
            name=tensor.name, shape=ir.Shape([]), type=ir.TensorType(FLOAT), const_value=tensor
        )
        graph.register_initializer(self._infinity)

    def names(self) -> list[str]:
        return list(self._errors)

    def add(self, node: ir.Node) -> None:
        """Give `node` a twin, unless it gives no floats."""
        name = str(node.name)
        results = [value for value in node.outputs if value.dtype == FLOAT]
        if not results:
            return
        twin = self._twin(node)
        rounded = [value for value in twin.outputs if value.dtype == FLOAT]
        pairs = zip(results, rounded, strict=True)
        self._errors[name] = [
            (self._difference(value, twin), self._magnitude(value)) for value, twin in pairs
        ]
        read = [value for value in node.inputs if value is not None and value.dtype == FLOAT]
        computed = [value for value in read if not value.is_initializer()]
        self._touched[name] = [self._magnitude(value) for value in (*computed, *results)]

    def effect(self, name: str, figures: Sequence[Arrays]) -> Effect:
        errors = [
            float(each[error]) / max(float(each[largest]), 1e-30)
            for each in figures
            for error, largest in self._errors[name]
        ]
        magnitudes = [float(each[largest]) for each in figures for largest in self._touched[name]]
        return Effect(max(errors), max(magnitudes))

    def _twin(self, node: ir.Node) -> ir.Node:
        twin = ir.Node(
            node.domain,
            node.op_type,
            node.inputs,
            list(node.attributes.values()),
            overload=node.overload,
            outputs=[
                ir.Value(name=_TWIN.format(value.name), shape=value.shape, type=value.type)
                for value in node.outputs
            ],
            name=_TWIN.format(node.name),
        )
        self._graph.append(twin)
        self.twins.add(str(twin.name))
        return twin

    def _difference(self, value: ir.Value, rounded: ir.Value) -> str:
        difference = self._apply("Abs", self._apply("Sub", value, rounded))
        # A maximum may pass over NaN.
        known = self._apply("Where", self._apply("IsNaN", difference), self._infinity, difference)
        return self._maximum(known)

    def _magnitude(self, value: ir.Value) -> str:
        if value not in self._largest:
            self._largest[value] = self._maximum(self._apply("Abs", value))
        return self._largest[value]

    def _maximum(self, value: ir.Value) -> str:
        result = self._apply("ReduceMax", value, keepdims=0)
        result.shape = ir.Shape([])
        self._graph.outputs.append(result)
        return str(result.name)

    def _apply(self, operator: str, *inputs: ir.Value, **attributes: int) -> ir.Value:
        node = ir.node(operator, inputs, attributes, name=f"{operator}@{inputs[-1].name}")
        result = node.outputs[0]
        result.name = str(node.name)
        result.type = ir.TensorType(ir.DataType.BOOL if operator == "IsNaN" else FLOAT)
        self._graph.append(node)
        return result
