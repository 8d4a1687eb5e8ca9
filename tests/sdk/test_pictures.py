"""Every kind of picture becomes the right RGB picture, or an error that names it."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from saccade.errors import InputError, UsageError
from saccade.pictures import decode, list_pictures

Rgb = np.ndarray[Any, np.dtype[np.uint8]]


def encoded(image: Image.Image, kind: str = "png", **options: Any) -> bytes:
    content = io.BytesIO()
    image.save(content, kind, **options)
    return content.getvalue()


def pixels_of(picture: Any) -> Rgb:
    return np.asarray(decode(picture))


def test_arrays_are_taken_as_they_are(noise: Rgb) -> None:
    assert decode(noise) is noise


@pytest.mark.parametrize("kind", ["png", "bmp", "tiff", "ppm"])
def test_lossless_formats(noise: Rgb, kind: str) -> None:
    np.testing.assert_array_equal(pixels_of(encoded(Image.fromarray(noise), kind)), noise)


@pytest.mark.parametrize("kind", ["jpeg", "webp", "gif"])
def test_other_formats_are_what_pillow_decodes(noise: Rgb, kind: str) -> None:
    content = encoded(Image.fromarray(noise), kind)
    with Image.open(io.BytesIO(content)) as image:
        np.testing.assert_array_equal(pixels_of(content), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_honoured(noise: Rgb, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    # How a camera that was held like this stores the upright scene `noise`.
    stored = {
        1: noise,
        2: noise[:, ::-1],
        3: noise[::-1, ::-1],
        4: noise[::-1],
        5: noise.transpose(1, 0, 2),
        6: np.rot90(noise, 1),
        7: noise[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(noise, -1),
    }[orientation]
    content = encoded(Image.fromarray(np.ascontiguousarray(stored)), exif=exif)
    np.testing.assert_array_equal(pixels_of(content), noise)
    with Image.open(io.BytesIO(content)) as image:
        np.testing.assert_array_equal(pixels_of(image), noise)


def test_unreadable_exif_does_not_matter(noise: Rgb) -> None:
    content = encoded(Image.fromarray(noise), exif=b"Exif\x00\x00MM\x00\x2a\xff\xff\xff\xffgarbage")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow may warn of the metadata
        np.testing.assert_array_equal(pixels_of(content), noise)


def test_grey_is_repeated(noise: Rgb) -> None:
    grey = noise[..., 0]
    np.testing.assert_array_equal(pixels_of(encoded(Image.fromarray(grey))), np.stack([grey] * 3, axis=-1))


def test_one_bit_is_black_and_white() -> None:
    bits = Image.fromarray(np.array([[0, 255], [255, 0]], np.uint8)).convert("1")
    np.testing.assert_array_equal(pixels_of(encoded(bits))[..., 1], [[0, 255], [255, 0]])


@pytest.mark.parametrize("kind", ["png", "tiff", "ppm"])
def test_16_bit_grey_is_scaled_not_clipped(kind: str) -> None:
    deep = np.linspace(0, 65535, 64 * 64).astype(np.uint16).reshape(64, 64)
    expected = np.round(deep / 257).astype(np.uint8)
    content = encoded(Image.fromarray(deep), kind)
    np.testing.assert_array_equal(pixels_of(content)[..., 2], expected)
    np.testing.assert_array_equal(pixels_of(Image.fromarray(deep))[..., 2], expected)


def test_16_bit_colour_keeps_the_upper_bits(tmp_path: Path) -> None:
    import cv2

    deep = np.random.default_rng(2).integers(0, 65536, (9, 7, 3), dtype=np.uint16)
    path = tmp_path / "deep.png"
    assert cv2.imwrite(str(path), deep[..., ::-1])
    difference = pixels_of(path).astype(int) - deep / 257
    assert np.abs(difference).max() <= 1


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "RGBa"])
def test_alpha_is_dropped_as_in_training(noise: Rgb, mode: str) -> None:
    alpha = np.random.default_rng(1).integers(0, 256, noise.shape[:2], dtype=np.uint8)
    image = Image.fromarray(np.dstack([noise, alpha]))
    if mode != "RGBA":
        image = (image.convert("P") if mode == "PA" else image).convert(mode)
    np.testing.assert_array_equal(pixels_of(image), np.asarray(image.convert("RGB")))


def test_opaque_colours_survive_an_alpha_channel(noise: Rgb) -> None:
    transparent = np.dstack([noise, np.zeros(noise.shape[:2], np.uint8)])
    np.testing.assert_array_equal(pixels_of(encoded(Image.fromarray(transparent))), noise)


@pytest.mark.parametrize("transparency", [3, bytes([0, 128, 255, 7])])
def test_palettes_with_transparency_give_their_colours(transparency: Any) -> None:
    palette = Image.fromarray(np.array([[0, 1], [2, 3]], np.uint8)).convert("P")
    palette.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90, 100, 110, 120])
    expected = np.arange(10, 130, 10).reshape(2, 2, 3)
    np.testing.assert_array_equal(pixels_of(encoded(palette, transparency=transparency)), expected)


def test_cmyk_is_pillows_conversion(noise: Rgb) -> None:
    cmyk = Image.fromarray(noise).convert("CMYK")
    content = encoded(cmyk, "jpeg", quality=95)
    with Image.open(io.BytesIO(content)) as image:
        assert image.mode == "CMYK"
        np.testing.assert_array_equal(pixels_of(content), np.asarray(image.convert("RGB")))
    assert np.abs(pixels_of(cmyk).astype(int) - noise).max() <= 1


def test_an_animation_gives_its_first_frame(noise: Rgb) -> None:
    frames = [Image.fromarray(noise).quantize(), Image.fromarray(255 - noise).quantize()]
    content = encoded(frames[0], "gif", save_all=True, append_images=frames[1:])
    np.testing.assert_array_equal(pixels_of(content), np.asarray(frames[0].convert("RGB")))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "empty"),
        (b"this is a text about pictures\n" * 40, "not a picture"),
        (b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n" + bytes(400), "not a picture"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nquit\n", "not a picture"),
        (b"\x89PNG\r\n\x1a\n" + bytes(30), "cannot be decoded|not a picture"),
        (b"\xff\xd8\xff\xe0", "cannot be decoded|not a picture"),
    ],
    ids=["zero bytes", "text", "pdf", "eps", "only a signature", "only a jpeg marker"],
)
def test_what_is_no_picture_is_refused_by_name(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "holiday.jpg"
    path.write_bytes(content)
    with pytest.raises(InputError, match=rf"holiday\.jpg.*({said})"):
        decode(path)
    with pytest.raises(InputError, match=said):
        decode(content)


@pytest.mark.parametrize("kind", ["jpeg", "png", "webp", "tiff", "gif", "bmp"])
@pytest.mark.parametrize("share", [0.3, 0.9])
def test_truncated_pictures_are_refused_by_name(tmp_path: Path, noise: Rgb, kind: str, share: float) -> None:
    content = encoded(Image.fromarray(noise), kind)
    path = tmp_path / f"cut.{kind}"
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(InputError, match=rf"cut\.{kind}"):
        decode(path)


def test_damage_inside_a_png_is_refused(noise: Rgb) -> None:
    content = bytearray(encoded(Image.fromarray(noise)))
    content[len(content) // 2] ^= 0xFF
    with pytest.raises(InputError, match="damaged"):
        decode(bytes(content))


def png_claiming(width: int, height: int) -> bytes:
    """A few dozen bytes that say they are a huge picture."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(99)))


