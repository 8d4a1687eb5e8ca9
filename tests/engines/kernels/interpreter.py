"""Run the Triton kernels on CPU, in a process of its own: `python interpreter.py OUT.npz DTYPE HOW LABEL...`.

HOW: "fitting" takes the tile that a launch would take; "every" writes one result, LABEL/TILE/KEYS, for every
tile and number of keys that ships.

Triton decides on import whether it interprets; a test session that has imported it cannot go back.
"""

from __future__ import annotations

import os
import sys

os.environ["TRITON_INTERPRET"] = "1"

import numpy as np
import torch
from tests.engines.kernels.cases import INTERPRETED, Case

from saccade.engines.kernels.launch import Kernel
from saccade.engines.kernels.registry import KERNELS


def run(case: Case, dtype: torch.dtype, tile: int, keys: int) -> torch.Tensor:
    """One launch on CPU tensors of `dtype`."""
    kernel: Kernel = KERNELS[case.operator]
    inputs = [torch.from_numpy(each).to(dtype) for each in case.inputs()]
    y = torch.full(kernel.output_shape(case.shapes), torch.nan, dtype=dtype)
    scalars = kernel.scalar_values(case.shapes, case.attributes)
    constants = {"D": kernel.head_dim(case.shapes, case.attributes), "TILE": tile, "KEYS": keys}
    grid = kernel.grid(case.shapes, case.attributes, tile)
    kernel.function[grid](*inputs, *scalars, y, **constants, WIDEN=dtype == torch.bfloat16)
    return y


def main(out: str, dtype: str, how: str, *labels: str) -> None:
    torch.set_num_threads(1)
    results, kind = {}, getattr(torch, dtype)
    for case in INTERPRETED:
        if case.label not in labels:
            continue
        kernel = KERNELS[case.operator]
        if how == "every":
            for tile in kernel.tiles:
                for keys in {kernel.keys, kernel.schedule(tile, dtype, 75).keys}:
                    results[f"{case.label}/{tile}/{keys}"] = run(case, kind, tile, keys).float().numpy()
        else:
            fitting = kernel.tile(case.shapes, case.attributes)
            results[case.label] = run(case, kind, fitting, kernel.keys).float().numpy()
    np.savez(out, **results)


if __name__ == "__main__":
    main(*sys.argv[1:])
