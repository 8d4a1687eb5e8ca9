"""The restrictions of TensorRT's operators, as functions of one node.

A check sees attributes, constants, types and shapes as far as shape inference knows them, and answers None
(holds), "restricted" (broken) or "unknown" (only TensorRT can tell).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import onnx

from saccade.engines.tensorrt.operators import Call, Finding, Value, operator_table

Check = Callable[[Call], Finding | None]


def check_operator(call: Call) -> Finding | None:
    """The first restriction of a supported operator that `call` does not certainly meet."""
    check = CHECKS.get(call.node.op_type)
    return _check_types(call) or (check(call) if check else None)


# --- types ---------------------------------------------------------------------------------------------

_NAMES = {
    onnx.TensorProto.FLOAT: "FP32",
    onnx.TensorProto.FLOAT16: "FP16",
    onnx.TensorProto.BFLOAT16: "BF16",
    onnx.TensorProto.FLOAT8E4M3FN: "FP8",
    onnx.TensorProto.FLOAT4E2M1: "FP4",
    # Documented: cast to FP32 by the parser, so an operator that takes FP32 takes it.
    onnx.TensorProto.DOUBLE: "FP32",
}

# Operators whose type column speaks of what they produce: their inputs are shapes or nothing.
_TYPED_BY_OUTPUT = ("Constant", "ConstantOfShape", "RandomNormal", "RandomUniform")
_TYPED_BY_BODY = ("If", "Loop", "Scan")


def tensorrt_type(dtype: int) -> str:
    """TensorRT's name of an ONNX element type; ONNX's own where TensorRT has none."""
    return _NAMES.get(dtype) or onnx.TensorProto.DataType.Name(dtype)


def _check_types(call: Call) -> Finding | None:
    allowed = operator_table().types[call.node.op_type]
    for value in _typed_values(call):
        if value.dtype is None:
            return Finding("unknown", "the type of its data could not be inferred")
        if tensorrt_type(value.dtype) not in allowed:
            found = tensorrt_type(value.dtype)
            return Finding("restricted", f"type {found} is not among {', '.join(sorted(allowed))}")
    return None


def _typed_values(call: Call) -> list[Value]:
    """The tensors that the table's type column speaks of.

    These are the inputs that share the type variable of the operator's data input; indices, shapes and axes
    have types of their own and are not in the table.
    """
    operator = call.node.op_type
    if operator in _TYPED_BY_BODY:
        return []
    if operator in _TYPED_BY_OUTPUT:
        return [v for v in call.outputs if v]
    data = 1 if operator == "Where" else 0
    formal = _formal_types(operator, call.opset)
    variable = formal[data] if len(formal) > data else ""
    shared = [v for i, v in enumerate(call.inputs) if v and formal[min(i, len(formal) - 1)] == variable]
    return shared + ([v for v in call.outputs if v] if operator in ("Cast", "CastLike") else [])


@cache
def _formal_types(operator: str, opset: int) -> tuple[str, ...]:
    """Type variables of the inputs, in order; the last one repeats for a variadic operator."""
    return tuple(parameter.type_str for parameter in onnx.defs.get_schema(operator, opset).inputs)


# --- restrictions --------------------------------------------------------------------------------------


def _broken(reason: str) -> Finding:
    return Finding("restricted", reason)


def _initializer(index: int, what: str) -> Check:
    """Input `index` must be an initializer or Constant: the parser does not fold arithmetic on it."""

    def check(call: Call) -> Finding | None:
        value = call.input(index)
        if value is None or value.fixed:
            return None
        return _broken(f"{what} must be an initializer, and is computed or fed at run time")

    return check


def _build_time(index: int, what: str) -> Check:
    """Input `index` must be known when the engine is built: what is computed from constants will do."""

    def check(call: Call) -> Finding | None:
        value = call.input(index)
        if value is None or value.fixed:
            return None
        if value.fed:
            return _broken(f"{what} must be known at build time, and is a graph input")
        return Finding("unknown", f"{what} is computed, and must resolve to a constant at build time")

    return check


def _only_first_output(call: Call) -> Finding | None:
    if any(call.outputs[1:]):
        return _broken(f"only the first output is supported, and {call.node.output[1:]} is asked for")
    return None


def _rank(index: int, ranks: tuple[int, ...], what: str) -> Check:
    def check(call: Call) -> Finding | None:
        value = call.input(index)
        if value is None:
            return None
        if value.shape is None:
            return Finding("unknown", f"the rank of {what} could not be inferred")
        if len(value.shape) not in ranks:
            return _broken(f"{what} must have rank {' or '.join(map(str, ranks))}, not {len(value.shape)}")
        return None

    return check


def _attribute(name: str, default: Any, *accepted: Any) -> Check:
    """Attribute `name` must be one of `accepted` (text compared as text)."""

    def check(call: Call) -> Finding | None:
        value = call.text(name, default) if isinstance(default, str) else call.attributes.get(name, default)
        return None if value in accepted else _broken(f"{name} is {value!r}; supported: {accepted}")

    return check


def _undilated(call: Call) -> Finding | None:
    dilations = call.attributes.get("dilations", [])
    return _broken(f"dilations {list(dilations)} must all be 1") if any(d != 1 for d in dilations) else None


def _all(*checks: Check) -> Check:
    """The first broken restriction, else the first undecided one."""

    def check(call: Call) -> Finding | None:
        found = [finding for one in checks if (finding := one(call))]
        return next((f for f in found if f.verdict == "restricted"), found[0] if found else None)

    return check


def _absent(indices: range, what: str) -> Check:
    def check(call: Call) -> Finding | None:
        return _broken(f"{what} must be absent") if any(call.input(i) for i in indices) else None

    return check


def _constant_kind(call: Call) -> Finding | None:
    refused = {"sparse_value", "value_string", "value_strings"} & set(call.attributes)
    return _broken(f"{refused.pop()} is not supported") if refused else None


def _symmetric_pads(call: Call) -> Finding | None:
    pads = list(call.attributes.get("pads", []))
    half = len(pads) // 2
    return _broken(f"pads {pads} differ at begin and end") if pads[:half] != pads[half:] else None


def _zero_point(call: Call) -> Finding | None:
    value = call.input(2)
    if value is None:
        return None
    if value.constant is None:
        return Finding("unknown", "the zero point must be 0, and its value is not known here")
    return _broken("the zero point must be 0") if np.any(value.constant.astype(np.float32)) else None


def _not_training(call: Call) -> Finding | None:
    value = call.input(2)
    if value is None or (value.constant is not None and not np.any(value.constant)):
        return None
    return _broken("the training flag must be an initializer equal to False")


def _static(call: Call) -> Finding | None:
    shape = call.inputs[0].shape if call.inputs[0] else None
    if shape is None:
        return Finding(
            "unknown", "the input must have static dimensions, and its shape could not be inferred"
        )
    return _broken(f"the input must have static dimensions, not {shape}") if None in shape else None


def _static_axis(call: Call) -> Finding | None:
    shape = call.inputs[0].shape if call.inputs[0] else None
    axis = call.attributes.get("axis", -1)
    if shape is not None and shape[axis] is not None:
        return None
    return Finding("unknown", f"the size of axis {axis} must be known at build time, and is dynamic here")


def _same_activations(call: Call) -> Finding | None:
    activations = list(call.attributes.get("activations", []))
    half = len(activations) // 2
    both = call.text("direction", "forward") == "bidirectional"
    if both and activations[:half] != activations[half:]:
        return _broken(f"activations {activations} must be the same in both directions")
    return None


def _branches(call: Call) -> Finding | None:
    then, other = (call.attributes[name].output for name in ("then_branch", "else_branch"))
    if same := {o.name for o in then} & {o.name for o in other}:
        return _broken(f"both branches name their output {sorted(same)[0]!r}")
    for a, b in zip(then, other, strict=False):
        ranks = [len(o.type.tensor_type.shape.dim) for o in (a, b) if o.type.tensor_type.HasField("shape")]
        if len(ranks) == 2 and ranks[0] != ranks[1]:
            return _broken(f"branch outputs {a.name!r} and {b.name!r} have ranks {ranks[0]} and {ranks[1]}")
    return None


def _loop(call: Call) -> Finding | None:
    carried = len(call.node.input) - 2
    trips = call.input(0)
    if len(call.node.output) > carried and not (trips and trips.fixed):
        return Finding("unknown", "a scan output needs a trip count that is known at build time")
    return None


def _top_k(call: Call) -> Finding | None:
    value = call.input(1)
    if value is None or value.constant is None:
        return Finding("unknown", "K must be below 3840, and its value is not known here")
    k = int(value.constant.reshape(-1)[0])
    return _broken(f"K is {k} and must be below 3840") if k >= 3840 else None


def _position_ids(call: Call) -> Finding | None:
    value = call.input(3)
    if value is None or value.dtype == onnx.TensorProto.INT64:
        return None
    return _broken("position_ids must be INT64")


def _real_signal(call: Call) -> Finding | None:
    shape = call.inputs[0].shape if call.inputs[0] else None
    return _broken("the signal must be real") if shape and len(shape) == 3 and shape[-1] == 2 else None


def _resize_axes(call: Call) -> Finding | None:
    axes, shape = call.attributes.get("axes"), call.inputs[0].shape if call.inputs[0] else None
    if axes is None or (shape is not None and list(axes) == list(range(len(shape)))):
        return None
    fixed = [value for value in (call.input(2), call.input(3)) if value]
    return (
        None
        if all(v.fixed for v in fixed)
        else _broken(f"axes {list(axes)} with scales computed at run time")
    )


_REDUCTIONS = ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "Sum", "SumSquare")

CHECKS: dict[str, Check] = {
    "Attention": _all(
        *(_rank(i, (4,), what) for i, what in enumerate(("Q", "K", "V", "attn_mask"))),
        _absent(range(4, 7), "past_key, past_value and nonpad_kv_seqlen"),
        _only_first_output,
        _attribute("softcap", 0.0, 0.0),
        _attribute("qk_matmul_output_mode", 0, 0),
    ),
    "AveragePool": _all(_rank(0, (4, 5), "the input"), _undilated),
    "Constant": _constant_kind,
    "CumSum": _build_time(1, "the axis"),
    "DeformConv": _all(_rank(0, (3, 4), "the input"), _symmetric_pads),
    "DequantizeLinear": _zero_point,
    "Dropout": _not_training,
    "EyeLike": _static,
    "GRU": _same_activations,
    "GridSample": _rank(0, (4,), "the input"),
    "Hardmax": _static_axis,
    "If": _branches,
    "LSTM": _all(_same_activations, _attribute("input_forget", 0, 0), _attribute("layout", 0, 0)),
    "LayerNormalization": _only_first_output,
    "Loop": _loop,
    "LpPool": _undilated,
    "MaxPool": _all(_rank(0, (4, 5), "the input"), _only_first_output, _undilated),
    "OneHot": _build_time(1, "the depth"),
    "QuantizeLinear": _zero_point,
    "RNN": _same_activations,
    **{f"Reduce{kind}": _initializer(1, "axes") for kind in _REDUCTIONS},
    "Resize": _all(
        _attribute("antialias", 0, 0),
        _attribute("mode", "nearest", "nearest", "linear"),
        _attribute(
            "coordinate_transformation_mode",
            "half_pixel",
            "half_pixel",
            "pytorch_half_pixel",
            "tf_half_pixel_for_nn",
            "asymmetric",
            "align_corners",
        ),
        _attribute(
            "nearest_mode", "round_prefer_floor", "floor", "ceil", "round_prefer_floor", "round_prefer_ceil"
        ),
        _attribute("keep_aspect_ratio_policy", "stretch", "stretch"),
        _resize_axes,
    ),
    "RotaryEmbedding": _position_ids,
    "STFT": _all(_real_signal, _initializer(1, "frame_step"), _initializer(2, "window")),
    "ScatterND": _attribute("reduction", "none", "none"),
    "Squeeze": _build_time(1, "axes"),
    "TensorScatter": _all(_rank(0, (4,), "past_cache"), _rank(1, (4,), "update"), _attribute("axis", -2, -2)),
    "TopK": _all(_attribute("sorted", 1, 1), _top_k),
    "Unsqueeze": _build_time(1, "axes"),
}

# Restrictions of the table that change numbers and refuse nothing.
REMARKS_ONLY = frozenset({"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"})