@pytest.mark.parametrize("size", [(100_000, 100_000), (12_000, 12_000)])
def test_decompression_bombs_are_refused_before_decoding(size: tuple[int, int]) -> None:
    with pytest.raises(InputError, match=r"too large|more than \d+ pixels"):
        decode(png_claiming(*size))


def test_the_limit_is_pillows_own(noise: Rgb, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(InputError, match="64x48"):
        decode(Image.fromarray(noise))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert pixels_of(Image.fromarray(noise)).shape == noise.shape


@pytest.mark.parametrize(
    "picture",
    [
        np.zeros((4, 4, 3), np.float32),
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((3, 4, 4), np.uint8),
        np.zeros((2, 4, 4, 3), np.uint8),
        np.zeros((0, 4, 3), np.uint8),
        Image.new("F", (4, 4)),
        Image.fromarray(np.full((4, 4), 70000, np.int32)),
        Image.new("LA", (4, 4)).convert("La"),
        Image.new("RGB", (0, 4)),
        None,
        3,
    ],
    ids=lambda p: f"{getattr(p, 'dtype', getattr(p, 'mode', p))}-{getattr(p, 'shape', '')}",
)
def test_what_cannot_be_a_picture_is_refused(picture: Any) -> None:
    with pytest.raises(InputError):
        decode(picture)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere\.png does not exist"):
        decode(tmp_path / "nowhere.png")


def test_a_folder_is_no_picture(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be decoded"):
        decode(tmp_path)


def test_folders_are_listed_sorted_without_hidden_files(tmp_path: Path) -> None:
    names = ["b.JPG", "a/z.png", "a/.hidden.png", ".git/c.png", "notes.txt", "c.webp", "a/b/d.tiff"]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = [str(path.relative_to(tmp_path)) for path in list_pictures(tmp_path)]
    assert found == ["a/b/d.tiff", "a/z.png", "b.JPG", "c.webp"]
    with pytest.raises(UsageError, match="not a folder"):
        list_pictures(tmp_path / "notes.txt")
