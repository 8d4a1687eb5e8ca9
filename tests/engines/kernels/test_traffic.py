"""The byte counts, against counting cell by cell."""

from __future__ import annotations

from math import prod

import pytest
from tests.engines.kernels.cases import CROSS, SEEDED, SHIFTED, SMALL, TOKEN, Case

from saccade.engines.kernels.registry import KERNELS
from saccade.engines.kernels.traffic import traffic


def key_cells(case: Case) -> int:
    """Key cells that all windows of one picture read, by walking over them."""
    values = case.attributes
    if case.operator in (SHIFTED, TOKEN):
        return prod(case.shapes[0 if case.operator == SHIFTED else 1][1:3])
    (_, height, width, _), (_, k_height, k_width, _) = (
        case.shapes[0],
        case.shapes[-1 if case.operator == SEEDED else 1],
    )
    count, side = 0, values["q_window"]
    for top in range(0, height, side):
        for left in range(0, width, side):
            first = [n // side * values["k_stride"] - values.get("k_before", 0) for n in (top, left)]
            for y in range(first[0], first[0] + values["k_window"]):
                for x in range(first[1], first[1] + values["k_window"]):
                    count += 0 <= y < k_height and 0 <= x < k_width
            count += side**2 if case.operator == SEEDED else 0
    return count


@pytest.mark.parametrize("case", SMALL, ids=[case.label for case in SMALL])
def test_bytes_of_a_launch(case: Case) -> None:
    kernel = KERNELS[case.operator]
    batch, height, width, channels = kernel.output_shape(case.shapes)
    tile = kernel.tile(case.shapes, case.attributes)
    x, y, z = kernel.grid(case.shapes, case.attributes, tile)
    loads = batch * height * width * channels  # every query once
    rereads = y // kernel.windows(case.shapes, case.attributes)
    loads += rereads * batch * key_cells(case) * 2 * channels
    if case.operator == SHIFTED:
        loads += z * y // rereads * x * case.attributes["window"] ** 4  # the position bias, for each window
    if case.operator in (SHIFTED, CROSS):
        loads += z * y * 2 * channels  # the padded token's key and value, for each program
    counted = traffic(kernel, case.shapes, case.attributes, itemsize=2)
    assert counted.kernel == 2 * (loads + batch * height * width * channels)
    assert counted.least == 2 * (sum(map(prod, case.shapes)) + batch * height * width * channels)
    assert counted.unfolded >= counted.least
