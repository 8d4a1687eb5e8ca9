"""What launching a kernel takes: arguments in order, grid, tile. One definition for every caller.

Sizes are Python ints, or TensorRT's symbolic expressions while a plugin is built; these know `+ - * //` with
the symbol on the left, so the arithmetic here keeps to that.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from saccade.models.operators import Operator

Size = Any  # int or symbolic
Shapes = Sequence[Sequence[Size]]
Attributes = Mapping[str, int]

HEAD_DIMS = (16, 32)
DTYPES = ("float32", "float16", "bfloat16")
_MAX_OFFSET = 2**31 - 1
_MAX_PROGRAMS = 2**31 - 1, 65535, 65535  # of one launch, in x, y and z


def ceil_div(size: Size, by: int) -> Size:
    """Number of pieces of `by` that cover `size`."""
    return (size + (by - 1)) // by


@dataclass(frozen=True, slots=True)
class Schedule:
    """How one program is compiled.

    tile: its queries. keys: those of one step of its loop. A thread block has 32 threads for each warp;
    stages are steps whose loads overlap.
    """

    tile: int
    keys: int
    num_warps: int
    num_stages: int


@dataclass(frozen=True, slots=True)
class Kernel:
    """One operator's kernel: device function and launch arithmetic.

    function: the Triton kernel; its parameters are the operator's inputs, `scalars` (int32), the output and
    the constants D (head dimension), TILE (queries of one program), KEYS and WIDEN.
    scalar_values, windows, queries: from input shapes and attributes, the scalars in order, the number of
    windows of one picture, and the queries of one window. projections: first input's channels over C.
    formula: `grid` in words, for the launch record. keys: of one step, where there are tensor cores.
    """

    operator: Operator
    function: Any
    scalars: tuple[str, ...]
    scalar_values: Callable[[Shapes, Attributes], tuple[Size, ...]]
    windows: Callable[[Shapes, Attributes], Size]
    queries: Callable[[Shapes, Attributes], Size]
    tiles: tuple[int, ...]
    formula: tuple[str, str, str]
    projections: int = 1
    keys: int = 64

    @property
    def name(self) -> str:
        """Name of the device function, of the torch operator and of the PTX entry."""
        return str(self.function.__name__)

    @property
    def parameters(self) -> tuple[str, ...]:
        """The arguments of a launch in order."""
        return (*self.operator.inputs, *self.scalars, "y")

    def head_dim(self, shapes: Shapes, attributes: Attributes) -> int:
        """Channels of one head; the channel dimension must be known."""
        return int(shapes[0][3]) // self.projections // attributes["heads"]

    def output_shape(self, shapes: Shapes) -> tuple[Size, ...]:
        """(B, H, W, C)."""
        batch, height, width, channels = shapes[0]
        return batch, height, width, channels // self.projections

    def tile(self, shapes: Shapes, attributes: Attributes) -> int:
        """The smallest tile that takes a window's queries at once, else the largest there is."""
        queries = self.queries(shapes, attributes)
        return next((tile for tile in self.tiles if queries <= tile), self.tiles[-1])

    def schedule(self, tile: int, dtype: str, arch: int) -> Schedule:
        """Chosen so that a program keeps to 128 registers a thread or so, without spilling, and to 48 KB.

        Products of float32, and on Turing (where Triton has no tensor cores) all of them, run on the ordinary
        units: twice the threads share them, by fewer keys and without overlap.
        """
        warps = 2 if tile <= 16 else 4
        if dtype == "float32" or arch < 80:
            return Schedule(tile, min(self.keys, 32), 2 * warps, 1)
        return Schedule(tile, self.keys, warps, 2)

    def grid(self, shapes: Shapes, attributes: Attributes, tile: int) -> tuple[Size, Size, Size]:
        """Programs in x, y and z. Heads come first: neighbours then read neighbouring memory."""
        windows = self.windows(shapes, attributes)
        tiles = ceil_div(self.queries(shapes, attributes), tile)
        programs = tiles * windows if isinstance(windows, int) else windows * tiles
        return attributes["heads"], programs, shapes[0][0]

    def refusal(self, shapes: Shapes, attributes: Attributes) -> str | None:
        """Why the kernel does not serve these sizes; None if it does. Sizes must be ints."""
        channels, heads = int(shapes[0][3]) // self.projections, attributes["heads"]
        if channels % heads or channels // heads not in HEAD_DIMS:
            return f"{channels} channels in {heads} heads: the head dimension must be one of {HEAD_DIMS}"
        # Grids have one more dimension, the batch, whose offset is 64 bits.
        largest = max(prod(shape[1:] if len(shape) == 4 else shape) for shape in shapes)
        if largest > _MAX_OFFSET:
            return f"one picture has {largest} values in a tensor; offsets of 32 bits reach {_MAX_OFFSET}"
        grid = self.grid(shapes, attributes, self.tile(shapes, attributes))
        if any(not 1 <= size <= most for size, most in zip(grid, _MAX_PROGRAMS, strict=True)):
            return f"a grid of {grid} programs cannot be launched: 1 to {_MAX_PROGRAMS} can"
        return None
