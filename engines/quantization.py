"""Int8 graphs: which numbers get eight bits, with what range, and which layers do not bear it.

ONNX Runtime's quantizer writes the graph: QuantizeLinear and DequantizeLinear around the layers that have
weights, with the ranges of `calibration`. A
layer stays float32 where measurement asks for it: the layers are ranked by what the answers lose when each
alone is quantized, and how many of them is found by bisection.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from saccade.engines.calibration import Ranges, Say
from saccade.engines.engine import Arrays
from saccade.engines.islands import least_count
from saccade.engines.scratch import opened
from saccade.errors import ExportError

WEIGHTED = frozenset({"Conv", "Gemm", "MatMul"})
# Between convolutions they are computed in int8 too, so that maps are not widened and narrowed again.
BETWEEN = frozenset({"Relu", "Add", "AveragePool", "MaxPool"})


@dataclass(frozen=True, slots=True)
class Form:
    """How a runtime wants its graph.

    symmetric: activations are int8 with zero point 0, else uint8 with any. bias: as int32. results:
    convolutions and what is between them give int8 as well as read it; without, layers only read it.
    """

    name: str
    symmetric: bool
    bias: bool
    results: bool


# ONNX Runtime multiplies uint8 by int8 and fuses a convolution only with its rounded result. TensorRT wants
# zero points of 0, a float bias, and no Q/DQ between a convolution and what follows it.
FORMS: Mapping[str, Form] = {
    form.name: form
    for form in (
        Form("cpu", symmetric=False, bias=True, results=True),
        Form("tensorrt", symmetric=True, bias=False, results=False),
    )
}


@dataclass(frozen=True, slots=True)
class Kept:
    """What is left of float32's answers.

    error: root mean square of the difference, as a share of the answers' spread between pictures. agreement:
    share of pictures with the same best class. expected_loss: of accuracy, in 0..1, as float32's own
    probabilities have it: what it gave its best class, less what it gave the one chosen now. None where
    answers are no classes.
    """

    error: float
    agreement: float | None
    expected_loss: float | None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Judge:
    """Pictures with float32's answers to them. classes: the one output is logits."""

    feeds: Sequence[Arrays]
    answers: Mapping[str, NDArray[Any]]
    classes: bool

    def first(self, batches: int) -> Judge:
        """The same of the first pictures only."""
        feeds = self.feeds[:batches]
        count = sum(len(each["image"]) for each in feeds)
        return Judge(feeds, {name: each[:count] for name, each in self.answers.items()}, self.classes)

    def __call__(self, model: onnx.ModelProto) -> Kept:
        return self.compare(answered(model, self.feeds))

    def compare(self, actual: Mapping[str, NDArray[Any]]) -> Kept:
        """Of the worst output."""
        error = max(_error(actual[name], each) for name, each in self.answers.items())
        if not self.classes:
            return Kept(error, None, None)
        ((name, expected),) = self.answers.items()
        best, chosen = expected.argmax(1), np.nan_to_num(actual[name], nan=-np.inf).argmax(1)
        powers = np.exp(expected - expected.max(1, keepdims=True))
        shares = powers / powers.sum(1, keepdims=True)
        rows = np.arange(len(best))
        loss = float((shares[rows, best] - shares[rows, chosen]).mean())
        return Kept(error, float((best == chosen).mean()), loss)


def judge(model: onnx.ModelProto, feeds: Sequence[Arrays], *, classes: bool) -> Judge:
    """What `model` itself answers is right."""
    return Judge(feeds, answered(model, feeds), classes)


def answered(model: onnx.ModelProto, feeds: Sequence[Arrays]) -> dict[str, NDArray[Any]]:
    """All outputs of ONNX Runtime for all feeds."""
    with opened(model) as engine:
        rows = [engine.run(feed) for feed in feeds]
    return {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}


def _error(actual: NDArray[Any], expected: NDArray[Any]) -> float:
    spread = float(np.sqrt(np.square(expected - expected.mean(0), dtype=np.float64).mean()))
    error = float(np.sqrt(np.square(actual.astype(np.float64) - expected).mean()))
    return error / max(spread, 1e-30) if np.isfinite(error) else np.inf


# --- which nodes ------------------------------------------------------------------------------------------


def layers(model: onnx.ModelProto) -> list[str]:
    """Names of the nodes that multiply what they read by constant weights, in the graph's order."""
    stored = {tensor.name for tensor in model.graph.initializer}
    return [
        node.name
        for node in model.graph.node
        if node.op_type in WEIGHTED and node.input[1] in stored and node.input[0] not in stored
    ]


def _quantized_nodes(model: onnx.ModelProto, form: Form, float32: Collection[str]) -> list[onnx.NodeProto]:
    """The layers that are not to stay float32, and what is between quantized convolutions."""
    chosen = set(layers(model)) - set(float32)
    maps: set[str] = set()
    found = []
    for node in model.graph.node:
        between = form.results and node.op_type in BETWEEN and {*node.input} <= maps
        if node.name in chosen or between:
            found.append(node)
            if between or node.op_type == "Conv":
                maps.update(node.output)
    return found


