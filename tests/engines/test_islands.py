"""Measured float32 islands: found where range or rounding ask for them, nowhere else, in few runs."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper

from saccade.engines.conformance import Sample
from saccade.engines.islands import HEADROOM, measure, search
from saccade.engines.precision import PRECISIONS
from saccade.engines.scratch import opened
from saccade.errors import ExportError

LAYERS = 12


def chain(**factors: float) -> onnx.ModelProto:
    """x -> LAYERS times tanh(x W), W orthogonal. n3=1e3 adds 1000 behind layer 3 and takes it off again."""
    rng = np.random.default_rng(2)
    lines, constants, last = [], {}, "x"
    for i in range(LAYERS):
        constants[f"w{i}"] = np.linalg.qr(rng.standard_normal((16, 16)))[0].astype(np.float32)
        lines += [f"h{i} = MatMul ({last}, w{i})", f"t{i} = Tanh (h{i})"]
        last = f"t{i}"
        if f"n{i}" in factors:
            constants[f"c{i}"] = np.float32([factors[f"n{i}"]])
            lines += [f"up{i} = Add (t{i}, c{i})", f"down{i} = Sub (up{i}, c{i})"]
            last = f"down{i}"
    text = f"g (float[batch, 16] x) => (float[batch, 16] y) {{ {' '.join(lines)} y = Identity ({last}) }}"
    model = onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["" : 20]>\n{text}')
    for name, values in constants.items():
        model.graph.initializer.append(numpy_helper.from_array(values, name))
    for node in model.graph.node:
        node.name = node.output[0]
    return onnx.shape_inference.infer_shapes(model, strict_mode=True)


def sample(model: onnx.ModelProto, roundoffs: float, precision: str, seed: int = 0) -> Sample:
    """What `model` gives for noise, to be met within `roundoffs` of the largest value."""
    feeds: dict[str, NDArray[Any]] = {
        "x": np.random.default_rng(seed).standard_normal((4, 16)).astype(np.float32)
    }
    with opened(model) as engine:
        outputs = engine.run(feeds)
    tolerance = roundoffs * PRECISIONS[precision].roundoff * float(np.abs(outputs["y"]).max())
    return Sample(feeds, outputs, {"y": tolerance})


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_graph_that_bears_the_precision_has_no_measured_islands(precision: str) -> None:
    model = chain()
    found = search(model, precision, [sample(model, 20, precision)])
    assert found.measured == {}
    assert found.runs == 2
    assert all(0 < row.largest <= row.tolerance for row in found.differences)


def test_nodes_near_the_end_of_the_range_are_islands_before_any_overflows() -> None:
    """20,000 fits float16; eight times that, as other pictures may give, does not."""
    model = chain(n5=20_000.0)
    found = search(model, "fp16", [sample(model, 60, "fp16")])
    assert set(found.measured) == {"up5", "down5"}
    assert all(effect.magnitude * HEADROOM > 65504 for effect in found.measured.values())
    assert {found.converted.islands[name] for name in found.measured} == {"measured"}


@pytest.mark.parametrize(("precision", "large"), [("fp16", 700.0), ("bf16", 100.0)])
def test_rounding_that_costs_too_much_is_found_by_bisection(precision: str, large: float) -> None:
    """Adding and taking off a large number loses the digits of a small one, without leaving the range."""
    model = chain(n5=large)
    samples = [sample(model, 30, precision), sample(model, 30, precision, seed=1)]
    found = search(model, precision, samples)
    assert {"up5", "down5"} <= set(found.measured)
    assert len(found.measured) <= 4
    assert found.runs <= 3 + 2 * math.log2(3 * LAYERS)
    assert all(row.agrees for row in found.differences)


def test_a_tolerance_that_float32_misses_is_an_error() -> None:
    model = chain()
    impossible = sample(chain(n5=3.0), 0.0, "fp16")
    shifted = Sample(impossible.inputs, {"y": impossible.outputs["y"] + 1}, {"y": 1e-3})
    with pytest.raises(ExportError, match="with every node in float32"):
        search(model, "fp16", [shifted])


def test_an_overflow_is_measured_as_infinite() -> None:
    effects = measure(chain(n5=1e5), "bf16", [sample(chain(), 1, "bf16").inputs])
    assert effects["h3"].error < 4 * PRECISIONS["bf16"].roundoff
    squared = onnx.parser.parse_model(
        """<ir_version: 9, opset_import: ["" : 20]>
        g (float[batch, 16] x) => (float[batch, 16] y) { h = Mul (x, k)  q = Mul (h, h)  y = Tanh (q) }"""
    )
    squared.graph.initializer.append(numpy_helper.from_array(np.float32([1000.0]), "k"))
    for node in squared.graph.node:
        node.name = node.output[0]
    squared = onnx.shape_inference.infer_shapes(squared)
    found = measure(squared, "fp16", [sample(chain(), 1, "fp16").inputs])
    assert found["q"].error == np.inf
    assert found["h"].error == np.inf, "its reader overflows"
    assert found["q"].magnitude > 65504 > found["h"].magnitude
