"""Colours that tell classes apart, the same for a class in every picture, and a ramp for depths."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

__all__ = ["class_colours", "ramp"]

# Share of the circle from one hue to the next: of all steps, the one that keeps small sets of classes apart.
_STEP = 0.2323
_HUE_OF_FIRST = 0.58  # blue
# Lightness and chroma in OKLab, in turns: hues that come close to each other differ in these.
_TONES = ((0.70, 0.15), (0.82, 0.13), (0.56, 0.17))

# OKLab to linear sRGB (Ottosson, "A perceptual color space for image processing", 2020).
_TO_CONES = np.array(
    [[1, 0.3963377774, 0.2158037573], [1, -0.1055613458, -0.0638541728], [1, -0.0894841775, -1.2914855480]]
)
_TO_RGB = np.array(
    [
        [4.0767416621, -3.3077115913, 0.2309699292],
        [-1.2684380046, 2.6097574011, -0.3413193965],
        [-0.0041960863, -0.7034186147, 1.7076147010],
    ]
)


@lru_cache(maxsize=8)
def class_colours(count: int) -> NDArray[np.uint8]:
    """(count, 3) RGB, read-only. Colour i does not depend on `count`."""
    index = np.arange(count)
    hue = 2 * np.pi * ((_HUE_OF_FIRST + index * _STEP) % 1)
    lightness, chroma = np.array(_TONES)[index % len(_TONES)].T
    colours = _rgb(np.column_stack([lightness, chroma * np.cos(hue), chroma * np.sin(hue)]))
    colours.flags.writeable = False
    return colours


# Near to far: light yellow through red to dark violet, lightness falling evenly: it prints in grey too.
_STOPS_OKLAB = np.array(
    [
        (0.96, -0.02, 0.12),
        (0.82, 0.06, 0.15),
        (0.66, 0.17, 0.10),
        (0.50, 0.19, -0.01),
        (0.34, 0.12, -0.11),
        (0.18, 0.03, -0.09),
    ]
)


def ramp(values: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Values in 0..1, of any shape, to RGB with one axis more: 0 is light, 1 is dark."""
    stops = np.linspace(0, 1, len(_STOPS_OKLAB))
    levels = np.linspace(0, 1, 256)
    table = _rgb(np.column_stack([np.interp(levels, stops, channel) for channel in _STOPS_OKLAB.T]))
    return table[np.rint(np.clip(values, 0, 1) * 255).astype(np.uint8)]


def _rgb(oklab: NDArray[np.float64]) -> NDArray[np.uint8]:
    """(n, 3) OKLab to sRGB bytes; what sRGB cannot show is cut off."""
    linear = np.clip((oklab @ _TO_CONES.T) ** 3 @ _TO_RGB.T, 0, 1)
    encoded = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return np.rint(255 * encoded).astype(np.uint8)
