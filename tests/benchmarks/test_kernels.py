"""The kernels' benchmark: what it would measure is served, and without a GPU it says so."""

from __future__ import annotations

import pytest

from saccade.benchmarks import kernels
from saccade.engines.kernels.registry import KERNELS
from saccade.engines.tensorrt.gpu import find_gpu
from saccade.errors import EngineError


@pytest.mark.parametrize("batch", [1, 256])
def test_every_case_is_served_by_its_kernel(batch: int) -> None:
    cases = list(kernels.cases(batch))
    assert {case.operator for case in cases} == set(KERNELS)
    assert len({case.name for case in cases}) == len(cases)
    for case in cases:
        assert KERNELS[case.operator].refusal(case.shapes, case.attributes) is None, case.name


def test_arithmetic_is_that_of_both_products() -> None:
    found = {case.name: kernels.flops(case) for case in kernels.cases(2)}
    # Windows, queries, keys, channels; two products of a multiplication and an addition each.
    assert found["Swin-S stage 1 shift 0"] == 2 * 64 * 49 * 49 * 96 * 4
    assert found["STViT-R-S refinement"] == 2 * 36 * 232 * 384 * 4
    assert found["STViT-R-S generation"] == 2 * 4 * 9 * 109 * 384 * 4
    assert found["STViT-R-B detection recovery"] == 2 * (8 * 12) * 49 * 27**2 * 512 * 4


@pytest.mark.skipif(find_gpu() is not None, reason="there is a GPU here")
def test_without_a_gpu_nothing_is_measured() -> None:
    with pytest.raises(EngineError, match="no NVIDIA driver"):
        kernels.main(["--batch", "1"])
