"""Streams: folders, videos, iterators."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from saccade.errors import InputError
from saccade.media import batched, open_source


def write_video(path: Path, greys: list[int]) -> Path:
    """Uncompressed-looking frames, each of one grey."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 10, (64, 48))
    for grey in greys:
        frame = np.full((48, 64, 3), grey, np.uint8)
        frame[:8, :8] = (255, 0, 0)  # a blue corner, in OpenCV's order
        writer.write(frame)
    writer.release()
    return path


def test_a_folder_gives_its_pictures(tmp_path: Path) -> None:
    for name in ("b.png", "a.png", "notes.txt"):
        Image.new("RGB", (2, 2)).save(tmp_path / name, "png")
    media = open_source(tmp_path)
    assert media.total == 2
    assert list(media.pictures) == [tmp_path / "a.png", tmp_path / "b.png"]


def test_a_picture_is_a_stream_of_one(tmp_path: Path) -> None:
    path = tmp_path / "one.png"
    Image.new("RGB", (2, 2)).save(path)
    media = open_source(str(path))
    assert (list(media.pictures), media.total) == ([path], 1)


def test_a_video_gives_rgb_frames(tmp_path: Path) -> None:
    media = open_source(write_video(tmp_path / "clip.avi", [10, 100, 200]))
    frames: list[Any] = list(media.pictures)
    assert media.total == 3
    assert [round(frame[20:, 20:].mean(), -1) for frame in frames] == [10, 100, 200]
    red, _, blue = frames[0][2, 2]
    assert blue > 200
    assert red < 60


@pytest.mark.parametrize(("source", "total"), [([1, 2, 3], 3), ((1,), 1), (iter([1, 2]), None)])
def test_iterables_pass_through(source: Any, total: int | None) -> None:
    media = open_source(source)
    assert media.total == total
    assert media.pictures is source


@pytest.mark.parametrize(("name", "content"), [("notes.txt", b"text"), ("empty.mp4", b"")])
def test_other_files_are_refused(tmp_path: Path, name: str, content: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(InputError, match=name):
        open_source(path)


def test_a_missing_path_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere\.mp4 does not exist"):
        open_source(tmp_path / "nowhere.mp4")


def test_a_video_without_opencv_gives_the_install_line(tmp_path: Path) -> None:
    path = write_video(tmp_path / "clip.avi", [1])
    program = (
        "import sys; sys.modules['cv2'] = None\n"
        "from saccade.media import open_source\n"
        "from saccade.errors import MissingDependency\n"
        "try: open_source(sys.argv[1])\n"
        "except MissingDependency as error: print(error)"
    )
    child = subprocess.run([sys.executable, "-c", program, path], capture_output=True, text=True, check=True)
    assert "pip install 'saccade[video]'" in child.stdout


@pytest.mark.parametrize(("count", "sizes"), [(0, []), (3, [3]), (7, [3, 3, 1]), (6, [3, 3])])
def test_batches_keep_the_order(count: int, sizes: list[int]) -> None:
    batches = list(batched(range(count), 3))
    assert [len(batch) for batch in batches] == sizes
    assert [item for batch in batches for item in batch] == list(range(count))
