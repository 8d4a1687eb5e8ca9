"""How many bytes a kernel moves, beside the least that any form must and what the plain form does.

Counted from shapes, not measured. A kernel's rereads are served by the L2 cache where a picture's keys and
values fit into it; the count is what its loads and stores ask for.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod

from saccade.engines.kernels.launch import Attributes, Kernel, ceil_div

Sizes = tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True)
class Traffic:
    """Bytes of one launch.

    least: every input read once, the output written once. kernel: what the kernel's loads and stores ask
    for. unfolded: the same with keys and values of every window written out and read back, as the plain form
    does (its index tables and logits not counted).
    """

    least: int
    kernel: int
    unfolded: int


def traffic(kernel: Kernel, shapes: Sizes, attributes: Attributes, itemsize: int) -> Traffic:
    """Bytes of one launch of `kernel` with the tile that it would take."""
    output = prod(kernel.output_shape(shapes))
    inputs = sum(map(prod, shapes))
    pairs, stored = _KEYS[kernel.operator.name](shapes, attributes)
    batch, channels = shapes[0][0], shapes[0][3] // kernel.projections
    heads, windows = attributes["heads"], kernel.windows(shapes, attributes)
    queries, tile = kernel.queries(shapes, attributes), kernel.tile(shapes, attributes)
    tiles = ceil_div(queries, tile)
    loads = output + tiles * 2 * channels * batch * stored
    if "position_bias" in kernel.operator.inputs:
        loads += batch * windows * heads * queries**2
    if any(name.endswith("_pad") for name in kernel.operator.inputs):
        loads += batch * windows * tiles * 2 * channels
    gathered = 2 * channels * batch * windows * pairs
    if kernel.projections == 3:  # the plain form gathers the queries with them
        gathered += channels * batch * windows * queries
    return Traffic(
        least=itemsize * (inputs + output),
        kernel=itemsize * (loads + output),
        unfolded=itemsize * (inputs + 2 * gathered + output),
    )


def _shifted(shapes: Sizes, attributes: Attributes) -> tuple[int, int]:
    """Keys of one window, and key cells read from the grid over all windows of a picture."""
    _, height, width, _ = shapes[0]
    return attributes["window"] ** 2, height * width


def _token(shapes: Sizes, attributes: Attributes) -> tuple[int, int]:
    keys = shapes[1][1] * shapes[1][2]
    return 0, keys  # the plain form copies nothing


def _cross(shapes: Sizes, attributes: Attributes) -> tuple[int, int]:
    (_, height, width, _), (_, k_height, k_width, _) = shapes[:2]
    stored = _cells(height, k_height, attributes) * _cells(width, k_width, attributes)
    return attributes["k_window"] ** 2, stored


def _seeded(shapes: Sizes, attributes: Attributes) -> tuple[int, int]:
    (_, height, width, _), _, (_, k_height, k_width, _) = shapes
    window = attributes["q_window"]
    windows = ceil_div(height, window) * ceil_div(width, window)
    patches = _cells(height, k_height, attributes) * _cells(width, k_width, attributes)
    return window**2 + attributes["k_window"] ** 2, windows * window**2 + patches


def _cells(size: int, k_size: int, attributes: Attributes) -> int:
    """Positions on the key grid, over all windows of one axis."""
    starts = (
        window * attributes["k_stride"] - attributes.get("k_before", 0)
        for window in range(ceil_div(size, attributes["q_window"]))
    )
    return sum(max(0, min(start + attributes["k_window"], k_size) - max(start, 0)) for start in starts)


_KEYS: dict[str, Callable[[Sizes, Attributes], tuple[int, int]]] = {
    "ShiftedWindowAttention": _shifted,
    "TokenAttention": _token,
    "WindowCrossAttention": _cross,
    "SeededWindowAttention": _seeded,
}
