"""From pictures to the input tensor, as the model's training had it, to the bit.

`Preprocessing` of the card says what is done; here is the one implementation. Resampling is Pillow's (what
timm, torchvision and CLIP models were trained with) or OpenCV's integer bilinear (mmdet). Dividing by 255,
subtracting the mean and dividing by the deviation are three float32 operations on 256 possible values, so
they are a table.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from saccade import opencv_resize
from saccade.models.card import Preprocessing
from saccade.pictures import Picture, RgbArray, decode

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["Batch", "batches", "crop", "resized_size"]

# A resized picture with more pixels than this is never made whole (its sides are as 256 to 1 and more).
_WHOLE_LIMIT = 2**24


@dataclass(frozen=True, slots=True)
class Batch:
    """Pictures of one size, ready for the graph, and what undoes the way there.

    image: (N, 3, H, W) float32, contiguous. places: where each stood among the pictures that were given.
    originals_hw, resized_hw: (height, width) of each before and after resizing, without crop or padding.
    """

    image: NDArray[np.float32]
    places: tuple[int, ...]
    originals_hw: tuple[tuple[int, int], ...]
    resized_hw: tuple[tuple[int, int], ...]


def batches(pictures: Sequence[Picture], card: Preprocessing) -> list[Batch]:
    """`pictures` as input tensors: one batch where the card crops; none for no pictures.

    With ``fit`` a picture is padded right and below with zeros (after the normalisation) to a multiple of
    `pad_multiple`, and those of one padded size share a batch: what a picture's neighbours are does not
    change its answer. Raises InputError naming the picture that cannot be used.
    """
    decoded = (decode(each, _name(index, pictures)) for index, each in enumerate(pictures))
    if card.resize == "fit":
        return _fitted(decoded, card)
    image = np.empty((len(pictures), 3, *card.input_size_hw), np.float32)
    originals = []
    for index, picture in enumerate(decoded):
        originals.append(_size_hw(picture))
        _normalise(_cropped(picture, card), card, image[index])
    resized = tuple(resized_size(each, card) for each in originals)
    return [Batch(image, tuple(range(len(originals))), tuple(originals), resized)] if originals else []


def resized_size(size_hw: tuple[int, int], card: Preprocessing) -> tuple[int, int]:
    """The size (height, width) to which a picture of `size_hw` is resized; at least one pixel each way."""
    height, width = size_hw
    if card.resize == "stretch":
        return card.resize_hw
    if card.resize == "fit":
        short, long = sorted(card.resize_hw)
        factor = min(long / max(size_hw), short / min(size_hw))
        return max(1, int(height * factor + 0.5)), max(1, int(width * factor + 0.5))
    side = card.resize_hw[0]
    if width <= height:
        return int(side * height / width), side
    return side, int(side * width / height)


@dataclass(frozen=True, slots=True)
class Span:
    """Along one axis: `source` of the resized picture goes to `target` of the crop; zeros elsewhere."""

    source: slice
    target: slice


def crop(size: int, cropped: int) -> Span:
    """torchvision's centre crop of `size` pixels to `cropped`, which pads what is too small.

    >>> crop(256, 224).source
    slice(16, 240, None)
    >>> crop(3, 8).target
    slice(2, 5, None)
    """
    if size < cropped:
        before = (cropped - size) // 2
        return Span(slice(0, size), slice(before, before + size))
    before = round((size - cropped) / 2)
    return Span(slice(before, before + cropped), slice(0, cropped))


def _name(index: int, pictures: Sequence[Picture]) -> str:
    """What an error calls the picture: a path names itself, the rest has a place in the list."""
    picture = pictures[index]
    if len(pictures) == 1 or not isinstance(picture, np.ndarray | bytes):
        return ""
    return f"picture {index} of {len(pictures)}"


def _cropped(picture: RgbArray | Image.Image, card: Preprocessing) -> RgbArray:
    """Resize and crop: (*input_size_hw, 3) uint8."""
    size_hw = resized_size(_size_hw(picture), card)
    rows, columns = (crop(*sides) for sides in zip(size_hw, card.input_size_hw, strict=True))
    if size_hw[0] * size_hw[1] > _WHOLE_LIMIT:
        wanted = _resize_part(picture, size_hw, rows.source, columns.source, card)
    else:
        wanted = _resize(picture, card)[rows.source, columns.source]
    if wanted.shape[:2] == card.input_size_hw:
        return wanted
    padded = np.zeros((*card.input_size_hw, 3), np.uint8)
    padded[rows.target, columns.target] = wanted
    return padded


def _resize(picture: RgbArray | Image.Image, card: Preprocessing) -> RgbArray:
    size_hw = resized_size(_size_hw(picture), card)
    if _size_hw(picture) == size_hw:
        return np.asarray(picture)
    if card.resampler == "opencv-bilinear":
        return opencv_resize.resize(np.ascontiguousarray(picture), size_hw)
    return np.asarray(_image(picture).resize((size_hw[1], size_hw[0]), _pillow_filter(card)))


def _resize_part(
    picture: RgbArray | Image.Image,
    size_hw: tuple[int, int],
    rows: slice,
    columns: slice,
    card: Preprocessing,
) -> RgbArray:
    """A part of a resized picture that is too large to be made.

    Pillow keeps the corners of a box in float32: one grey level off at most, two where it is bicubic.
    """
    if card.resampler == "opencv-bilinear":
        return opencv_resize.resize_in_numpy(np.asarray(picture), size_hw, rows, columns)
    height, width = _size_hw(picture)
    down, across = height / size_hw[0], width / size_hw[1]
    box = (columns.start * across, rows.start * down, columns.stop * across, rows.stop * down)
    size = (columns.stop - columns.start, rows.stop - rows.start)
    return np.asarray(_image(picture).resize(size, _pillow_filter(card), box=box))


def _pillow_filter(card: Preprocessing) -> Image.Resampling:
    from PIL import Image

    return Image.Resampling.BICUBIC if card.resampler == "pillow-bicubic" else Image.Resampling.BILINEAR


def _image(picture: RgbArray | Image.Image) -> Image.Image:
    from PIL import Image

    return Image.fromarray(picture) if isinstance(picture, np.ndarray) else picture


def _size_hw(picture: RgbArray | Image.Image) -> tuple[int, int]:
    if isinstance(picture, np.ndarray):
        return picture.shape[0], picture.shape[1]
    return picture.height, picture.width


def _normalise(picture: RgbArray, card: Preprocessing, out: NDArray[np.float32]) -> None:
    """Write `picture` (H, W, 3) uint8 into `out` (3, H, W)."""
    for channel, table in enumerate(_tables(card.mean_rgb, card.std_rgb, card.value_range)):
        # mode="clip" lets take write into `out`; a uint8 is never out of a table of 256.
        np.take(table, picture[..., channel], out=out[channel], mode="clip")


@lru_cache(maxsize=16)
def _tables(
    mean_rgb: tuple[float, float, float], std_rgb: tuple[float, float, float], value_range: float
) -> NDArray[np.float32]:
    """(3, 256): what each grey level of each channel becomes."""
    levels = np.arange(256, dtype=np.float32) / np.float32(value_range)
    mean, std = (np.array(values, np.float32)[:, None] for values in (mean_rgb, std_rgb))
    return (levels - mean) / std


def _fitted(decoded: Iterable[RgbArray | Image.Image], card: Preprocessing) -> list[Batch]:
    """Batches by padded size, in the order in which the sizes come."""
    members: dict[tuple[int, int], list[tuple[int, tuple[int, int], RgbArray]]] = {}
    for place, picture in enumerate(decoded):
        resized = _resize(picture, card)
        height, width = (-(-side // card.pad_multiple) * card.pad_multiple for side in resized.shape[:2])
        members.setdefault((height, width), []).append((place, _size_hw(picture), resized))
    return [_padded(group, size_hw, card) for size_hw, group in members.items()]


def _padded(
    group: Sequence[tuple[int, tuple[int, int], RgbArray]], size_hw: tuple[int, int], card: Preprocessing
) -> Batch:
    places, originals_hw, pictures = zip(*group, strict=True)
    image = np.zeros((len(pictures), 3, *size_hw), np.float32)
    for picture, padded in zip(pictures, image, strict=True):
        part = np.empty((3, *picture.shape[:2]), np.float32)
        _normalise(picture, card, part)
        padded[:, : picture.shape[0], : picture.shape[1]] = part
    return Batch(image, places, originals_hw, tuple(picture.shape[:2] for picture in pictures))
