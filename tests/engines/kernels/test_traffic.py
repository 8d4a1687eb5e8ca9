"""The byte counts, against counting cell by cell."""

from __future__ import annotations

from math import prod
from pathlib import Path

import pytest
from tests.engines.kernels.cases import (
    CROSS,
    GENERATION,
    LOCAL,
    RECOVERY,
    REFINEMENT,
    SEEDED,
    SHIFTED,
    SMALL,
    TOKEN,
    Case,
    cross,
    seeded,
    shifted,
    token,
)

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


MODEL_CALLS = {
    "Swin-S, stage 1, 224": shifted(1, 56, 56, 3, shift=3),
    "STViT-R-S generation, 224": seeded(1, 6, 6, 14, 12),
    "STViT-R-S refinement, 224": token(1, (6, 6), (1, 232), 12),
    "STViT-R-S recovery, 224": token(1, (14, 14), (6, 6), 12),
    "Swin-S, stage 1, 800x1344": shifted(1, 200, 336, 3, shift=3),
    "STViT-R-S generation, 800x1344": cross(1, 50, 84, 12, GENERATION),
    "STViT-R-S refinement, 800x1344": cross(1, 50, 84, 12, REFINEMENT),
    "STViT-R-S local, 800x1344": cross(1, 50, 84, 12, LOCAL),
    "STViT-R-S global, 800x1344": token(1, (24, 36), (24, 36), 12),
    "STViT-R-S recovery, 800x1344": cross(1, 50, 84, 12, RECOVERY),
}


def row(name: str, case: Case) -> str:
    counted = traffic(KERNELS[case.operator], case.shapes, case.attributes, itemsize=2)
    cells = [f"{value / 1e6:.2f} MB" for value in (counted.least, counted.kernel, counted.unfolded)]
    ratios = [counted.kernel / counted.least, counted.unfolded / counted.least]
    return f"| {name} | {cells[0]} | {cells[1]} ({ratios[0]:.1f}x) | {cells[2]} ({ratios[1]:.1f}x) |"


def test_the_table_in_the_documentation_is_current() -> None:
    text = (Path(__file__).resolve().parents[3] / "docs" / "kernels.md").read_text("utf-8")
    rows = "\n".join(row(name, case) for name, case in MODEL_CALLS.items())
    assert rows in text, f"docs/kernels.md: the table is\n{rows}"
