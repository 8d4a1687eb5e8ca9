"""Find small objects in a large picture: as a whole, where they shrink, and in tiles, where they do not.

python examples/12_large_image.py [BUNDLE] [--out large.png]

The picture is an aerial view of sorts: 1600 x 1200 pixels with sixty digits. Without a bundle the demo's
detector is exported first.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import saccade
from digits import detector, objects
from digits.bundles import export_detector
from digits.scenes import LABELS
from saccade import Detections

TILE = (224, 104)  # pixels: what the detector was trained on, and a little more than the largest digit
LEAST_SCORE, LEAST_IOU = 0.5, 0.5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", nargs="?", type=Path, help="a detector (default: the demo's)")
    parser.add_argument("--out", type=Path, default=Path("large.png"), help="the picture that is written")
    options = parser.parse_args()
    scene = objects.aerial()
    with tempfile.TemporaryDirectory() as folder:
        bundle = options.bundle or export_detector(detector.NET, Path(folder) / "detector").path
        with saccade.load(bundle) as detect:
            whole, tiled = detect(scene.image), detect(scene.image, tile=TILE)
    for name, found in {"as a whole": whole, f"in tiles of {TILE[0]} pixels": tiled}.items():
        sure = found[found.scores >= LEAST_SCORE]
        print(f"{name}: {right(sure, scene)} of {len(scene)} digits, {len(sure)} objects")
    saccade.draw(scene.image, tiled[tiled.scores >= LEAST_SCORE]).save(options.out)
    print(f"wrote {options.out}")


def right(found: Detections, scene: objects.Scene) -> int:
    """How many digits of `scene` have a box of their class around them."""
    return sum(
        any(each.label == LABELS[label] and iou(each.box_xyxy, box) >= LEAST_IOU for each in found)
        for label, box in zip(scene.labels, scene.boxes_xyxy.tolist(), strict=True)
    )


def iou(one: tuple[float, ...], other: tuple[float, ...]) -> float:
    """Intersection over union of two boxes."""
    across = min(one[2], other[2]) - max(one[0], other[0])
    down = min(one[3], other[3]) - max(one[1], other[1])
    common = max(across, 0) * max(down, 0)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    return common / (sum(areas) - common)


if __name__ == "__main__":
    main()
