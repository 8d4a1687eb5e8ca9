"""Int8 graphs: ranges, equal channels, and layers that stay float32 where measurement asks for it."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper

from saccade.engines.calibration import BINS, METHODS, calibrate
from saccade.engines.equalization import equalize
from saccade.engines.quantization import (
    FORMS,
    Judge,
    Kept,
    answered,
    judge,
    layers,
    quantized,
    search,
    tensors,
)
from saccade.errors import ExportError

WIDTH = 32
LAYERS = 6
RNG = np.random.default_rng


def transformer(*, outlier: float = 1.0, sensitive: int | None = None) -> onnx.ModelProto:
    """LAYERS times x + W2 tanh(W1 norm(x)), then a head. outlier: the size of one channel of each norm.

    sensitive: the block whose second product reads, beside numbers near 1, one of 3000 that its weights
    ignore but for a trace: a step of int8 is then as large as all the others.
    """
    rng = RNG(2)
    lines, constants, last = [], {}, "x"
    for i in range(LAYERS):
        scale = np.ones(WIDTH, np.float32)
        scale[5] = outlier
        constants |= {f"s{i}": scale, f"b{i}": np.zeros(WIDTH, np.float32)}
        for name in ("w", "v"):
            constants[f"{name}{i}"] = np.linalg.qr(rng.standard_normal((WIDTH, WIDTH)))[0].astype(np.float32)
        constants[f"w{i}"][5] /= outlier
        lines += [
            f"n{i} = LayerNormalization <axis = -1> ({last}, s{i}, b{i})",
            f"h{i} = MatMul (n{i}, w{i})",
            f"t{i} = Tanh (h{i})",
        ]
        read = f"t{i}"
        if i == sensitive:
            constants[f"k{i}"] = np.float32([3000.0, *[0.0] * (WIDTH - 1)])
            constants[f"v{i}"][0] = 0
            lines.append(f"u{i} = Add (t{i}, k{i})")
            read = f"u{i}"
        lines += [f"p{i} = MatMul ({read}, v{i})", f"r{i} = Add ({last}, p{i})"]
        last = f"r{i}"
    constants["head"] = rng.standard_normal((WIDTH, 10)).astype(np.float32)
    lines.append(f"logits = MatMul ({last}, head)")
    return built(lines, constants, "float[batch, 4, 32] x", "float[batch, 4, 10] logits")


def convolutions() -> onnx.ModelProto:
    """A residual pair of convolutions between stem and head; one channel in it is 256 times as large."""
    rng = RNG(3)
    constants = {
        "stem": rng.standard_normal((16, 3, 3, 3)).astype(np.float32) / 5,
        "offset": rng.standard_normal(16).astype(np.float32),
        "one": rng.standard_normal((16, 16, 3, 3)).astype(np.float32) / 12,
        "two": rng.standard_normal((16, 16, 1, 1)).astype(np.float32) / 4,
        "head": rng.standard_normal((16, 10)).astype(np.float32),
        "axes": np.int64([2, 3]),
    }
    constants["one"][3] *= 256
    constants["two"][:, 3] /= 256
    lines = [
        "a = Conv <pads = [1, 1, 1, 1]> (x, stem, offset)",
        "b = Relu (a)",
        "c = Conv <pads = [1, 1, 1, 1]> (b, one)",
        "d = Relu (c)",
        "e = Conv (d, two)",
        "f = Add (e, b)",
        "g = Relu (f)",
        "m = ReduceMean <keepdims = 0> (g, axes)",
        "logits = Gemm (m, head)",
    ]
    return built(lines, constants, "float[batch, 3, 12, 12] x", "float[batch, 10] logits")


def built(lines: list[str], constants: dict[str, Any], takes: str, gives: str) -> onnx.ModelProto:
    model = onnx.parser.parse_model(
        f'<ir_version: 9, opset_import: ["" : 20]>\ng ({takes.replace(" x", " image")}) => ({gives}) '
        f"{{ x = Identity (image) {' '.join(lines)} }}"
    )
    for name, values in constants.items():
        model.graph.initializer.append(numpy_helper.from_array(values, name))
    for node in model.graph.node:
        node.name = node.output[0]
    return onnx.shape_inference.infer_shapes(model, strict_mode=True)


def feeds(model: onnx.ModelProto, seed: int = 0, batches: int = 3) -> list[dict[str, NDArray[Any]]]:
    (value,) = model.graph.input
    shape = [dim.dim_value or 8 for dim in value.type.tensor_type.shape.dim]
    rng = RNG(seed)
    whole = [*shape[:2], *[1] * (len(shape) - 2)]  # what a mean over all pixels leaves of a picture
    noise = [rng.standard_normal(shape) + 2 * rng.standard_normal(whole) for _ in range(batches)]
    return [{"image": each.astype(np.float32)} for each in noise]


def ranges(model: onnx.ModelProto, form: str, *methods: str) -> Any:
    names = tensors(model, FORMS[form])
    return calibrate(model, names, feeds(model), methods or METHODS, lambda step: None)


def within(error: float) -> Any:
    return lambda kept: kept.error <= error


# --- ranges ----------------------------------------------------------------------------------------------


def test_ranges_hold_what_each_method_says() -> None:
    model = transformer()
    found = ranges(model, "cpu")
    seen = np.concatenate([answered_inner(model, "t2", feed).ravel() for feed in feeds(model)])
    low, high = found["minmax"]["t2"]
    assert (low, high) == (seen.min(), seen.max())
    limit = np.quantile(np.abs(seen), 0.9999)
    step = float(np.abs(seen).max()) / BINS
    assert max(found["percentile"]["t2"]) == pytest.approx(limit, abs=2 * step)
    for method in ("percentile", "entropy"):
        assert low <= found[method]["t2"][0] < 0 < found[method]["t2"][1] <= high


def answered_inner(model: onnx.ModelProto, name: str, feed: dict[str, NDArray[Any]]) -> NDArray[Any]:
    from saccade.engines.passes.outputs import with_outputs

    return answered(with_outputs(model, [name]), [feed])[name]


def test_entropy_cuts_off_what_is_rare_and_far() -> None:
    """Numbers of deviation 1 and a single one of 40: all but that fit in an eighth of the range."""
    model = built(
        ["logits = MatMul (x, w)"],
        {"w": np.eye(64, dtype=np.float32)},
        "float[n, 64] x",
        "float[n, 64] logits",
    )
    image = RNG(0).standard_normal((2000, 64)).astype(np.float32)
    image[0, 0] = 40.0
    (found,) = calibrate(model, ["x"], [{"image": image}], ["entropy"], lambda step: None).values()
    assert found["x"][1] < 10


def test_numbers_that_are_not_finite_are_refused() -> None:
    model = transformer()
    spoilt = [{"image": np.full_like(feeds(model)[0]["image"], np.nan)}]
    with pytest.raises(ExportError, match="not finite"):
        calibrate(model, tensors(model, FORMS["cpu"]), spoilt, METHODS, lambda step: None)


# --- equal channels --------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", [transformer(outlier=256.0), convolutions()], ids=["norms", "convolutions"])
@pytest.mark.parametrize("form", FORMS)
def test_equal_channels_change_nothing_and_save_int8(model: onnx.ModelProto, form: str) -> None:
    equal, joints = equalize(model, feeds(model))
    right = judge(model, feeds(model, seed=1), classes=False)
    assert joints > 0
    assert right(equal).error < 1e-6
    spoilt = right(quantized(model, FORMS[form], ranges(model, form, "minmax")["minmax"])).error
    saved = right(quantized(equal, FORMS[form], ranges(equal, form, "minmax")["minmax"])).error
    assert saved < 0.03 < 0.1 < spoilt


def test_a_channel_that_something_else_reads_stays_as_it_is() -> None:
    """The stem's map is read by a convolution and by an addition; a norm's by a product and the output."""
    equal, joints = equalize(convolutions(), feeds(convolutions()))
    assert joints == 1
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in equal.graph.initializer}
    np.testing.assert_array_equal(
        stored["offset"], numpy_helper.to_array(convolutions().graph.initializer[1])
    )


# --- the graph -------------------------------------------------------------------------------------------


def test_a_graph_for_tensorrt_has_zero_points_of_zero_and_float_biases() -> None:
    model = convolutions()
    made = quantized(model, FORMS["tensorrt"], ranges(model, "tensorrt", "minmax")["minmax"])
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in made.graph.initializer}
    kinds = Counter(node.op_type for node in made.graph.node)
    assert kinds["QuantizeLinear"] == 4
    assert kinds["DequantizeLinear"] == 8
    for node in made.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            assert stored[node.input[2]].dtype == np.int8
            assert not stored[node.input[2]].any()
        if node.op_type == "Conv" and len(node.input) > 2:
            assert stored[node.input[2]].dtype == np.float32


def test_a_graph_for_cpus_runs_its_convolutions_in_int8(tmp_path: Any) -> None:
    """ONNX Runtime's own fusions tell."""
    import onnxruntime

    model = convolutions()
    made = quantized(model, FORMS["cpu"], ranges(model, "cpu", "minmax")["minmax"])
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.optimized_model_filepath = str(tmp_path / "fused.onnx")
    onnxruntime.InferenceSession(made.SerializeToString(), options, providers=["CPUExecutionProvider"])
    kinds = Counter(node.op_type for node in onnx.load(tmp_path / "fused.onnx").graph.node)
    assert kinds["QLinearConv"] == 3
    assert not kinds["Conv"]


