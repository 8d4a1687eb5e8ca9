"""`uint8` frames that are on the device already, to the input tensor: resize, crop or pad, normalise.

One pass, one output pixel per thread lane. What a resampler does along one axis is a short list of source
cells and weights for each output cell, so one kernel serves OpenCV's bilinear and Pillow's antialiased
filters; the lists are made on the host, once per frame size. One axis is blended inside the loop over the
other: which comes first, and whether what it gives is rounded to grey levels, is the resampler's. Answers are
within one grey level of the CPU form (`saccade.preprocess`), whose sums are integers: the differences are
ties that float32 rounds elsewhere.
"""

# mypy: disable-error-code="no-untyped-def"
# Device code: Triton infers the types.

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import PIL
from numpy.typing import NDArray

from saccade.engines.kernels.language import jit, tl
from saccade.errors import UsageError
from saccade.models.card import Preprocessing

POINTERS = {
    "frames": "uint8",
    "outer_first": "int32",
    "outer_weights": "float32",
    "inner_first": "int32",
    "inner_weights": "float32",
    "levels": "float32",
}
SCALARS = (
    *("frame_height", "frame_width", "outer_taps", "inner_taps", "height", "width"),
    *("shown_height", "shown_width", "columns_first", "rounded"),
)
BLOCK = 128
NUM_WARPS = 4
_MAX_FRAMES = 65535  # programs in y of one launch
_MAX_OFFSET = 2**31 - 1


def parameters(dtype: str) -> tuple[tuple[str, str], ...]:
    """(name, type) of every argument of a launch that writes `dtype`, in order."""
    pointers = ((name, f"*{kind}") for name, kind in POINTERS.items())
    return *pointers, *((name, "int32") for name in SCALARS), ("y", f"*{dtype}")


