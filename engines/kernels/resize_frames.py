"""`uint8` frames that are on the device already, to the input tensor: resize, crop or pad, normalise.

One pass, one output pixel per thread lane. What a resampler does along one axis is a short list of source
cells and weights for each output cell, so one kernel serves OpenCV's bilinear and Pillow's antialiased
filters; the lists are made on the host, once per frame size. Answers are within one grey level of the CPU
form (`saccade.preprocess`), whose sums are integers: the differences are ties that float32 rounds elsewhere.
"""

# mypy: disable-error-code="no-untyped-def"
# Device code: Triton infers the types.

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from saccade.engines.kernels.language import jit, tl
from saccade.errors import UsageError
from saccade.models.card import Preprocessing

POINTERS = {
    "frames": "uint8",
    "y_first": "int32",
    "y_weights": "float32",
    "x_first": "int32",
    "x_weights": "float32",
    "levels": "float32",
}
SCALARS = (
    *("frame_height", "frame_width", "y_taps", "x_taps", "height", "width", "shown_height", "shown_width"),
    "whole_rows",
)
BLOCK = 128
NUM_WARPS = 4


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
    are zero, not black. whole_rows: rows are rounded to grey levels before columns are blended.
    """

    frame_hw: tuple[int, int]
    y: Axis
    x: Axis
    levels: NDArray[np.float32]
    shown_hw: tuple[int, int]
    whole_rows: bool

    @property
    def size_hw(self) -> tuple[int, int]:
        """Height and width of the output."""
        return len(self.y.first), len(self.x.first)

    def scalars(self) -> tuple[int, ...]:
        """The int32 arguments of a launch, in order."""
        taps = len(self.y.weights), len(self.x.weights)
        return *self.frame_hw, *taps, *self.size_hw, *self.shown_hw, int(self.whole_rows)

    def arrays(self) -> tuple[NDArray[Any], ...]:
        """The arrays of a launch after the frames, in order; on the host."""
        return self.y.first, self.y.weights, self.x.first, self.x.weights, self.levels

    def grid(self, frames: int) -> tuple[int, int, int]:
        """Programs in x, y and z for a batch of `frames`."""
        height, width = self.size_hw
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
    """
    if min(*frame_hw, *resized_hw, *size_hw) < 1:
        raise UsageError(
            f"cannot resize {frame_hw} to {resized_hw} and show {size_hw}: sizes must be positive"
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
        whole_rows=card.resampler != "opencv-bilinear",
    )


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

    rows = blend(frames.swapaxes(1, 2).astype(np.float64), plan.x)
    picture = grey(blend((grey(rows) if plan.whole_rows else rows).swapaxes(1, 2), plan.y)).astype(int)
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
    y_first,
    y_weights,
    x_first,
    x_weights,
    levels,
    frame_height,
    frame_width,
    y_taps,
    x_taps,
    height,
    width,
    shown_height,
    shown_width,
    whole_rows,
    y,
    BLOCK: tl.constexpr,
):
    """Grid (ceil(height * width / BLOCK), frames)."""
    image = tl.program_id(1).to(tl.int64)
    cell = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    row, column = cell // width, cell % width
    stored = cell < height * width
    shown = stored & (row < shown_height) & (column < shown_width)
    top, left = tl.load(y_first + row, shown, 0), tl.load(x_first + column, shown, 0)
    frame = frames + image * (frame_height * frame_width * 3)

    red = tl.zeros((BLOCK,), tl.float32)
    green = tl.zeros((BLOCK,), tl.float32)
    blue = tl.zeros((BLOCK,), tl.float32)
    for i in range(0, y_taps):
        down = tl.load(y_weights + i * height + row, shown, 0.0)
        row_red = tl.zeros((BLOCK,), tl.float32)
        row_green = tl.zeros((BLOCK,), tl.float32)
        row_blue = tl.zeros((BLOCK,), tl.float32)
        for j in range(0, x_taps):
            across = tl.load(x_weights + j * width + column, shown, 0.0)
            used = (down != 0.0) & (across != 0.0)
            pixel = frame + ((top + i) * frame_width + left + j) * 3
            row_red += across * tl.load(pixel, used, 0).to(tl.float32)
            row_green += across * tl.load(pixel + 1, used, 0).to(tl.float32)
            row_blue += across * tl.load(pixel + 2, used, 0).to(tl.float32)
        red += down * tl.where(whole_rows != 0, _grey(row_red), row_red)
        green += down * tl.where(whole_rows != 0, _grey(row_green), row_green)
        blue += down * tl.where(whole_rows != 0, _grey(row_blue), row_blue)

    plane = height * width
    out = y + image * (3 * plane) + cell
    value = tl.where(shown, tl.load(levels + _grey(red).to(tl.int32)), 0.0)
    tl.store(out, value.to(y.dtype.element_ty), stored)
    value = tl.where(shown, tl.load(levels + 256 + _grey(green).to(tl.int32)), 0.0)
    tl.store(out + plane, value.to(y.dtype.element_ty), stored)
    value = tl.where(shown, tl.load(levels + 512 + _grey(blue).to(tl.int32)), 0.0)
    tl.store(out + 2 * plane, value.to(y.dtype.element_ty), stored)