# --- which layers stay float32 ---------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("sensitive", [1, 4])
def test_a_layer_that_does_not_bear_int8_is_found(sensitive: int, form: str) -> None:
    model = transformer(sensitive=sensitive)
    right = judge(model, feeds(model, seed=1), classes=False)
    found = search(model, FORMS[form], ranges(model, form, "minmax", "percentile"), right, within(0.05))
    assert list(found.float32) == [f"p{sensitive}"]
    assert found.kept.error <= 0.05
    assert found.kept == right(found.model)


def test_layers_that_bear_int8_are_not_searched() -> None:
    model = transformer()
    right = judge(model, feeds(model, seed=1), classes=False)
    found = search(model, FORMS["cpu"], ranges(model, "cpu"), right, within(0.05))
    assert (found.float32, found.runs) == ({}, len(METHODS))


def test_what_is_asked_for_stays_float32_and_nothing_else_unless_automatic() -> None:
    model = transformer(sensitive=1)
    right = judge(model, feeds(model, seed=1), classes=False)
    found = search(
        model, FORMS["cpu"], ranges(model, "cpu", "minmax"), right, within(0.0), asked=["h3"], automatic=False
    )
    assert found.float32 == {"h3": None}
    names = {tensor.name for tensor in found.model.graph.initializer}
    assert "w3" in names
    assert "w2" not in names