@dataclass(frozen=True, slots=True)
class Axis:
    """Along one axis, what every output cell is made of.

    first: (n,) int32, its first source cell. weights: (taps, n) float32, of that cell and the next ones; all
    zero for a cell off the picture, which is black.
    """

    first: NDArray[np.int32]
    weights: NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """Everything about resizing frames of one size that does not depend on their pixels.

    levels: (3, 256) float32, what each grey level of each channel becomes. shown_hw: rows and columns beyond
    are zero, not black. columns_first: each column is resized before rows are, else each row before columns
    are. rounded: what the first of the two gives is rounded to grey levels.
    """

    frame_hw: tuple[int, int]
    y: Axis
    x: Axis
    levels: NDArray[np.float32]
    shown_hw: tuple[int, int]
    columns_first: bool
    rounded: bool

    @property
    def size_hw(self) -> tuple[int, int]:
        """Height and width of the output."""
        return len(self.y.first), len(self.x.first)

    def scalars(self) -> tuple[int, ...]:
        """The int32 arguments of a launch, in order."""
        taps = (len(axis.weights) for axis in self._outer_inner())
        switches = int(self.columns_first), int(self.rounded)
        return *self.frame_hw, *taps, *self.size_hw, *self.shown_hw, *switches

    def arrays(self) -> tuple[NDArray[Any], ...]:
        """The arrays of a launch after the frames, in order; on the host."""
        outer, inner = self._outer_inner()
        return outer.first, outer.weights, inner.first, inner.weights, self.levels

    def _outer_inner(self) -> tuple[Axis, Axis]:
        """The axis that is blended last, and the one that is blended first."""
        return (self.x, self.y) if self.columns_first else (self.y, self.x)

    def grid(self, frames: int) -> tuple[int, int, int]:
        """Programs in x, y and z for a batch of `frames`."""
        height, width = self.size_hw
        if not 1 <= frames <= _MAX_FRAMES:
            raise UsageError(f"{frames} frames in one launch: give 1 to {_MAX_FRAMES}")
        return -(-height * width // BLOCK), frames, 1


def plan(
    card: Preprocessing,
    frame_hw: tuple[int, int],
    resized_hw: tuple[int, int],
    size_hw: tuple[int, int],
    offset_hw: tuple[int, int] = (0, 0),
) -> Plan:
    """How frames of `frame_hw`, resized to `resized_hw`, become inputs of `size_hw`.

    offset_hw: the cell of the resized frame that the first output cell shows; negative where a crop is
    larger than the resized frame, which leaves black borders. Cards that fit and pad have zeros there.
    Raises UsageError for sizes that are not positive, and where a frame or an input has more values than
    offsets of 32 bits reach.
    """
    if min(*frame_hw, *resized_hw, *size_hw) < 1:
        raise UsageError(
            f"cannot resize {frame_hw} to {resized_hw} and show {size_hw}: sizes must be positive"
        )
    largest = max(3 * height * width for height, width in (frame_hw, size_hw))
    if largest > _MAX_OFFSET:
        raise UsageError(
            f"frames of {frame_hw} and inputs of {size_hw} have up to {largest} values; "
            f"offsets of 32 bits reach {_MAX_OFFSET}"
        )
    y, x = (
        axis(*sides, card.resampler) for sides in zip(frame_hw, resized_hw, size_hw, offset_hw, strict=True)
    )
    values = np.arange(256, dtype=np.float32) / np.float32(card.value_range)
    mean, std = (np.array(each, np.float32)[:, None] for each in (card.mean_rgb, card.std_rgb))
    shown_hw = (min(size_hw[0], resized_hw[0]), min(size_hw[1], resized_hw[1]))
    return Plan(
        frame_hw=frame_hw,
        y=y,
        x=x,
        levels=(values - mean) / std,
        shown_hw=shown_hw if card.resize == "fit" else size_hw,
        columns_first=card.resampler != "opencv-bilinear" and _columns_first(frame_hw, resized_hw),
        rounded=card.resampler != "opencv-bilinear",
    )


def _columns_first(frame_hw: tuple[int, int], resized_hw: tuple[int, int]) -> bool:
    """Whether the Pillow at hand resizes columns first, as 13.0 and newer do where that leaves less to do."""
    shorter, narrower = (before - after for before, after in zip(frame_hw, resized_hw, strict=True))
    return int(PIL.__version__.split(".")[0]) >= 13 and shorter > max(0, 2 * narrower)


def axis(source: int, target: int, size: int, offset: int, resampler: str) -> Axis:
    """`size` cells from cell `offset` on of `source` cells resized to `target`."""
    first, weights = (_opencv if resampler == "opencv-bilinear" else _pillow)(source, target, resampler)
    cells = np.arange(offset, offset + size)
    inside = (cells >= 0) & (cells < target)
    cells = cells.clip(0, target - 1)
    return Axis(
        np.where(inside, first[cells], 0).astype(np.int32),
        np.ascontiguousarray(np.where(inside, weights[:, cells], 0.0), np.float32),
    )


def _opencv(source: int, target: int, _: str) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """OpenCV's INTER_LINEAR: positions in float32, weights of 11 bits."""
    scale = 1.0 / (target / source)
    position = ((np.arange(target) + 0.5) * scale - 0.5).astype(np.float32)
    first = np.floor(position).astype(np.int64)
    fraction = np.rint((position - first) * 2048) / 2048
    fraction[(first < 0) | (first >= source - 1)] = 0
    return first.clip(0, source - 1), np.stack((1 - fraction, fraction))


def _pillow(source: int, target: int, resampler: str) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Pillow's resampling: the filter is stretched over the source cells that a target cell covers."""
    scale = source / target
    stretch = max(scale, 1.0)
    reach = (2.0 if resampler == "pillow-bicubic" else 1.0) * stretch
    centre = (np.arange(target) + 0.5) * scale
    first = np.maximum((centre - reach + 0.5).astype(np.int64), 0)
    last = np.minimum((centre + reach + 0.5).astype(np.int64), source)
    cells = first + np.arange((last - first).max())[:, None]
    distance = np.abs((cells - centre + 0.5) / stretch)
    weights = _cubic(distance) if resampler == "pillow-bicubic" else np.maximum(1 - distance, 0)
    weights = np.where(cells < last, weights, 0.0)
    return first, weights / weights.sum(0)


def _cubic(distance: NDArray[np.float64]) -> NDArray[np.float64]:
    """Keys' cubic with a = -0.5, as Pillow has it."""
    near = (1.5 * distance - 2.5) * distance**2 + 1
    far = ((-0.5 * distance + 2.5) * distance - 4) * distance + 2
    return np.where(distance < 1, near, np.where(distance < 2, far, 0.0))


def reference(frames: NDArray[np.uint8], plan: Plan) -> NDArray[np.float32]:
    """(N, H, W, 3) uint8 -> (N, 3, h, w) float32."""

    def blend(picture: NDArray[np.float64], along: Axis) -> NDArray[np.float64]:
        """(N, cells, ...) -> (N, n, ...)."""
        cells = along.first + np.arange(len(along.weights))[:, None]
        taken = picture[:, cells.clip(0, picture.shape[1] - 1)]
        summed: NDArray[np.float64] = np.einsum("btn...,tn->bn...", taken, along.weights)
        return summed

    def grey(values: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.floor(values + 0.5).clip(0, 255)

    # Swapped once or twice, so that the axis in second place is the one to blend.
    outer, inner = (plan.x, plan.y) if plan.columns_first else (plan.y, plan.x)
    upright = frames.astype(np.float64)
    once = blend(upright if plan.columns_first else upright.swapaxes(1, 2), inner)
    twice = grey(blend((grey(once) if plan.rounded else once).swapaxes(1, 2), outer)).astype(int)
    picture = twice.swapaxes(1, 2) if plan.columns_first else twice
    y = np.stack([plan.levels[channel][picture[..., channel]] for channel in range(3)], 1)
    y[:, :, plan.shown_hw[0] :] = 0
    y[:, :, :, plan.shown_hw[1] :] = 0
    return y


@jit
def _grey(value):
    return tl.minimum(tl.maximum(tl.floor(value + 0.5), 0.0), 255.0)


@jit
def resize_frames(
    frames,
    outer_first,
    outer_weights,
    inner_first,
    inner_weights,
    levels,
    frame_height,
    frame_width,
    outer_taps,
    inner_taps,
    height,
    width,
    shown_height,
    shown_width,
    columns_first,
    rounded,
    y,
    BLOCK: tl.constexpr,
):
    """Grid (ceil(height * width / BLOCK), frames)."""
    image = tl.program_id(1).to(tl.int64)
    cell = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    row, column = cell // width, cell % width
    stored = cell < height * width
    shown = stored & (row < shown_height) & (column < shown_width)
    outer, inner = tl.where(columns_first != 0, column, row), tl.where(columns_first != 0, row, column)
    outer_cells = tl.where(columns_first != 0, width, height)
    inner_cells = tl.where(columns_first != 0, height, width)
    outer_step = tl.where(columns_first != 0, 3, 3 * frame_width)
    inner_step = tl.where(columns_first != 0, 3 * frame_width, 3)
    outer_from, inner_from = tl.load(outer_first + outer, shown, 0), tl.load(inner_first + inner, shown, 0)
    frame = frames + image * (frame_height * frame_width * 3)

    red = tl.zeros((BLOCK,), tl.float32)
    green = tl.zeros((BLOCK,), tl.float32)
    blue = tl.zeros((BLOCK,), tl.float32)
    for i in range(0, outer_taps):
        last = tl.load(outer_weights + i * outer_cells + outer, shown, 0.0)
        once_red = tl.zeros((BLOCK,), tl.float32)
        once_green = tl.zeros((BLOCK,), tl.float32)
        once_blue = tl.zeros((BLOCK,), tl.float32)
        for j in range(0, inner_taps):
            first = tl.load(inner_weights + j * inner_cells + inner, shown, 0.0)
            used = (last != 0.0) & (first != 0.0)
            pixel = frame + (outer_from + i) * outer_step + (inner_from + j) * inner_step
            once_red += first * tl.load(pixel, used, 0).to(tl.float32)
            once_green += first * tl.load(pixel + 1, used, 0).to(tl.float32)
            once_blue += first * tl.load(pixel + 2, used, 0).to(tl.float32)
        red += last * tl.where(rounded != 0, _grey(once_red), once_red)
        green += last * tl.where(rounded != 0, _grey(once_green), once_green)
        blue += last * tl.where(rounded != 0, _grey(once_blue), once_blue)

    plane = height * width
    out = y + image * (3 * plane) + cell
    value = tl.where(shown, tl.load(levels + _grey(red).to(tl.int32)), 0.0)
    tl.store(out, value.to(y.dtype.element_ty), stored)
    value = tl.where(shown, tl.load(levels + 256 + _grey(green).to(tl.int32)), 0.0)
    tl.store(out + plane, value.to(y.dtype.element_ty), stored)
    value = tl.where(shown, tl.load(levels + 512 + _grey(blue).to(tl.int32)), 0.0)
    tl.store(out + 2 * plane, value.to(y.dtype.element_ty), stored)
