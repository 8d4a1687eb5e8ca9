"""On a GPU: shipped PTX through the driver, and the torch operators, against the NumPy references.

Status: unverified. No GPU was at hand when these were written; `make test-gpu` runs them.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from tests.engines.kernels.cases import CLASSIFICATION, DETECTION, SMALL, Case

from saccade.engines.kernels import driver, ptx, resize_frames
from saccade.engines.kernels.launch import DTYPES
from saccade.engines.kernels.registry import KERNELS
from saccade.engines.kernels.torch_operators import resize_and_normalise
from saccade.models import attention, create
from saccade.models.card import Preprocessing

CASES = (*SMALL, *CLASSIFICATION, *DETECTION)
LABELS = [case.label for case in CASES]
TOLERANCE = {"float32": 1e-5, "float16": 3e-3, "bfloat16": 2.4e-2}

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU that torch can use"),
]


def capability() -> int:
    major, minor = torch.cuda.get_device_capability()
    return 10 * major + minor


def on_device(case: Case, dtype: str) -> list[torch.Tensor]:
    return [torch.from_numpy(each).to("cuda", getattr(torch, dtype)) for each in case.inputs()]


def served(dtype: str) -> None:
    if dtype == "bfloat16" and capability() < 80:
        pytest.skip("bfloat16 needs compute capability 8.0")


def check(y: torch.Tensor, case: Case, inputs: list[torch.Tensor], dtype: str) -> None:
    expected = case.expected([each.double().cpu().numpy() for each in inputs])
    np.testing.assert_allclose(y.double().cpu().numpy(), expected, rtol=0, atol=TOLERANCE[dtype])


def launch(case: Case, inputs: list[torch.Tensor], dtype: str, tile: int, guard: int = 0) -> torch.Tensor:
    """One launch of the shipped PTX; `guard` elements of NaN after the output must stay."""
    kernel = KERNELS[case.operator]
    head_dim = kernel.head_dim(case.shapes, case.attributes)
    function = driver.Function(ptx.find(kernel.name, dtype, capability(), D=head_dim, TILE=tile))
    shape = kernel.output_shape(case.shapes)
    room = torch.full((int(np.prod(shape)) + guard,), torch.nan, dtype=inputs[0].dtype, device="cuda")
    scalars = kernel.scalar_values(case.shapes, case.attributes)
    grid = kernel.grid(case.shapes, case.attributes, tile)
    pointers = [each.data_ptr() for each in inputs]
    function.launch(grid, [*pointers, *scalars, room.data_ptr()], torch.cuda.current_stream().cuda_stream)
    torch.cuda.synchronize()
    assert room[len(room) - guard :].isnan().all()
    return room[: len(room) - guard].reshape(shape)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES, ids=LABELS)
def test_shipped_ptx(case: Case, dtype: str) -> None:
    served(dtype)
    inputs = on_device(case, dtype)
    for tile in KERNELS[case.operator].tiles:
        check(launch(case, inputs, dtype, tile, guard=1024), case, inputs, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES, ids=LABELS)
def test_torch_operator(case: Case, dtype: str) -> None:
    served(dtype)
    inputs = on_device(case, dtype)
    operator = getattr(torch.ops.saccade, KERNELS[case.operator].name)
    check(operator(*inputs, **case.attributes), case, inputs, dtype)


@pytest.mark.parametrize("case", CLASSIFICATION[::3], ids=[case.label for case in CLASSIFICATION[::3]])
def test_replayed_from_a_cuda_graph(case: Case) -> None:
    inputs = on_device(case, "float16")
    operator = getattr(torch.ops.saccade, KERNELS[case.operator].name)
    operator(*inputs, **case.attributes)  # compiles
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = operator(*inputs, **case.attributes)
    for each in inputs:
        each.copy_(torch.randn_like(each))
    graph.replay()
    torch.cuda.synchronize()
    check(y, case, inputs, "float16")


def test_the_models_take_the_kernels_where_no_gradient_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[str] = []
    original = attention._kernel

    def seen(name: str, inputs: tuple[torch.Tensor, ...], head_dim: int) -> Any:
        kernel = original(name, inputs, head_dim)
        called.extend([name] if kernel else [])
        return kernel

    monkeypatch.setattr(attention, "_kernel", seen)
    torch.manual_seed(0)
    plain = create("stvit_r_swin_tiny").eval()
    fast = copy.deepcopy(plain).cuda()
    image = torch.randn(2, 3, 224, 224)
    with torch.inference_mode():
        expected, actual = plain(image), fast(image.cuda()).cpu()
    assert set(called) == {kernel.name for kernel in KERNELS.values()}
    torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-4)
    called.clear()
    fast(image.cuda()).sum().backward()
    with torch.inference_mode(), attention.without_kernels():
        fast(image.cuda())
    assert not called


@pytest.mark.parametrize(
    ("frame_hw", "resized_hw", "offset_hw"),
    [((720, 1280), (256, 455), (16, 116)), ((1280, 360), (910, 256), (343, 16))],
    ids=["wide", "tall"],
)
@pytest.mark.parametrize("resampler", ["opencv-bilinear", "pillow-bilinear", "pillow-bicubic"])
def test_frames(
    resampler: Any, frame_hw: tuple[int, int], resized_hw: tuple[int, int], offset_hw: tuple[int, int]
) -> None:
    card = Preprocessing(resampler=resampler)
    frames = np.random.default_rng(0).integers(0, 256, (3, *frame_hw, 3), dtype=np.uint8)
    plan = resize_frames.plan(card, frame_hw, resized_hw, (224, 224), offset_hw)
    actual = resize_and_normalise(torch.from_numpy(frames).cuda(), plan).cpu().numpy()
    std = np.array(card.std_rgb)[:, None, None]
    apart = np.abs(actual - resize_frames.reference(frames, plan)) * std * card.value_range
    assert apart.max() < 1.001
    assert (apart > 0.5).mean() < 0.01
