"""Whatever the user calls a picture becomes an RGB picture of 8 bits; the rest is refused by name."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from saccade.errors import InputError, UsageError

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["PICTURE_SUFFIXES", "Picture", "RgbArray", "decode", "list_pictures"]

RgbArray: TypeAlias = NDArray[np.uint8]
# A file, its content, a PIL image, or (H, W, 3) uint8 in RGB order.
Picture: TypeAlias = "str | os.PathLike[str] | bytes | Image.Image | RgbArray"

PICTURE_SUFFIXES = frozenset(
    {
        ".avif",
        ".bmp",
        ".gif",
        ".jfif",
        ".jp2",
        ".jpeg",
        ".jpg",
        ".pgm",
        ".png",
        ".ppm",
        ".tif",
        ".tiff",
        ".webp",
    }
)


def decode(picture: Picture, name: str = "") -> RgbArray | Image.Image:
    """`picture` as an RGB array (H, W, 3) uint8 if it was one, else as a PIL image of mode RGB.

    Files and PIL images are turned upright by their EXIF orientation. Alpha is dropped without blending
    and CMYK converted by Pillow, as the models' training did (`convert("RGB")`); 16-bit grey is scaled to
    8 bits. An animation gives its first frame. Pillow's limit `PIL.Image.MAX_IMAGE_PIXELS` holds.
    name: what InputError calls the picture; by default the path, or what it is.
    """
    if isinstance(picture, np.ndarray):
        return _checked_array(picture, name or "the array")
    if isinstance(picture, bytes | bytearray | memoryview):
        return _read(io.BytesIO(picture), name or f"the picture in {len(picture)} bytes")
    if isinstance(picture, str | os.PathLike):
        return _read(Path(picture), name or os.fspath(picture))
    from PIL import Image

    if isinstance(picture, Image.Image):
        return _upright_rgb(picture, name or "the PIL image")
    raise InputError(
        f"{name or 'the picture'} is a {type(picture).__name__}; give a path, bytes, a PIL image, or a uint8 "
        "RGB array (height, width, 3)"
    )


def list_pictures(folder: Path) -> list[Path]:
    """Every picture file in `folder` and below, sorted by path; hidden files and folders are left out."""
    if not folder.is_dir():
        raise UsageError(f"{folder} is not a folder")
    found = []
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(parent, name) for name in files if _is_picture_name(name)]
    return sorted(found)


def _is_picture_name(name: str) -> bool:
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in PICTURE_SUFFIXES


def _checked_array(array: NDArray[Any], name: str) -> RgbArray:
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or 0 in array.shape:
        raise InputError(
            f"{name} has dtype {array.dtype} and shape {array.shape}; a picture is uint8 of shape "
            "(height, width, 3), RGB. Several pictures are a list of these"
        )
    return array


def _read(source: Path | io.BytesIO, name: str) -> Image.Image:
    from PIL import Image, UnidentifiedImageError

    _check_not_empty(source, name)
    try:
        with _open(source) as image:
            return _upright_rgb(image, name)
    except InputError:
        raise
    except FileNotFoundError as error:
        raise InputError(f"{name} does not exist") from error
    except UnidentifiedImageError as error:
        raise InputError(f"{name} is not a picture in a format that Pillow reads") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise InputError(f"{name} is too large: {error}") from error
    except Exception as error:  # decoders of damaged files raise OSError, SyntaxError, struct.error and more
        raise InputError(f"{name} cannot be decoded, it is damaged or cut short: {error}") from error


# The first ones need no further plugin. Formats that Pillow hands to other programs (EPS) are left out.
_COMMON = ("JPEG", "PNG", "PPM", "BMP", "GIF")
_RARE = frozenset({"AVIF", "JPEG2000", "TIFF", "WEBP"})


def _open(source: Path | io.BytesIO) -> Image.Image:
    from PIL import Image, UnidentifiedImageError

    try:
        return Image.open(source, formats=_COMMON)
    except UnidentifiedImageError:
        Image.init()
        return Image.open(source, formats=sorted(_RARE & set(Image.OPEN)))


def _check_not_empty(source: Path | io.BytesIO, name: str) -> None:
    """Pillow only says of an empty file that it cannot be identified."""
    try:
        size = source.getbuffer().nbytes if isinstance(source, io.BytesIO) else source.stat().st_size
    except OSError:
        return  # opening it says why
    if size == 0:
        raise InputError(f"{name} is empty (0 bytes)")


def _upright_rgb(image: Image.Image, name: str) -> Image.Image:
    _check_size(image, name)
    image.load()
    upright = _ORIENTATIONS.get(_orientation(image))
    rgb = _rgb(image, name)
    return rgb if upright is None else rgb.transpose(upright)  # type: ignore[arg-type]


def _check_size(image: Image.Image, name: str) -> None:
    """Before decoding: a file of a few kilobytes can claim gigabytes of pixels."""
    from PIL import Image as pillow

    pixels, limit = image.width * image.height, pillow.MAX_IMAGE_PIXELS
    if pixels == 0:
        raise InputError(f"{name} has no pixels: {image.width}x{image.height}")
    if limit is not None and pixels > limit:
        raise InputError(
            f"{name} is {image.width}x{image.height}, more than {limit} pixels; if it is meant, raise "
            "PIL.Image.MAX_IMAGE_PIXELS"
        )


# EXIF 2.3, tag 0x0112: how the picture must be turned, as values of PIL.Image.Transpose.
_ORIENTATION_TAG = 0x0112
_ORIENTATIONS: Mapping[int, int] = {2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(_ORIENTATION_TAG, 1))
    except Exception:  # unreadable metadata says nothing about the pixels
        return 1


def _rgb(image: Image.Image, name: str) -> Image.Image:
    if image.mode == "RGB":
        return image
    if image.mode.startswith("I;16") or image.mode == "I":
        return _scaled_from_16_bits(image, name)
    if image.mode == "F":
        raise InputError(f"{name} has floating-point pixels of unknown range; convert it to 8 or 16 bits")
    if "transparency" in image.info and image.mode in ("P", "L"):
        # Straight to RGB gives the same colours, but warns about the transparency it drops.
        return image.convert("RGBA").convert("RGB")
    try:
        return image.convert("RGB")
    except ValueError as error:
        raise InputError(f"{name} has the colour mode {image.mode}, which does not convert to RGB") from error


def _scaled_from_16_bits(image: Image.Image, name: str) -> Image.Image:
    """Grey of 16 bits, which Pillow's own conversion would clip at 255."""
    from PIL import Image as pillow

    deep = np.asarray(image)
    if image.mode == "I" and (deep.min() < 0 or deep.max() > 65535):
        raise InputError(
            f"{name} has 32-bit pixels from {deep.min()} to {deep.max()}; convert it to 8 or 16 bits"
        )
    scaled = (deep.astype(np.uint32) * 255 + 32767) // 65535
    return pillow.fromarray(scaled.astype(np.uint8)).convert("RGB")
