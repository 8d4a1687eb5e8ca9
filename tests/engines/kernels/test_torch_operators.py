"""The torch operators: the plain form on CPU, shapes without data, what a kernel does not serve."""

from __future__ import annotations

import pytest
import torch
from tests.engines.kernels.cases import SMALL, Case

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
    assert "32 bits" in str(kernel.refusal(tall, {"heads": 1}))
    assert "cannot be launched" in str(kernel.refusal(((70_000, 1, 1, 16), (70_000, 1, 1, 32)), {"heads": 1}))


def test_frames_must_be_on_the_device() -> None:
    plan = resize_frames.plan(Preprocessing(), (8, 8), (4, 4), (4, 4))
    with pytest.raises(InputError, match=r"\(N, 8, 8, 3\) torch.uint8 on a GPU"):
        resize_and_normalise(torch.zeros((1, 8, 8, 3), dtype=torch.uint8), plan)