def quantized(
    model: onnx.ModelProto, form: Form, ranges: Ranges, float32: Collection[str] = ()
) -> onnx.ModelProto:
    """`model` with Q/DQ around all layers but those in `float32`; weights are int8, a scale per channel."""
    from onnxruntime.quantization import CalibrationMethod, QuantType
    from onnxruntime.quantization.calibrate import TensorsData
    from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

    copied = onnx.ModelProto()
    copied.CopyFrom(model)
    nodes = _quantized_nodes(model, form, float32)
    if not nodes:  # an empty list means all to the quantizer
        return copied
    pairs = {name: tuple(np.float32(each) for each in pair) for name, pair in ranges.items()}
    quantizer = QDQQuantizer(
        copied,
        per_channel=True,
        reduce_range=not form.symmetric and not has_dot_products(),
        weight_qType=QuantType.QInt8,
        activation_qType=QuantType.QInt8 if form.symmetric else QuantType.QUInt8,
        tensors_range=TensorsData(CalibrationMethod.MinMax, pairs),
        nodes_to_quantize=[node.name for node in nodes],
        nodes_to_exclude=[],
        op_types_to_quantize=sorted({node.op_type for node in nodes}),
        extra_options={
            "ActivationSymmetric": form.symmetric,
            "WeightSymmetric": True,
            "QuantizeBias": form.bias,
            "OpTypesToExcludeOutputQuantization": ["MatMul", "Gemm"] if form.results else sorted(WEIGHTED),
        },
    )
    quantizer.quantize_model()
    quantizer.model.topological_sort()
    result: onnx.ModelProto = quantizer.model.model
    onnx.checker.check_model(result)
    return result


def tensors(model: onnx.ModelProto, form: Form) -> list[str]:
    """Everything computed that a quantized node reads or gives: what needs a range."""
    stored = {tensor.name for tensor in model.graph.initializer}
    names = (name for node in _quantized_nodes(model, form, ()) for name in chain(node.input, node.output))
    return [name for name in dict.fromkeys(names) if name and name not in stored]


def has_dot_products() -> bool:
    """Whether this CPU sums products of int8 in 32 bits (VNNI, or ARM). Others saturate at 16: 7 bits fit."""
    if platform.machine() not in ("x86_64", "AMD64"):
        return True
    info = Path("/proc/cpuinfo")
    return not info.is_file() or "_vnni" in info.read_text(encoding="utf-8")


# --- which layers stay float32 ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Search:
    """The graph that meets the tolerance. float32: layers left so, with the error that each alone causes
    (None for one that was asked for). runs: graphs that were judged.
    """

    model: onnx.ModelProto
    method: str
    kept: Kept
    float32: Mapping[str, float | None]
    runs: int


def search(
    model: onnx.ModelProto,
    form: Form,
    ranges: Mapping[str, Ranges],
    judge: Judge,
    meets: Callable[[Kept], bool],
    *,
    asked: Collection[str] = (),
    automatic: bool = True,
    say: Say = lambda step: None,
) -> Search:
    """Quantize with the method that errs least, and with as few float32 layers as `meets` asks for.

    asked: layers that stay float32 anyway. automatic: False takes no others, whatever is lost.
    """
    tried: dict[str, tuple[onnx.ModelProto, Kept]] = {}
    for method, each in ranges.items():
        say(f"judging {form.name} ranges by {method}")
        made = quantized(model, form, each, asked)
        tried[method] = made, judge(made)
    method = min(tried, key=lambda name: tried[name][1].error)
    named: dict[str, float | None] = dict.fromkeys(asked)
    if meets(tried[method][1]) or not automatic:
        return Search(tried[method][0], method, tried[method][1], named, len(tried))
    candidates = [name for name in layers(model) if name not in named]
    few = judge.first(max(1, len(judge.feeds) // 4))
    errors = {}
    for index, name in enumerate(candidates):
        say(f"{form.name}: quantizing layer {index + 1} of {len(candidates)} alone")
        others = [each for each in (*candidates, *named) if each != name]
        errors[name] = few(quantized(model, form, ranges[method], others)).error
    ranked = sorted(errors, key=lambda name: -errors[name])
    judged: dict[int, tuple[onnx.ModelProto, Kept]] = {}

    def enough(count: int) -> bool:
        say(f"judging {form.name} with {count} of {len(ranked)} layers in float32")
        made = quantized(model, form, ranges[method], [*named, *ranked[:count]])
        judged[count] = made, judge(made)
        return meets(judged[count][1])

    count = least_count(enough, 1, len(ranked))
    if count is None:
        raise ExportError(f"the answers differ even with every layer in float32: {judged[len(ranked)][1]}")
    named |= {name: errors[name] for name in ranked[:count]}
    found = {method: judged[count]}
    for other in ranges.keys() - {method}:  # with the worst layers gone, another may err less
        made = quantized(model, form, ranges[other], named)
        found[other] = made, judge(made)
    best = min((each for each in found if meets(found[each][1])), key=lambda each: found[each][1].error)
    runs = len(tried) + len(errors) + len(judged) + len(found) - 1
    return Search(found[best][0], best, found[best][1], named, runs)
