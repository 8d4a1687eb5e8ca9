"""The inputs of a graph to be: names, shapes with free dimensions, and values to try it with. NumPy only."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Draw: TypeAlias = Callable[[np.random.Generator, tuple[int, ...]], NDArray[Any]]


def noise(rng: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Standard normal, on a grid of sixteenths: it compresses well and any format holds it exactly."""
    return np.round(rng.standard_normal(shape) * 16).astype(np.float32) / np.float32(16)


@dataclass(frozen=True, slots=True)
class Input:
    """One input.

    shape: sizes, and names where they are free ("batch", "height", "width"); a name means the same size
    wherever it stands. sizes: what free dimensions other than the batch are when the graph is traced and
    compared. draw: values for a concrete shape, of the input's dtype.
    """

    name: str
    shape: tuple[int | str, ...]
    sizes: Mapping[str, int] = field(default_factory=dict)
    draw: Draw = noise

    def sample(self, rng: np.random.Generator, batch: int) -> NDArray[Any]:
        """Values for `batch` pictures or texts."""
        sizes = {**self.sizes, "batch": batch}
        return self.draw(rng, tuple(sizes[each] if isinstance(each, str) else each for each in self.shape))

    def free(self) -> dict[int, str]:
        """The free axes and their names."""
        return {axis: each for axis, each in enumerate(self.shape) if isinstance(each, str)}


def picture(size_hw: tuple[int, int], *, dynamic_size: bool = False) -> Input:
    """A batch of pictures: "image" (batch, 3, height, width), of `size_hw` only unless `dynamic_size`."""
    if not dynamic_size:
        return Input("image", ("batch", 3, *size_hw))
    return Input(
        "image", ("batch", 3, "height", "width"), dict(zip(("height", "width"), size_hw, strict=True))
    )
