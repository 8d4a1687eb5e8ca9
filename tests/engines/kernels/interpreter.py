"""Run the Triton kernels on CPU, in a process of its own: `python interpreter.py OUT.npz DTYPE LABEL...`.

Triton decides on import whether it interprets; a test session that has imported it cannot go back.
"""

from __future__ import annotations

import os
import sys

os.environ["TRITON_INTERPRET"] = "1"

import numpy as np
import torch
from tests.engines.kernels.cases import SMALL, Case

from saccade.engines.kernels.launch import Kernel
from saccade.engines.kernels.registry import KERNELS


def run(case: Case, dtype: torch.dtype, tile: int) -> torch.Tensor:
    """One launch on CPU tensors of `dtype`."""
    kernel: Kernel = KERNELS[case.operator]
    inputs = [torch.from_numpy(each).to(dtype) for each in case.inputs()]
    y = torch.full(kernel.output_shape(case.shapes), torch.nan, dtype=dtype)
    scalars = kernel.scalar_values(case.shapes, case.attributes)
    constants = {"D": kernel.head_dim(case.shapes, case.attributes), "TILE": tile, "KEYS": kernel.keys}
    grid = kernel.grid(case.shapes, case.attributes, tile)
    kernel.function[grid](*inputs, *scalars, y, **constants, WIDEN=dtype == torch.bfloat16)
    return y


def main(out: str, dtype: str, *labels: str) -> None:
    torch.set_num_threads(1)
    results = {}
    for case in SMALL:
        if case.label in labels:
            kernel = KERNELS[case.operator]
            y = run(case, getattr(torch, dtype), kernel.tile(case.shapes, case.attributes))
            results[case.label] = y.float().numpy()
    np.savez(out, **results)


if __name__ == "__main__":
    main(*sys.argv[1:])