def test_a_tolerance_that_float32_misses_is_an_error() -> None:
    model = transformer()
    right = judge(model, feeds(model), classes=False)
    wrong = Judge(right.feeds, {"logits": right.answers["logits"] + 9}, classes=False)
    with pytest.raises(ExportError, match="every layer in float32"):
        search(model, FORMS["cpu"], ranges(model, "cpu", "minmax"), wrong, within(0.01))


def test_layers_are_those_with_constant_weights() -> None:
    assert layers(convolutions()) == ["a", "c", "e", "logits"]


def test_expected_loss_is_what_float32_gave_its_own_choice() -> None:
    logits = np.log(np.float32([[0.7, 0.2, 0.1], [0.5, 0.4, 0.1]]))
    right = Judge([], {"logits": logits}, classes=True)
    kept: Kept = right.compare({"logits": logits[:, [0, 1, 2]]})
    assert (kept.agreement, kept.expected_loss) == (1.0, 0.0)
    swapped = np.float32([[3, 0, 0], [0, 3, 0]])
    kept = right.compare({"logits": swapped})
    assert kept.agreement == 0.5
    assert kept.expected_loss == pytest.approx((0.5 - 0.4) / 2)
    assert right.compare({"logits": np.full((2, 3), np.nan)}).error == np.inf
