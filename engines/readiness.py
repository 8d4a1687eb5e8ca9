"""Will this graph build in TensorRT? A report per node, made from the file alone.

Every node is bound as TensorRT's parser would bind it (`saccade.engines.tensorrt.binding`), then held to the
operator table: operator, types, restrictions. Bodies of local functions are checked once per distinct call
(input types, constants and attributes), control flow inside its branches. The report predicts; NVIDIA's
parser decides: `saccade.engines.tensorrt.parser.judge`.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import onnx
from onnx import helper, numpy_helper

from saccade.engines.tensorrt.binding import Creator, Parser, bind
from saccade.engines.tensorrt.operators import Call, Value, check_operator, operator_table
from saccade.errors import EngineError

Verdict = Literal["supported", "restricted", "unsupported", "unknown", "plugin or function"]
ACCEPTED: tuple[Verdict, ...] = ("supported", "plugin or function")

# Constants above this many elements are weights: no restriction reads their values.
_SMALL = 1024
_STANDARD = ("", "ai.onnx")


@dataclass(frozen=True, slots=True)
class Row:
    """One node. `where` is "" in the main graph, else the function or branch that holds the node."""

    node: str
    op_type: str
    domain: str
    verdict: Verdict
    reason: str
    where: str = ""


@dataclass(frozen=True, slots=True)
class Readiness:
    """The report. `problems` concern the model as a whole: opset, names that TensorRT would confuse."""

    tensorrt: str
    opset: int
    rows: tuple[Row, ...]
    problems: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """No problem, and every node supported or bound to a plugin or function."""
        return not self.problems and not self.refused

    @property
    def refused(self) -> tuple[Row, ...]:
        """Rows that are not certain to build."""
        return tuple(row for row in self.rows if row.verdict not in ACCEPTED)

    def to_json(self) -> dict[str, Any]:
        """Plain dict of JSON types: the fields, `ok`, and the number of rows per verdict."""
        counts = Counter(row.verdict for row in self.rows)
        return {"ok": self.ok, **dataclasses.asdict(self), "counts": dict(sorted(counts.items()))}

    def text(self) -> Iterator[str]:
        """Lines for a terminal: a summary, the problems, the refused nodes, and counts per operator."""
        accepted = len(self.rows) - len(self.refused)
        yield f"TensorRT {self.tensorrt}, opset {self.opset}: {accepted} of {len(self.rows)} nodes accepted"
        yield from (f"problem: {problem}" for problem in self.problems)
        for row in self.refused:
            place = f" in {row.where}" if row.where else ""
            yield f"{row.verdict}: {_operator(row)} {row.node!r}{place}: {row.reason}"
        counts = Counter((_operator(row), row.verdict) for row in self.rows)
        width = max((len(operator) for operator, _ in counts), default=0)
        yield from (
            f"{operator:<{width}}  {count:>5}  {verdict}"
            for (operator, verdict), count in sorted(counts.items())
        )


def check(
    model: onnx.ModelProto | Path,
    *,
    creators: Collection[Creator] = frozenset(),
    plugin_override: bool = False,
) -> Readiness:
    """Judge every node of `model` (a path is read without its external weights).

    creators: the plugins taken to be registered. plugin_override: the parser flag ENABLE_PLUGIN_OVERRIDE.
    """
    model, folder = _read(model)
    table = operator_table()
    parser = Parser(
        importers=table.types.keys(),
        functions=frozenset(f.name for f in model.functions),
        creators=creators,
        plugin_override=plugin_override,
    )
    opset = _opset(model.opset_import)
    inferred, failure = _infer(_without_weights(model, folder))
    walk = _Walk(parser, model)
    rows = tuple(walk.graph(inferred.graph, _Scope(opset=opset)))
    outside = opset if not table.opset_min <= opset <= table.opset_max else None
    problems = [
        *(
            [f"opset {outside} is outside {table.opset_min}..{table.opset_max}"]
            if outside is not None
            else []
        ),
        *_confused_names(model),
        *([f"shape inference failed: {failure}"] if failure else []),
    ]
    return Readiness(table.tensorrt, opset, rows, tuple(problems))


def _operator(row: Row) -> str:
    return row.op_type if row.domain in _STANDARD else f"{row.domain}::{row.op_type}"


# --- reading -------------------------------------------------------------------------------------------


def _read(model: onnx.ModelProto | Path) -> tuple[onnx.ModelProto, Path | None]:
    if isinstance(model, onnx.ModelProto):
        return model, None
    try:
        return onnx.load(model, load_external_data=False), model.parent
    except Exception as error:  # protobuf's DecodeError, OSError and onnx's own share no root
        raise EngineError(f"{model} cannot be read as an ONNX file: {error}. Export it again.") from error


def _without_weights(model: onnx.ModelProto, folder: Path | None) -> onnx.ModelProto:
    """A copy whose large initializers keep type and shape only; small ones are read from `folder`."""
    slim = onnx.ModelProto()
    slim.ir_version = model.ir_version
    slim.opset_import.extend(model.opset_import)
    slim.functions.extend(model.functions)
    graph = slim.graph
    graph.name = model.graph.name
    for name in ("node", "input", "output", "value_info"):
        getattr(graph, name).extend(getattr(model.graph, name))
    graph.initializer.extend(_slim(tensor, folder) for tensor in model.graph.initializer)
    return slim


def _slim(tensor: onnx.TensorProto, folder: Path | None) -> onnx.TensorProto:
    external = tensor.data_location == onnx.TensorProto.EXTERNAL
    if _elements(tensor.dims) > _SMALL or (external and folder is None):
        bare = onnx.TensorProto(name=tensor.name, dims=tensor.dims, data_type=tensor.data_type)
        bare.data_location = onnx.TensorProto.EXTERNAL
        return bare
    if not external:
        return tensor
    loaded = onnx.TensorProto()
    loaded.CopyFrom(tensor)
    onnx.external_data_helper.load_external_data_for_tensor(loaded, str(folder))
    loaded.data_location = onnx.TensorProto.DEFAULT
    del loaded.external_data[:]
    return loaded


def _infer(model: onnx.ModelProto) -> tuple[onnx.ModelProto, str]:
    """`model` with inferred types and shapes, and why that failed (then as it came), or ""."""
    try:
        return onnx.shape_inference.infer_shapes(model, data_prop=True), ""
    except Exception as error:  # InferenceError, ValueError and checker errors share no root
        return model, str(error).strip().splitlines()[0]


def _opset(imports: Collection[onnx.OperatorSetIdProto]) -> int:
    return next((entry.version for entry in imports if entry.domain in _STANDARD), 1)


def _confused_names(model: onnx.ModelProto) -> Iterator[str]:
    """TensorRT knows an operator by its name alone: say where two things share one."""
    table = operator_table()
    for name, count in Counter(f.name for f in model.functions).items():
        if count > 1:
            domains = sorted({f.domain for f in model.functions if f.name == name})
            yield (
                f"local function {name!r} is defined {count} times (domains {', '.join(domains)}): TensorRT "
                "ignores the domain and takes one of them; rename the others"
            )
    for function in model.functions:
        if function.name in table.types:
            yield (
                f"local function {function.domain}::{function.name} has the name of an ONNX operator: "
                "TensorRT ignores the domain and runs the operator; rename the function"
            )


# --- walking -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Scope:
    """Values visible at one point: those of the enclosing graphs and this one."""

    opset: int
    values: Mapping[str, Value] = field(default_factory=dict)
    where: str = ""
    calls: tuple[str, ...] = ()


class _Walk:
    """One pass over a model: what nodes bind to, and the function calls that were checked already."""

    def __init__(self, parser: Parser, model: onnx.ModelProto) -> None:
        self.parser = parser
        self.functions = {f.name: f for f in reversed(model.functions)}
        self.model = model
        self.seen: set[tuple[str, bytes]] = set()

    def graph(
        self, graph: onnx.GraphProto, scope: _Scope, given: Mapping[str, Value] | None = None
    ) -> Iterator[Row]:
        """Rows of `graph`. `given`: what the caller of a function knows of its inputs."""
        scope = dataclasses.replace(scope, values={**scope.values, **_values(graph), **(given or {})})
        for index, node in enumerate(graph.node):
            yield from self.node(node, node.name or f"{node.op_type} #{index}", scope)

    def node(self, node: onnx.NodeProto, name: str, scope: _Scope) -> Iterator[Row]:
        call = _call(node, scope)
        binding = bind(node, self.parser)

        def row(verdict: Verdict, reason: str) -> Row:
            return Row(name, node.op_type, node.domain, verdict, reason, scope.where)

        if binding.kind == "plugin":
            yield row("plugin or function", binding.reason)
        elif binding.kind == "builtin":
            yield row(*_judge_builtin(call))
        elif binding.kind == "error":
            yield row(*_judge_unbound(node, binding.reason))
        elif node.op_type in scope.calls:
            yield row("unsupported", "a local function that calls itself cannot be inlined")
        else:
            yield row("plugin or function", binding.reason)
            yield from self.body(call, scope)
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                inside = f"{scope.where} / {name}.{attribute.name}".removeprefix(" / ")
                yield from self.graph(attribute.g, dataclasses.replace(scope, where=inside))

    def body(self, call: Call, scope: _Scope) -> Iterator[Row]:
        """Rows of a local function's body as this call makes it; none where an equal call was checked."""
        function = self.functions[call.node.op_type]
        given = {name: v for name, v in zip(function.input, call.inputs, strict=False) if v is not None}
        model = _inlined(function, call, given, self.model)
        key = (function.name, model.graph.SerializeToString(deterministic=True))
        if key in self.seen:
            return
        self.seen.add(key)
        inferred, _ = _infer(model)
        inside = _Scope(
            opset=_opset(function.opset_import),
            where=f"{function.domain}::{function.name}",
            calls=(*scope.calls, function.name),
        )
        yield from self.graph(inferred.graph, inside, given)


