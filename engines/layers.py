"""Where does an error start? Every layer of a graph beside another engine's, or another precision's.

Three runs show it, piece by piece of the graph so that memory stays bounded. Both graphs run with their
inner tensors as outputs: that gives the error that has piled up at each node. And each of the yardstick's
nodes runs alone, fed with what the tested graph computed before it: what is then left is the error of this
node itself, whatever its inputs had. A wrong weight shows there and nowhere else.

Nodes of domain `saccade` are nodes like the others. Tensors are matched by name: the rewrites of this
project keep them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from saccade.engines.engine import Arrays
from saccade.engines.passes.outputs import computed, with_outputs, with_types
from saccade.engines.scratch import opened
from saccade.engines.tensorrt.options import BatchRange, BuildOptions, SizeRange
from saccade.engines.tensorrt.temporary import FLOATS, run_once

Run: TypeAlias = Callable[[onnx.ModelProto, Arrays], dict[str, NDArray[Any]]]

ROUNDINGS = 4.0  # of the tested type, that a node by itself may add, as a share of its largest result
SUMS = 128 * 2.0**-24  # what sums of float32 in another order may add; a few thousand terms come to a third
PIECE = 256 * 2**20  # bytes of results that are kept at once
_ALONE = "{}@alone"
_UNKNOWN = 2**22  # bytes of a result whose shape the file does not tell


@dataclass(frozen=True, slots=True)
class Layer:
    """One float result of one node; errors are shares of its largest value.

    error: what has piled up. own: what this node adds by itself, None where the tested graph does not show
    all that it reads. limit: the largest `own` that is accepted.
    """

    node: str
    operator: str
    tensor: str
    error: float
    own: float | None
    limit: float

    @property
    def agrees(self) -> bool:
        """False also for NaN. Where `own` is not known, an error that is not finite tells."""
        return bool(np.isfinite(self.error)) if self.own is None else self.own <= self.limit

    def to_json(self) -> dict[str, Any]:
        """Plain dict of JSON types; None for what is not finite."""
        plain = {
            key: value if not isinstance(value, float) or np.isfinite(value) else None
            for key, value in asdict(self).items()
        }
        return {**plain, "agrees": self.agrees}


@dataclass(frozen=True)
class Side:
    """A graph, with its weights, and what runs it. floats_only: it shows no tensors of other types."""

    model: onnx.ModelProto
    run: Run
    floats_only: bool = False

    def shown(self) -> set[str]:
        """Names of what its nodes compute, as far as it is shown. model: with types."""
        names = computed(self.model)
        if not self.floats_only:
            return names
        typed = (*self.model.graph.value_info, *self.model.graph.output)
        return names & {value.name for value in typed if value.type.tensor_type.elem_type in FLOATS}


def in_engine(model: onnx.ModelProto, engine: str) -> Side:
    """`model` run by the engine of that name."""
    return Side(model, partial(_run, engine=engine))


def _run(model: onnx.ModelProto, feeds: Arrays, engine: str) -> dict[str, NDArray[Any]]:
    with opened(model, engine) as running:
        wanted = {name: np.dtype(spec.dtype) for name, spec in running.inputs.items()}
        return running.run({name: feeds[name].astype(dtype, copy=False) for name, dtype in wanted.items()})


def in_plans(
    model: onnx.ModelProto,
    options: BuildOptions,
    what: str,
    progress: Callable[[str], None] = lambda step: None,
) -> Side:
    """`model` run by TensorRT, in plans that are built for each run. what: is run, for messages.

    Of `options` the profile is replaced: it is the shapes that are run. Integers are not shown, as TensorRT
    keeps those that are sizes on the host.
    """
    return Side(model, partial(_run_plan, options=options, what=what, progress=progress), floats_only=True)


def _run_plan(
    model: onnx.ModelProto, feeds: Arrays, options: BuildOptions, what: str, progress: Callable[[str], None]
) -> dict[str, NDArray[Any]]:
    free = _free_sizes(model, feeds)
    batch = free.get("batch", 1)
    size = (free["height"], free["width"]) if {"height", "width"} <= free.keys() else None
    fitting = replace(
        options,
        batch=BatchRange(batch, batch, batch),
        size=SizeRange(size, size, size) if size else None,
    )
    step = f"building a plan with {len(model.graph.output)} outputs"
    progress(step)

    def say(phase: str, fraction: float) -> None:
        progress(f"{step}: {phase} {fraction:.0%}")

    return run_once(model, feeds, fitting, what, say=say)


def compare(
    tested: Side,
    yardstick: Side,
    feeds: Arrays,
    *,
    roundoff: float,
    progress: Callable[[str], None] = lambda step: None,
) -> Iterator[Layer]:
    """Every layer that both graphs show, in the yardstick's order.

    roundoff: of the tested graph's arithmetic. Nodes read what `tested` computed in the yardstick's types.
    """
    tested = replace(tested, model=with_types(tested.model))
    yardstick = replace(yardstick, model=with_types(yardstick.model))
    shown = tested.shown() & yardstick.shown()
    given = shown | {value.name for value in yardstick.model.graph.input}
    stored = {tensor.name for tensor in yardstick.model.graph.initializer}
    for first, nodes in _pieces(yardstick.model, shown, feeds):
        progress(f"layers from {first} of {len(yardstick.model.graph.node)} on")
        results = [name for node in nodes for name in node.output if name in shown]
        read = {name for node in nodes for name in node.input if name and name not in stored}
        theirs = yardstick.run(with_outputs(yardstick.model, results), feeds)
        inner = sorted({*results, *(read & shown)})
        ours = {**feeds, **tested.run(with_outputs(tested.model, inner), feeds)}
        whole = [node for node in nodes if {n for n in node.input if n} - stored <= given]
        alone = yardstick.run(*_alone(yardstick.model, whole, ours)) if whole else {}
        for node in nodes:
            for name in node.output:
                if name in shown and theirs[name].dtype.kind == "f":
                    error = _share(ours[name], theirs[name])
                    by_itself = alone.get(_ALONE.format(name))
                    own = None if by_itself is None else _share(ours[name], by_itself)
                    yield Layer(node.name, node.op_type, name, error, own, ROUNDINGS * roundoff + SUMS)


def start(layers: Sequence[Layer]) -> Layer | None:
    """The first layer that adds more than its limit, None if none does."""
    return next((layer for layer in layers if not layer.agrees), None)


def _share(actual: NDArray[Any], expected: NDArray[Any]) -> float:
    wide = expected.astype(np.float64)
    largest = float(np.abs(wide).max(initial=0.0))
    return float(np.abs(actual.astype(np.float64) - wide).max(initial=0.0)) / max(largest, 1e-30)


# --- pieces of a graph ---------------------------------------------------------------------------------


def _pieces(
    model: onnx.ModelProto, shown: set[str], feeds: Arrays
) -> Iterator[tuple[int, list[onnx.NodeProto]]]:
    """Consecutive nodes whose results, as far as shown, fit `PIECE`; with the number of the first."""
    sizes = _sizes(model, feeds)
    piece: list[onnx.NodeProto] = []
    held, first = 0, 0
    for index, node in enumerate(model.graph.node):
        kept = [name for name in node.output if name in shown]
        need = sum(sizes.get(name, _UNKNOWN) for name in kept)
        if piece and held + need > PIECE:
            yield first, piece
            piece, held, first = [], 0, index
        if kept:
            piece.append(node)
            held += need
    if piece:
        yield first, piece


def _sizes(model: onnx.ModelProto, feeds: Arrays) -> dict[str, int]:
    """Bytes of the results whose shapes the graph states, with the free sizes that `feeds` have."""
    free = _free_sizes(model, feeds)
    sizes = {}
    for value in (*model.graph.value_info, *model.graph.output):
        kind = value.type.tensor_type
        dims = [free.get(dim.dim_param) if dim.dim_param else dim.dim_value for dim in kind.shape.dim]
        if kind.HasField("shape") and None not in dims:
            sizes[value.name] = int(np.prod([dim or 1 for dim in dims])) * 4
    return sizes


def _free_sizes(model: onnx.ModelProto, feeds: Arrays) -> dict[str, int]:
    """What the named dimensions of the inputs are in `feeds`."""
    return {
        dim.dim_param: size
        for value in model.graph.input
        for dim, size in zip(value.type.tensor_type.shape.dim, feeds[value.name].shape, strict=True)
        if dim.dim_param
    }


def _alone(
    model: onnx.ModelProto, nodes: Sequence[onnx.NodeProto], values: Arrays
) -> tuple[onnx.ModelProto, dict[str, NDArray[Any]]]:
    """A graph of `nodes` that do not feed each other, and its inputs: `values`, in the types of `model`.

    Its outputs are named by `_ALONE`.
    """
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    typed = (*model.graph.input, *model.graph.value_info, *model.graph.output)
    types = {value.name: value.type.tensor_type.elem_type for value in typed}
    read = dict.fromkeys(name for node in nodes for name in node.input if name)
    feeds, inputs = {}, []
    for name in read.keys() - stored.keys():
        kind = types.get(name) or helper.np_dtype_to_tensor_dtype(values[name].dtype)
        feeds[name] = values[name].astype(helper.tensor_dtype_to_np_dtype(kind))
        inputs.append(helper.make_tensor_value_info(name, kind, feeds[name].shape))
    graph = onnx.GraphProto(name="alone", input=inputs)
    graph.initializer.extend(stored[name] for name in read if name in stored)
    for node in nodes:
        renamed = graph.node.add()
        renamed.CopyFrom(node)
        del renamed.output[:]
        renamed.output.extend(_ALONE.format(name) if name else "" for name in node.output)
        graph.output.extend(onnx.ValueInfoProto(name=name) for name in renamed.output if name)
    whole = onnx.ModelProto(ir_version=model.ir_version, graph=graph)
    whole.opset_import.extend(model.opset_import)
    whole.functions.extend(model.functions)
    return _with_types(whole), feeds


def _with_types(model: onnx.ModelProto) -> onnx.ModelProto:
    """With the types of the outputs, as the specification demands."""
    inferred = onnx.shape_inference.infer_shapes(model)
    known = {value.name: value for value in (*inferred.graph.value_info, *inferred.graph.output)}
    for value in model.graph.output:
        value.CopyFrom(known[value.name])
    return model
