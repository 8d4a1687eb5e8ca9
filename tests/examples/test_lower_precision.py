"""Trained networks keep their answers in fp16 and bf16, also where outliers break a naive conversion."""

from __future__ import annotations

import importlib
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from torch import nn

from digits import nets, scenes
from digits.planted_outliers import FLOAT16_BREAKER, plant
from saccade.conversion import with_tolerances
from saccade.engines import verify
from saccade.engines.conformance import Sample
from saccade.engines.export import export_graph
from saccade.engines.inputs import picture
from saccade.engines.islands import OPSET, search
from saccade.engines.passes.rounding import emulate
from saccade.engines.precision import PRECISIONS
from saccade.models.deploy import merge

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.fixture(scope="module", autouse=True)
def scripts() -> Any:
    """The example scripts can be imported."""
    sys.path.insert(0, str(EXAMPLES))
    yield
    sys.path.remove(str(EXAMPLES))


def exported(module: nn.Module, chosen: nets.Net) -> tuple[onnx.ModelProto, Sample]:
    """The graph, and a sample of noise with the float32 noise floor in the place of a tolerance."""
    inputs = [picture((chosen.size_px, chosen.size_px))]
    (expected,) = verify.expectations(module, inputs, ("logits",), batches=(2,))
    exact = {name: values.astype(np.float32) for name, values in expected.outputs.items()}
    return export_graph(module, inputs), Sample(expected.feeds, exact, dict(expected.noise_floors))


def kept(name: str, strength: float, precision: str, count: int) -> tuple[float, float, int]:
    """Accuracy of the naive float16 network and of ours, as shares of float32's; and the measured islands."""
    script = importlib.import_module("10_lower_precision")
    naive = importlib.import_module("04_break_naive_conversions").float16_accuracy
    chosen = nets.net(name)
    module = merge(plant(nets.trained(name), strength))
    pictures = scenes.held_out(count).at(chosen.size_px)
    graph, sample = exported(module, chosen)
    found = search(graph, precision, [with_tolerances(sample, PRECISIONS[precision].roundoff)])
    share = partial(_share, pictures.labels)
    plain = share(script.predictions(graph, pictures))
    low = share(script.predictions(emulate(found.converted.model, OPSET), pictures))
    return naive(module, pictures) / plain, low / plain, len(found.measured)


def _share(labels: np.ndarray[Any, Any], predicted: np.ndarray[Any, Any]) -> float:
    return float((predicted == labels).mean())


def test_outliers_that_break_float16_become_islands() -> None:
    """From noise alone: the headroom makes up for what the held-out pictures have and noise has not."""
    naive, ours, islands = kept("deepmad", FLOAT16_BREAKER, "fp16", 60)
    assert naive < 0.2
    assert ours == 1.0
    assert 0 < islands < 30


@pytest.mark.slow
@pytest.mark.parametrize("name", nets.NETS)
def test_every_demo_network_keeps_its_accuracy(name: str) -> None:
    """Converted as `saccade convert --pictures` does it."""
    script = importlib.import_module("10_lower_precision")
    (row,) = script.kept(nets.net(name), scenes.held_out(100), [FLOAT16_BREAKER])
    assert row.naive_float16 < 0.5 * row.float32
    assert row.islands["fp16"] > 0
    for precision in script.PRECISIONS:
        assert abs(row.accuracy[precision] - row.float32) <= 0.02, precision