def _judge_builtin(call: Call) -> tuple[Verdict, str]:
    node = call.node
    if node.domain not in _STANDARD:
        return "restricted", f"TensorRT ignores the domain and runs ONNX {node.op_type}; rename the operator"
    finding = check_operator(call)
    return finding or ("supported", "")


def _judge_unbound(node: onnx.NodeProto, reason: str) -> tuple[Verdict, str]:
    table = operator_table()
    if node.op_type in table.unsupported:
        return "unsupported", f"TensorRT {table.tensorrt} does not support this operator"
    if node.domain in _STANDARD:
        return "unknown", f"not in the operator table of TensorRT {table.tensorrt}"
    return "unsupported", reason


def _call(node: onnx.NodeProto, scope: _Scope) -> Call:
    def value(name: str) -> Value | None:
        return scope.values.get(name, Value()) if name else None

    return Call(
        node=node,
        attributes={a.name: helper.get_attribute_value(a) for a in node.attribute if not a.ref_attr_name},
        inputs=tuple(value(name) for name in node.input),
        outputs=tuple(value(name) for name in node.output),
        opset=scope.opset,
    )


# --- values --------------------------------------------------------------------------------------------


def _values(graph: onnx.GraphProto) -> dict[str, Value]:
    """What is known of every tensor of an inferred graph."""
    values = {info.name: _typed(info) for info in (*graph.value_info, *graph.output)}
    values |= {info.name: dataclasses.replace(_typed(info), fed=True) for info in graph.input}
    values |= {tensor.name: _constant(tensor) for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" and (tensor := _tensor(node)):
            values[node.output[0]] = _constant(tensor)
        elif node.op_type == "Identity" and values.get(node.input[0], Value()).fixed:
            values[node.output[0]] = values[node.input[0]]
    return values


def _typed(info: onnx.ValueInfoProto) -> Value:
    tensor = info.type.tensor_type
    if not info.type.HasField("tensor_type") or not tensor.elem_type:
        return Value()
    dims = [d.dim_value if d.HasField("dim_value") else None for d in tensor.shape.dim]
    return Value(dtype=tensor.elem_type, shape=tuple(dims) if tensor.HasField("shape") else None)


def _constant(tensor: onnx.TensorProto) -> Value:
    known = tensor.data_location != onnx.TensorProto.EXTERNAL and _elements(tensor.dims) <= _SMALL
    return Value(
        dtype=tensor.data_type,
        shape=tuple(tensor.dims),
        constant=numpy_helper.to_array(tensor) if known else None,
        fixed=True,
    )


def _tensor(node: onnx.NodeProto) -> onnx.TensorProto | None:
    """The tensor of a Constant node, whichever attribute holds it; None for strings and sparse tensors."""
    read: dict[str, Callable[[onnx.AttributeProto], onnx.TensorProto]] = {
        "value": lambda a: a.t,
        "value_int": lambda a: helper.make_tensor("", onnx.TensorProto.INT64, (), [a.i]),
        "value_ints": lambda a: helper.make_tensor("", onnx.TensorProto.INT64, (len(a.ints),), a.ints),
        "value_float": lambda a: helper.make_tensor("", onnx.TensorProto.FLOAT, (), [a.f]),
        "value_floats": lambda a: helper.make_tensor("", onnx.TensorProto.FLOAT, (len(a.floats),), a.floats),
    }
    return next((read[a.name](a) for a in node.attribute if a.name in read and not a.ref_attr_name), None)


def _elements(dims: Collection[int]) -> int:
    count = 1
    for size in dims:
        count *= size
    return count


# --- function bodies -----------------------------------------------------------------------------------


def _inlined(
    function: onnx.FunctionProto, call: Call, given: Mapping[str, Value], model: onnx.ModelProto
) -> onnx.ModelProto:
    """The body of `function` as a model: attributes filled in, inputs typed as this call gives them."""
    attributes = {a.name: a for a in (*function.attribute_proto, *call.node.attribute)}
    graph = onnx.GraphProto(name=function.name)
    graph.node.extend(_filled(node, attributes) for node in function.node)
    graph.value_info.extend(function.value_info)
    for name, value in given.items():
        if value.fixed:
            graph.initializer.append(_as_initializer(name, value))
        else:
            graph.input.append(_as_input(name, value))
    graph.output.extend(onnx.ValueInfoProto(name=name) for name in function.output)
    body = onnx.ModelProto(ir_version=model.ir_version, graph=graph)
    body.opset_import.extend(function.opset_import)
    body.functions.extend(model.functions)
    return body


def _filled(node: onnx.NodeProto, attributes: Mapping[str, onnx.AttributeProto]) -> onnx.NodeProto:
    """`node` with references to the function's attributes replaced; an absent optional one is dropped."""
    filled = onnx.NodeProto()
    filled.CopyFrom(node)
    del filled.attribute[:]
    for attribute in node.attribute:
        if attribute.ref_attr_name and attribute.ref_attr_name not in attributes:
            continue
        entry = filled.attribute.add()
        entry.CopyFrom(attributes[attribute.ref_attr_name] if attribute.ref_attr_name else attribute)
        entry.name = attribute.name
        if entry.type == onnx.AttributeProto.GRAPH:
            nodes = [_filled(inner, attributes) for inner in entry.g.node]
            del entry.g.node[:]
            entry.g.node.extend(nodes)
    return filled


def _as_initializer(name: str, value: Value) -> onnx.TensorProto:
    if value.constant is not None:
        return numpy_helper.from_array(value.constant, name)
    dims = [size or 0 for size in value.shape or ()]
    tensor = onnx.TensorProto(name=name, dims=dims, data_type=value.dtype or 0)
    tensor.data_location = onnx.TensorProto.EXTERNAL
    return tensor


def _as_input(name: str, value: Value) -> onnx.ValueInfoProto:
    info = onnx.ValueInfoProto(name=name)
    if value.dtype is not None:
        info.type.tensor_type.elem_type = value.dtype
    if value.shape is not None:
        info.type.tensor_type.shape.SetInParent()
    for size in value.shape or ():
        dim = info.type.tensor_type.shape.dim.add()
        if size is not None:
            dim.dim_value = size
    return info
