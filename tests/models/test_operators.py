"""Every operator's ONNX body against its torch form, over shapes of the models and odd ones."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper

from saccade.models import attention
from saccade.models.operators import DOMAIN, OPERATORS, OPSET, PLUGIN_ATTRIBUTES, VERSION

Shapes = tuple[tuple[int, ...], ...]

SHIFTED = "ShiftedWindowAttention"
CROSS = "WindowCrossAttention"
SEEDED = "SeededWindowAttention"
TOKEN = "TokenAttention"

GENERATION = {"q_window": 3, "k_window": 14, "k_stride": 7, "k_before": 3}
REFINEMENT = {"q_window": 3, "k_window": 21, "k_stride": 7, "k_before": 7}
LOCAL = {"q_window": 3, "k_window": 3, "k_stride": 3, "k_before": 0}
RECOVERY = {"q_window": 7, "k_window": 27, "k_stride": 3, "k_before": 12}
SEEDS = {"q_window": 3, "k_window": 10, "k_stride": 4}


def _shifted(batch: int, height: int, width: int, heads: int, dim: int = 32, window: int = 7) -> Shapes:
    channels = 3 * heads * dim
    return (batch, height, width, channels), (channels,), (heads, window**2, window**2)


def _cross(batch: int, q_hw: tuple[int, int], k_hw: tuple[int, int], heads: int = 2, dim: int = 16) -> Shapes:
    channels = heads * dim
    return (batch, *q_hw, channels), (batch, *k_hw, 2 * channels), (2 * channels,)


def _semantic(height: int, width: int) -> tuple[int, int]:
    return 3 * -(-height // 7), 3 * -(-width // 7)


CASES: list[tuple[str, Shapes, Mapping[str, int]]] = [
    *[
        (SHIFTED, _shifted(batch, *size, heads=3), {"heads": 3, "window": 7, "shift": shift})
        for batch, size in [(1, (14, 14)), (2, (7, 7)), (3, (10, 17)), (1, (5, 3)), (2, (16, 20))]
        for shift in (0, 3)
    ],
    (SHIFTED, _shifted(2, 16, 16, heads=2, dim=16, window=8), {"heads": 2, "window": 8, "shift": 4}),
    (TOKEN, ((2, 6, 6, 64), (2, 6, 6, 128)), {"heads": 2}),
    (TOKEN, ((3, 14, 14, 96), (3, 1, 232, 192)), {"heads": 3}),
    (SEEDED, ((2, 6, 6, 64), (2, 6, 6, 128), (2, 14, 14, 128)), {"heads": 2, **SEEDS}),
    (SEEDED, ((1, 6, 6, 32), (1, 6, 6, 64), (1, 16, 16, 64)), {"heads": 2, **SEEDS}),
    *[
        (CROSS, _cross(batch, q_hw, k_hw), {"heads": 2, **mode})
        for batch, (height, width) in [
            (1, (14, 21)),
            (2, (10, 17)),
            (1, (13, 14)),
            (1, (16, 9)),
            (2, (8, 6)),
            (1, (2, 3)),
        ]
        for mode, q_hw, k_hw in [
            (GENERATION, _semantic(height, width), (height, width)),
            (REFINEMENT, _semantic(height, width), (height, width)),
            (LOCAL, _semantic(height, width), _semantic(height, width)),
            (RECOVERY, (height, width), _semantic(height, width)),
        ]
    ],
]
TORCH = {
    SHIFTED: attention.shifted_window_attention,
    TOKEN: attention.token_attention,
    CROSS: attention.window_cross_attention,
    SEEDED: attention.seeded_window_attention,
}


def _graph(name: str, shapes: Shapes, attributes: Mapping[str, int], *, dynamic: bool) -> onnx.ModelProto:
    operator = OPERATORS[name]
    inputs = [
        helper.make_tensor_value_info(
            label,
            TensorProto.FLOAT,
            [f"{label}_{i}" for i in range(4)] if dynamic and len(shape) == 4 else list(shape),
        )
        for label, shape in zip(operator.inputs, shapes, strict=True)
    ]
    node = helper.make_node(name, operator.inputs, ["y"], domain=DOMAIN, **attributes, **PLUGIN_ATTRIBUTES)
    graph = helper.make_graph(
        [node], "one", inputs, [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None] * 4)]
    )
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, VERSION)]
    function = onnx.parser.parse_function(operator.body)
    model = helper.make_model(graph, opset_imports=opsets, functions=[function], ir_version=9)
    onnx.checker.check_model(model, full_check=True)
    return model


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize(("name", "shapes", "attributes"), CASES)
def test_body_equals_torch(name: str, shapes: Shapes, attributes: Mapping[str, int], dynamic: bool) -> None:
    rng = np.random.default_rng(0)
    inputs = [rng.standard_normal(shape, dtype=np.float32) for shape in shapes]
    session = onnxruntime.InferenceSession(
        _graph(name, shapes, attributes, dynamic=dynamic).SerializeToString(),
        providers=["CPUExecutionProvider"],
    )
    (actual,) = session.run(None, dict(zip(OPERATORS[name].inputs, inputs, strict=True)))
    expected = TORCH[name](*map(torch.from_numpy, inputs), **attributes)
    np.testing.assert_allclose(actual, expected.numpy(), rtol=1e-4, atol=5e-6)
