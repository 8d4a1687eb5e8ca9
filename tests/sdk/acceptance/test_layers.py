"""Semantic-token layers of a graph beside torch: right in ONNX Runtime, and a planted fault is named."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from saccade import bundle
from saccade.acceptance.layers import compare, has_layers, watched
from saccade.engines.passes.inline import inline
from saccade.engines.precision import convert
from saccade.engines.scratch import opened


@pytest.fixture(scope="module")
def model() -> onnx.ModelProto:
    demo = bundle.read(bundle.resolve("digits-stvit"))
    return onnx.load(demo.graphs["model"].files["source"])


@pytest.fixture(scope="module")
def feeds() -> dict[str, Any]:
    demo = bundle.read(bundle.resolve("digits-stvit"))
    return dict(bundle.sample_of(demo, "model").inputs)


@pytest.mark.parametrize(("precision", "roundoff"), [("fp32", 2.0**-24), ("fp16", 2.0**-11)])
def test_layers_agree_with_torch(
    model: onnx.ModelProto, feeds: dict[str, Any], precision: str, roundoff: float
) -> None:
    tested = model if precision == "fp32" else convert(model, precision).model
    assert has_layers(tested)
    with opened(watched(tested)) as engine:
        rows = list(compare(tested, feeds, engine.run(feeds), roundoff=roundoff))
    nodes = [node.name for node in tested.graph.node if node.domain == "saccade"]
    assert [row.node for row in rows] == nodes
    assert all(row.agrees for row in rows), max(rows, key=lambda row: row.share)


def test_a_planted_fault_is_named(model: onnx.ModelProto, feeds: dict[str, Any]) -> None:
    """A layer that answers with a little too much is found, and the layers behind it are not blamed."""
    with opened(watched(model)) as engine:
        answers = engine.run(feeds)
    nodes = [node for node in model.graph.node if node.domain == "saccade"]
    wrong = nodes[1]
    name = wrong.output[0]
    answers[name] = answers[name] * np.float32(1.001)
    rows = list(compare(model, feeds, answers, roundoff=2.0**-24))
    assert [row.node for row in rows if not row.agrees] == [wrong.name]


def test_a_graph_without_functions_has_none(model: onnx.ModelProto) -> None:
    assert not has_layers(inline(model))
    assert numpy_helper.to_array(model.graph.initializer[0]).size
