"""Label the pixels of scenes of digits, whole and in tiles; PyTorch and the engines reach one mean IoU.

python examples/09_segment.py --scenes 300 --out /tmp/segmented
"""

from __future__ import annotations

import argparse
import importlib.util
import tempfile
from pathlib import Path

import saccade
from digits import folders, objects, segmentation
from saccade.evaluation import evaluate
from saccade.predictors.semantic_segmentation import SemanticSegmenter


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scenes", type=int, default=300, help="held-out scenes to measure on")
    parser.add_argument("--out", type=Path, help="folder for the bundle and two drawings")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        show(options.out or Path(scratch), options.scenes)


def show(out: Path, count: int) -> None:
    bundle = segmentation.export(out / "digits-segmenter", progress=print)
    scenes = objects.held_out(count)
    data = folders.write_semantic(scenes, out / "scenes")
    print(f"PyTorch: mean IoU {100 * segmentation.mean_iou(segmentation.trained(), scenes):.2f} %")
    engines = ["onnxruntime", *(["openvino"] if importlib.util.find_spec("openvino") else [])]
    for engine in engines:
        with saccade.load(bundle.path, engine=engine) as segment:
            print(f"{engine}: {evaluate(segment, data).table().closing}")
    with saccade.load(bundle.path) as segment:
        assert isinstance(segment, SemanticSegmenter)
        draw(segment, out)


def draw(segment: SemanticSegmenter, out: Path) -> None:
    """A scene, and a picture of 1600 x 1200, far larger than what the network sees, in tiles."""
    scene, aerial = objects.held_out(2)[1], objects.aerial()
    saccade.draw(scene.image, segment(scene.image)).save(out / "scene.png")
    whole, tiled = segment(aerial.image), segment(aerial.image, tile=(224, 64))
    for how, found in (("whole", whole), ("in tiles", tiled)):
        right = (found.labels == aerial.semantic)[aerial.semantic > 0].mean()
        print(f"1600 x 1200 pixels {how}: {right:.1%} of the digits' pixels right")
    saccade.draw(aerial.image, tiled).save(out / "aerial.png")


if __name__ == "__main__":
    main()
