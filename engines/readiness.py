"""Will this graph build in TensorRT? A report per node, made from the file alone.

Every node is bound as TensorRT's parser would bind it (`saccade.engines.tensorrt.binding`), then held to the
operator table: operator, types, restrictions. Bodies of local functions are checked once per distinct call
(input types, constants and attributes), control flow inside its branches. The report predicts; NVIDIA's
parser decides: `saccade.engines.tensorrt.parser.judge`.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import onnx
from onnx import helper

from saccade.engines.known_values import infer, inlined, values_of, without_weights
from saccade.engines.tensorrt.binding import Creator, Parser, bind
from saccade.engines.tensorrt.checks import check_operator
from saccade.engines.tensorrt.operators import Call, Value, operator_table
from saccade.errors import EngineError

Verdict = Literal["supported", "restricted", "unsupported", "unknown", "plugin or function"]
ACCEPTED: tuple[Verdict, ...] = ("supported", "plugin or function")

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
    inferred, failure = infer(without_weights(model, folder))
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
        scope = dataclasses.replace(scope, values={**scope.values, **values_of(graph), **(given or {})})
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
        model = inlined(function, call, given, self.model)
        key = (function.name, model.graph.SerializeToString(deterministic=True))
        if key in self.seen:
            return
        self.seen.add(key)
        inferred, _ = infer(model)
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
