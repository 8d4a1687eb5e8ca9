"""Trained networks keep their answers in int8, also where planted outliers break a naive conversion."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from digits import nets, scenes
from digits.planted_outliers import INT8_BREAKER, plant
from saccade.engines.calibration import calibrate
from saccade.engines.equalization import equalize
from saccade.engines.export import export_graph
from saccade.engines.inputs import picture
from saccade.engines.precision import typed
from saccade.engines.quantization import FORMS, answered, judge, quantized, search, tensors
from saccade.models.deploy import merge

COUNT = 60


def feeds(pictures: scenes.Pictures, batch: int = 10) -> list[dict[str, NDArray[Any]]]:
    starts = range(0, len(pictures), batch)
    return [{"image": nets.inputs(pictures.images[start : start + batch]).numpy()} for start in starts]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["nvit", "deepmad"])
def test_planted_outliers_break_naive_int8_and_not_ours(name: str) -> None:
    chosen = nets.net(name)
    module = merge(plant(nets.trained(name), INT8_BREAKER))
    model = ir.to_proto(typed(export_graph(module, [picture((chosen.size_px, chosen.size_px))])))
    seen = feeds(scenes.render("train", COUNT, 77).at(chosen.size_px))
    unseen = scenes.held_out(2 * COUNT).at(chosen.size_px)
    form = FORMS["cpu"]

    def accuracy(graph: Any) -> float:
        return float((answered(graph, feeds(unseen))["logits"].argmax(1) == unseen.labels).mean())

    def ranges(graph: Any) -> Any:
        return calibrate(graph, tensors(graph, form), seen[::2], ["minmax"], lambda step: None)

    exact = accuracy(model)
    assert exact > 0.9
    assert accuracy(quantized(model, form, ranges(model)["minmax"])) < 0.5
    equal, _ = equalize(model, seen[:1])
    right = judge(equal, seen[1::2], classes=True)
    found = search(equal, form, ranges(equal), right, lambda kept: kept.error <= 0.03)
    assert abs(accuracy(found.model) - exact) <= 0.01
    assert len(found.float32) <= 8
    assert np.isfinite(found.kept.error)
