"""Videos are written whole or not at all, and read back frame by frame."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from saccade import UsageError
from saccade.media import open_source
from saccade.video import write_video


def frames(count: int, size_hw: tuple[int, int] = (48, 64)) -> Iterator[NDArray[np.uint8]]:
    """Each of one grey, lighter and lighter."""
    return (np.full((*size_hw, 3), 20 * index, np.uint8) for index in range(count))


@pytest.mark.parametrize("suffix", [".mp4", ".avi"])
@pytest.mark.parametrize(("rate", "expected"), [(10.0, 10.0), (None, 25.0)])
def test_what_is_written_is_read(tmp_path: Path, suffix: str, rate: float | None, expected: float) -> None:
    path = tmp_path / f"grey{suffix}"
    assert write_video(path, frames(8), rate) == 8
    media = open_source(path)
    assert (media.total, media.frames_per_second) == (8, pytest.approx(expected))
    greys = [float(np.asarray(frame).mean()) for frame in media.pictures]
    np.testing.assert_allclose(greys, 20 * np.arange(8), atol=6)
    assert list(tmp_path.iterdir()) == [path]


def test_odd_sides_lose_a_row_and_a_column(tmp_path: Path) -> None:
    write_video(tmp_path / "odd.mp4", frames(2, (49, 65)))
    (first, _) = open_source(tmp_path / "odd.mp4").pictures
    assert np.asarray(first).shape == (48, 64, 3)


def broken() -> Iterator[NDArray[np.uint8]]:
    yield from frames(2)
    raise ValueError("no more")


def test_an_interrupted_video_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no more"):
        write_video(tmp_path / "half.mp4", broken())
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_written_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no frames"):
        write_video(tmp_path / "none.mp4", [])
    with pytest.raises(UsageError, match="frame 3 has another size"):
        write_video(tmp_path / "mixed.mp4", [*frames(2), *frames(1, (32, 64))])
    with pytest.raises(UsageError, match=r"ends in \.mp4 or \.avi"):
        write_video(tmp_path / "grey.gif", frames(2))
    assert not list(tmp_path.iterdir())
    (tmp_path / "there.mp4").touch()
    with pytest.raises(UsageError, match="exists already"):
        write_video(tmp_path / "there.mp4", frames(2))
