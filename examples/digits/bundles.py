"""The demo networks as bundles, and what an engine answers about the demo's pictures."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt

import saccade
from digits import nets, scenes
from saccade.bundle import Bundle
from saccade.export import export_bundle


def export(chosen: nets.Net, out: Path, progress: Callable[[str], None] | None = None) -> Bundle:
    """Export a demo network from its committed checkpoint to the new folder `out`, verified."""
    with tempfile.TemporaryDirectory() as scratch:
        labels = Path(scratch) / "labels.txt"
        labels.write_text("\n".join(scenes.LABELS))
        return export_bundle(
            chosen.model,
            chosen.weights,
            out,
            labels=labels,
            config=chosen.config,
            input_size_hw=(chosen.size_px, chosen.size_px),
            mean_rgb=nets.MEAN_RGB,
            std_rgb=nets.STD_RGB,
            crop=1.0,  # the pictures are made at the network's size
            progress=progress,
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
