"""The torch operators: the plain form on CPU, shapes without data, what a kernel does not serve."""

from __future__ import annotations

import pytest
import torch
from tests.engines.kernels.cases import SMALL, Case
from torch._subclasses import FakeTensorMode

from saccade.engines.kernels import resize_frames
from saccade.engines.kernels.registry import KERNELS
from saccade.engines.kernels.torch_operators import resize_and_normalise
from saccade.errors import InputError
from saccade.models import attention
from saccade.models.card import Preprocessing

CASES = SMALL[::5]
LABELS = [case.label for case in CASES]


def operator(case: Case) -> torch._ops.OpOverloadPacket:
    found: torch._ops.OpOverloadPacket = getattr(torch.ops.saccade, KERNELS[case.operator].name)
    return found


@pytest.mark.parametrize("case", CASES, ids=LABELS)
def test_on_cpu_an_operator_is_the_plain_form(case: Case) -> None:
    inputs = [torch.from_numpy(each) for each in case.inputs()]
    plain = getattr(attention, KERNELS[case.operator].name)(*inputs, **case.attributes)
    assert torch.equal(operator(case)(*inputs, **case.attributes), plain)


@pytest.mark.parametrize("case", CASES, ids=LABELS)
def test_tensors_without_data_get_a_shape(case: Case) -> None:
    inputs = [torch.empty(shape, dtype=torch.float16, device="meta") for shape in case.shapes]
    y = operator(case)(*inputs, **case.attributes)
    assert tuple(y.shape) == case.expected(case.inputs()).shape
    assert y.dtype == torch.float16


def test_every_kernel_is_registered_under_its_name() -> None:
    for name, kernel in KERNELS.items():
        assert kernel.operator.name == name
        assert name.lower() == kernel.name.replace("_", "")
        assert hasattr(torch.ops.saccade, kernel.name)


def test_a_kernel_says_what_it_does_not_serve() -> None:
    case = next(case for case in SMALL if case.operator == "TokenAttention")
    kernel = KERNELS[case.operator]
    assert kernel.refusal(case.shapes, case.attributes) is None
    wide = ((1, 4, 4, 64), (1, 4, 4, 128))
    assert "head dimension" in str(kernel.refusal(wide, {"heads": 1}))
    tall = ((1, 2**16, 2**16, 16), (1, 1, 1, 32))
    assert "68719476736 values in a tensor; offsets of 32 bits" in str(kernel.refusal(tall, {"heads": 1}))
    many = ((70_000, 1, 1, 16), (70_000, 1, 1, 32))
    assert "a grid of (1, 1, 70000) programs" in str(kernel.refusal(many, {"heads": 1}))
    none = ((0, 1, 1, 16), (0, 1, 1, 32))
    assert "a grid of (1, 1, 0) programs" in str(kernel.refusal(none, {"heads": 1}))
    shifted = KERNELS["ShiftedWindowAttention"]
    windows = ((1, 1800, 1800, 48), (48,), (1, 49, 49))
    assert "66564" in str(shifted.refusal(windows, {"heads": 1, "window": 7, "shift": 0}))
    # The position bias has no batch: all of it is one picture's.
    bias = ((1, 256, 256, 48), (48,), (1, 2**16, 2**16))
    assert "4294967296 values" in str(shifted.refusal(bias, {"heads": 1, "window": 256, "shift": 0}))


def test_an_operator_refuses_what_its_kernel_does_not_serve() -> None:
    with FakeTensorMode():
        q = torch.empty((70_000, 1, 1, 16), device="cuda")
        kv = torch.empty((70_000, 1, 1, 32), device="cuda")
        with pytest.raises(
            InputError, match=r"token_attention of .*\(1, 1, 70000\) programs .*without_kernels"
        ):
            torch.ops.saccade.token_attention(q, kv, heads=1)


def test_frames_must_be_on_the_device() -> None:
    plan = resize_frames.plan(Preprocessing(), (8, 8), (4, 4), (4, 4))
    with pytest.raises(InputError, match=r"\(N, 8, 8, 3\) torch.uint8 on a GPU"):
        resize_and_normalise(torch.zeros((1, 8, 8, 3), dtype=torch.uint8), plan)
