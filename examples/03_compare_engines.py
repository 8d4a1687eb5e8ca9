"""Do PyTorch, ONNX Runtime and OpenVINO give the same answers? Accuracy of each on held-out pictures.

python examples/03_compare_engines.py
python examples/03_compare_engines.py stvit deepmad --pictures 2000
python examples/03_compare_engines.py detector segmenter --scenes 500
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.table import Table

from digits import bundles, detector, nets, objects, precision, scenes, segmentation

ENGINES = ("onnxruntime", "openvino")
REFERENCE = "torch"


@dataclasses.dataclass(frozen=True)
class Agreement:
    """`right` and `differing` are shares of the pictures; the latter counts answers that are not torch's."""

    net: str
    engine: str
    pictures: int
    right: float
    differing: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    known = (*nets.NETS, detector.NET.name, segmentation.NET.name)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(known)}; all by default")
    parser.add_argument("--pictures", type=int, default=500, help="for the classifiers")
    parser.add_argument("--scenes", type=int, default=50, help="for the detector and the segmenter")
    options = parser.parse_args()
    names = options.names or known
    if unknown := [name for name in names if name not in known]:
        parser.error(f"there is no demo network {', '.join(unknown)}: choose from {', '.join(known)}")
    if classifiers := [name for name in names if name in nets.NETS]:
        pictures = scenes.held_out(options.pictures)
        table = Table(
            "network", "engine", "right", "not as torch", title=f"{len(pictures)} held-out pictures"
        )
        for name in classifiers:
            for row in compare(nets.net(name), pictures):
                table.add_row(row.net, row.engine, f"{row.right:.2%}", f"{row.differing:.2%}")
        Console().print(table)
    if detector.NET.name in names:
        table = Table("engine", "boxes and masks found", title=f"{options.scenes} held-out scenes")
        for engine, reached in compare_detector(objects.held_out(options.scenes)).items():
            table.add_row(engine, str(reached))
        Console().print(table)
    if segmentation.NET.name in names:
        table = Table(
            "engine",
            "mean IoU",
            "pixels not as torch",
            title=f"{options.scenes} held-out scenes, pixel by pixel",
        )
        for engine, (iou, differing) in compare_segmenter(objects.held_out(options.scenes)).items():
            table.add_row(engine, f"{iou:.2%}", f"{differing:.4%}")
        Console().print(table)


def compare(chosen: nets.Net, pictures: scenes.Pictures, engines: Sequence[str] = ENGINES) -> list[Agreement]:
    """Export `chosen`, and let torch and every engine answer for `pictures`."""
    reference = nets.predictions(nets.trained(chosen.name), pictures.at(chosen.size_px))
    answers: dict[str, npt.NDArray[np.int64]] = {REFERENCE: reference}
    with tempfile.TemporaryDirectory() as scratch:
        bundle = bundles.export(chosen, Path(scratch) / chosen.name)
        for engine in engines:
            answers[engine] = bundles.scores(bundle.path, pictures, engine).argmax(1)
    return [
        Agreement(
            chosen.name,
            engine,
            len(pictures),
            float((answer == pictures.labels).mean()),
            float((answer != reference).mean()),
        )
        for engine, answer in answers.items()
    ]


def compare_detector(
    drawn: Sequence[objects.Scene], engines: Sequence[str] = ENGINES
) -> dict[str, precision.Precision]:
    """Export the demo's detector; what torch and every engine find in `drawn`, measured."""
    found = {REFERENCE: precision.detect(detector.trained(), drawn)}
    with tempfile.TemporaryDirectory() as scratch:
        bundle = bundles.export_detector(detector.NET, Path(scratch) / detector.NET.name)
        for engine in engines:
            found[engine] = bundles.found(bundle.path, drawn, engine)
    return {engine: precision.average_precision(each, drawn) for engine, each in found.items()}


def compare_segmenter(
    drawn: Sequence[objects.Scene], engines: Sequence[str] = ENGINES
) -> dict[str, tuple[float, float]]:
    """Export the demo's segmenter; mean IoU of torch and of every engine, and the share of unlike pixels."""
    true = np.stack([scene.semantic for scene in drawn])
    maps = {REFERENCE: segmentation.label_maps(segmentation.trained(), drawn)}
    with tempfile.TemporaryDirectory() as scratch:
        bundle = segmentation.export(Path(scratch) / segmentation.NET.name)
        for engine in engines:
            maps[engine] = bundles.labelled(bundle.path, drawn, engine)
    return {
        engine: (
            float(segmentation.ious(segmentation.confusion(true, each)).mean()),
            float((each != maps[REFERENCE]).mean()),
        )
        for engine, each in maps.items()
    }


if __name__ == "__main__":
    main()
