"""Follow objects through a video: detect in every frame, then join what overlaps from frame to frame.

python examples/11_track_video.py [BUNDLE] [--video FILE] [--frames N] [--out tracked.mp4]

Without a bundle the demo's detector is exported first; without a video, digits drift over a photograph.
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

import saccade
from digits import detector, objects
from digits.bundles import export_detector
from saccade import Detections
from saccade.media import open_source
from saccade.video import write_video

LEAST_SCORE = 0.5
LEAST_IOU = 0.3  # of a box with the last one of its track
PATIENCE = 10  # frames that an object may be hidden


@dataclasses.dataclass
class Track:
    """One object: where it was last, when, and what it was taken for."""

    box_xyxy: npt.NDArray[np.float32]
    frame: int
    labels: Counter[str]


class Tracker:
    """Greedy matching by overlap; the best pair first."""

    def __init__(self) -> None:
        self.tracks: list[Track] = []

    def follow(self, found: Detections, frame: int) -> npt.NDArray[np.int64]:
        """The track (n,) of each object in `found`; new ones begin where nothing fits."""
        alive = [i for i, track in enumerate(self.tracks) if frame - track.frame <= PATIENCE]
        last = np.array([self.tracks[i].box_xyxy for i in alive], np.float32).reshape(-1, 4)
        overlap = iou(found.boxes_xyxy, last)
        chosen = np.full(len(found), -1, np.int64)
        while overlap.size and overlap.max() >= LEAST_IOU:
            row, column = np.unravel_index(overlap.argmax(), overlap.shape)
            chosen[row] = alive[column]
            overlap[row], overlap[:, column] = 0, 0
        for row, (box, label) in enumerate(zip(found.boxes_xyxy, found.labels, strict=True)):
            if chosen[row] < 0:
                chosen[row] = len(self.tracks)
                self.tracks.append(Track(box, frame, Counter()))
            track = self.tracks[chosen[row]]
            track.box_xyxy, track.frame = box, frame
            track.labels[label] += 1
        return chosen


def iou(boxes: npt.NDArray[np.float32], others: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """(n, 4), (m, 4) -> (n, m): intersection over union."""
    low = np.maximum(boxes[:, None, :2], others[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], others[None, :, 2:])
    common = np.maximum(high - low, 0).prod(axis=2)
    areas = [(each[:, 2:] - each[:, :2]).prod(axis=1) for each in (boxes, others)]
    shared: npt.NDArray[np.float32] = common / np.maximum(areas[0][:, None] + areas[1] - common, 1e-9)
    return shared


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", nargs="?", type=Path, help="a detector (default: the demo's)")
    parser.add_argument("--video", type=Path, help="a video file (default: digits that drift)")
    parser.add_argument("--frames", type=int, default=60, help="of the drifting digits")
    parser.add_argument("--out", type=Path, default=Path("tracked.mp4"), help="the video that is written")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        bundle = options.bundle or export_detector(detector.NET, scratch / "detector").path
        video = options.video or scratch / "digits.mp4"
        if options.video is None:
            write_video(video, (scene.image for scene in objects.clip(options.frames)))
        tracks = track(bundle, video, options.out)
    for number, each in enumerate(tracks):
        label, times = each.labels.most_common(1)[0]
        print(f"#{number}: {label} in {times} of the {each.labels.total()} frames that it was seen in")
    print(f"{len(tracks)} objects; wrote {options.out}")


def track(bundle: Path, video: Path, out: Path) -> list[Track]:
    """Write `video` with its objects named and numbered."""
    tracker = Tracker()

    def frames() -> Iterator[npt.NDArray[np.uint8]]:
        with saccade.load(bundle) as detect:
            for index, (frame, found) in enumerate(detect.stream(video, batch_size=4)):
                sure = found[found.scores >= LEAST_SCORE]
                numbers = tracker.follow(sure, index)
                names = tuple(f"#{n} {label}" for n, label in zip(numbers, sure.labels, strict=True))
                # The number as the class: an object keeps its colour, whatever it is taken for.
                yield np.asarray(
                    saccade.draw(frame, dataclasses.replace(sure, labels=names, indices=numbers))
                )

    write_video(out, frames(), open_source(video).frames_per_second)
    return tracker.tracks


if __name__ == "__main__":
    main()
