"""Frames into a video file, which is there whole or not at all."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterable
from pathlib import Path

from saccade.errors import MissingDependency, UsageError
from saccade.pictures import RgbArray

__all__ = ["write_video"]

_CODECS = {".mp4": "mp4v", ".avi": "MJPG"}
FRAMES_PER_SECOND = 25.0


def write_video(path: Path, frames: Iterable[RgbArray], frames_per_second: float | None = None) -> int:
    """Write RGB frames (H, W, 3) uint8, all of one size, and return how many there were.

    path: ends in .mp4 (MPEG-4) or .avi (Motion JPEG), whose sides are even: an odd row or column at the end
    is left out. Needs OpenCV. Raises UsageError where the file exists, there is no frame, or sizes differ.
    """
    try:
        import cv2
    except ModuleNotFoundError as error:
        raise MissingDependency(
            f"writing the video {path} needs OpenCV, which is not installed: pip install 'saccade[video]'"
        ) from error
    if path.suffix.lower() not in _CODECS:
        raise UsageError(f"{path}: a video that is written ends in {' or '.join(_CODECS)}")
    if path.exists():
        raise UsageError(f"{path} exists already: choose another name")
    codec = cv2.VideoWriter.fourcc(*_CODECS[path.suffix.lower()])
    partial = path.with_name(f".{path.stem}-{secrets.token_hex(4)}{path.suffix}")
    writer, size, count = None, (0, 0), 0
    try:
        for count, frame in enumerate(frames, start=1):
            if writer is None:
                size = frame.shape[1] // 2 * 2, frame.shape[0] // 2 * 2
                writer = cv2.VideoWriter(str(partial), codec, frames_per_second or FRAMES_PER_SECOND, size)
                if not writer.isOpened():
                    raise UsageError(f"OpenCV cannot write {path} with frames of {size[0]}x{size[1]}")
            if (frame.shape[1] // 2 * 2, frame.shape[0] // 2 * 2) != size:
                raise UsageError(f"{path}: frame {count} has another size than the first one")
            writer.write(cv2.cvtColor(frame[: size[1], : size[0]], cv2.COLOR_RGB2BGR))
        if writer is None:
            raise UsageError(f"{path}: there are no frames to write")
        writer.release()
        os.replace(partial, path)
    finally:
        if writer is not None:
            writer.release()
        partial.unlink(missing_ok=True)
    return count
