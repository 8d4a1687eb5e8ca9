"""The demo networks as bundles, and what an engine answers about the demo's pictures."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import saccade
from digits import nets, objects, scenes
from saccade.bundle import Bundle
from saccade.export import export_bundle
from saccade.results.detections import Detections

FITTED_HW = (224, 320)  # shorter and longer side, at most, of the pictures that the detector sees


def export(chosen: nets.Net, out: Path, progress: Callable[[str], None] | None = None) -> Bundle:
    """Export a demo classifier from its committed checkpoint to the new folder `out`, verified."""
    size_hw = (chosen.size_px, chosen.size_px)
    return _export(chosen, out, progress, input_size_hw=size_hw, crop=1.0)  # pictures are made at that size


def export_detector(chosen: nets.Net, out: Path, progress: Callable[[str], None] | None = None) -> Bundle:
    """Export the demo's detector from its committed checkpoint to the new folder `out`, verified."""
    return _export(chosen, out, progress, input_size_hw=FITTED_HW)


def _export(
    chosen: nets.Net, out: Path, progress: Callable[[str], None] | None, **preprocessing: Any
) -> Bundle:
    with tempfile.TemporaryDirectory() as scratch:
        labels = Path(scratch) / "labels.txt"
        labels.write_text("\n".join(scenes.LABELS))
        return export_bundle(
            chosen.model,
            chosen.weights,
            out,
            labels=labels,
            config=chosen.config,
            mean_rgb=nets.MEAN_RGB,
            std_rgb=nets.STD_RGB,
            progress=progress,
            **preprocessing,
        )


def scores(
    bundle: str | Path, pictures: scenes.Pictures, engine: str = "auto", batch: int = 32
) -> npt.NDArray[np.float32]:
    """(n, classes) float32: the probabilities that the bundle gives for `pictures` on `engine`."""
    with saccade.load(bundle, engine=engine) as classify:
        starts = range(0, len(pictures), batch)
        answers = [
            answer for start in starts for answer in classify(list(pictures.images[start : start + batch]))
        ]
    return np.stack([answer.scores for answer in answers])


def labelled(
    bundle: str | Path, drawn: Sequence[objects.Scene], engine: str = "auto", batch: int = 10
) -> scenes.Pixels:
    """(n, H, W): the class that the bundle of a segmenter gives each pixel of each scene on `engine`."""
    with saccade.load(bundle, engine=engine) as segment:
        starts = range(0, len(drawn), batch)
        answers = [
            answer
            for start in starts
            for answer in segment([scene.image for scene in drawn[start : start + batch]])
        ]
    return np.stack([answer.labels for answer in answers])


def found(
    bundle: str | Path, drawn: Sequence[objects.Scene], engine: str = "auto", batch: int = 10
) -> list[Detections]:
    """What the bundle of a detector finds in each scene on `engine`."""
    with saccade.load(bundle, engine=engine) as find:
        starts = range(0, len(drawn), batch)
        return [
            answer
            for start in starts
            for answer in find([scene.image for scene in drawn[start : start + batch]])
        ]
