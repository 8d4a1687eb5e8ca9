"""Where a stream of pictures comes from: a folder, a video file, or whatever can be iterated."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sized
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

from saccade.errors import InputError, MissingDependency
from saccade.pictures import PICTURE_SUFFIXES, Picture, RgbArray, list_pictures

__all__ = ["VIDEO_SUFFIXES", "Media", "Source", "batched", "open_source"]

VIDEO_SUFFIXES = frozenset({".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm", ".wmv"})

Source: TypeAlias = str | os.PathLike[str] | Iterable[Picture]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Media:
    """Pictures one by one, and how many there are where that is known beforehand.

    frames_per_second: of a video whose file says so.
    """

    pictures: Iterable[Picture]
    total: int | None
    frames_per_second: float | None = None


def open_source(source: Source) -> Media:
    """`source` as pictures.

    A folder gives the paths of the pictures in it and below, sorted; a video file its frames, RGB arrays
    (H, W, 3) uint8, upright; a picture file itself; anything else is iterated. Video needs OpenCV
    (MissingDependency); a file that is neither raises InputError.
    """
    if not isinstance(source, str | os.PathLike):
        return Media(source, len(source) if isinstance(source, Sized) else None)
    path = Path(source)
    if path.is_dir():
        paths = list_pictures(path)
        return Media(paths, len(paths))
    if not path.exists():
        raise InputError(f"{path} does not exist")
    if path.suffix.lower() in PICTURE_SUFFIXES:
        return Media([path], 1)
    return _open_video(path)


def batched(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Lists of `size` items in their order; the last one may be shorter."""
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch


def _open_video(path: Path) -> Media:
    try:
        import cv2
    except ModuleNotFoundError as error:
        raise MissingDependency(
            f"reading the video {path} needs OpenCV, which is not installed: pip install 'saccade[video]'"
        ) from error
    capture = cv2.VideoCapture(str(path))
    if not capture.isOpened():
        raise InputError(f"{path} is neither a folder, nor a picture, nor a video that OpenCV reads")
    frames, rate = int(capture.get(cv2.CAP_PROP_FRAME_COUNT)), capture.get(cv2.CAP_PROP_FPS)
    return Media(_frames(capture, path), frames if frames > 0 else None, rate if rate > 0 else None)


def _frames(capture: Any, path: Path) -> Iterator[RgbArray]:
    """Frames until the file ends or cannot be decoded further; one without any is refused."""
    import cv2

    try:
        count = 0
        while True:
            read, frame = capture.read()
            if not read:
                break
            count += 1
            yield cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)
        if count == 0:
            raise InputError(f"{path} has no frame that can be decoded")
    finally:
        capture.release()
