"""The Triton kernels, run by Triton's interpreter on CPU, against their NumPy references."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tests.engines.kernels.cases import (
    CROSS,
    INTERPRETED,
    MANY_HEADS,
    SEEDED,
    SHIFTED,
    SMALL,
    TOKEN,
    Case,
)

from saccade.engines.kernels.registry import KERNELS
from saccade.models import attention

ROOT = Path(__file__).resolve().parents[3]
PLAIN = {
    SHIFTED: attention.shifted_window_attention,
    TOKEN: attention.token_attention,
    CROSS: attention.window_cross_attention,
    SEEDED: attention.seeded_window_attention,
}
# Inputs are of order 1. Half precision rounds each softmax weight and the result: 2^-11 and 2^-8 of them,
# summed over values of up to 4.
TOLERANCE = {"float32": 5e-6, "float16": 3e-3, "bfloat16": 2.4e-2}


needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="Triton is not installed (CPU builds of torch lack it)"
)


def interpret(
    dtype: str, cases: tuple[Case, ...], folder: Path, how: str = "fitting"
) -> dict[str, NDArray[Any]]:
    """Outputs by label, from one child process; with "every" by label, tile and number of keys."""
    out = folder / f"{dtype}.npz"
    command = [sys.executable, "-m", "tests.engines.kernels.interpreter", str(out), dtype, how]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    child = subprocess.run(
        [*command, *(case.label for case in cases)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert child.returncode == 0, child.stderr
    with np.load(out, allow_pickle=False) as stored:
        return {name: stored[name] for name in stored.files}


def rounded(case: Case, dtype: str) -> list[NDArray[Any]]:
    """The inputs as `dtype` holds them."""
    return [torch.from_numpy(each).to(getattr(torch, dtype)).float().numpy() for each in case.inputs()]


def check(dtype: str, cases: tuple[Case, ...], folder: Path) -> None:
    outputs = interpret(dtype, cases, folder)
    assert sorted(outputs) == sorted(case.label for case in cases)
    for case in cases:
        expected = case.expected(rounded(case, dtype))
        np.testing.assert_allclose(
            outputs[case.label], expected, rtol=0, atol=TOLERANCE[dtype], err_msg=case.label
        )


def test_the_labels_tell_the_cases_apart() -> None:
    assert len({case.label for case in INTERPRETED}) == len(INTERPRETED)


@pytest.mark.parametrize("case", INTERPRETED, ids=[case.label for case in INTERPRETED])
def test_the_reference_is_what_the_models_compute(case: Case) -> None:
    """Two independent readings of the papers' code: windows one by one, and gathers by computed index."""
    inputs = case.inputs()
    with torch.no_grad():
        plain = PLAIN[case.operator](*map(torch.from_numpy, inputs), **case.attributes)
    np.testing.assert_allclose(plain.numpy(), case.expected(inputs), rtol=0, atol=1e-5)


@needs_triton
def test_kernels_in_float32(tmp_path: Path) -> None:
    check("float32", INTERPRETED, tmp_path)


@pytest.mark.slow
@needs_triton
def test_every_tile_and_number_of_keys_that_ships(tmp_path: Path) -> None:
    """Also the tiles that a launch would not choose for the shape: TensorRT times them all."""
    cases = (SMALL[2], SMALL[8], SMALL[11], SMALL[14], *MANY_HEADS)
    outputs = interpret("float32", cases, tmp_path, "every")
    for case in cases:
        found = {name: y for name, y in outputs.items() if name.startswith(f"{case.label}/")}
        kernel = KERNELS[case.operator]
        assert len(found) >= len(kernel.tiles)
        assert {int(name.split("/")[2]) for name in found} == {32, kernel.keys}
        for name, y in found.items():
            np.testing.assert_allclose(
                y, case.expected(case.inputs()), rtol=0, atol=TOLERANCE["float32"], err_msg=name
            )


@needs_triton
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_kernels_in_half_precision(dtype: str, tmp_path: Path) -> None:
    """Fewer shapes: the index arithmetic does not depend on the type."""
    check(dtype, SMALL[::4], tmp_path)
