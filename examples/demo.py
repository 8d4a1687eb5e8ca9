"""`make demo`: checkpoints become verified bundles, and do their work on pictures that they have never seen.

    python examples/demo.py --out demo-output [--net stvit] [--pictures 200] [--scenes 20] [--searched 300]

They classify digits, outline them, label every pixel, and find pictures by what is said of them. Writes the
bundles and `demo.png`, `demo-detected.png`, `demo-segmented.png` and `demo-found.png` into the folder.
"""

from __future__ import annotations

import argparse
import importlib.util
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.table import Table

import saccade
from digits import (
    bundles,
    captions,
    contrastive,
    detector,
    folders,
    nets,
    objects,
    poster,
    precision,
    scenes,
    segmentation,
)
from saccade.palette import class_colours
from saccade.predictors.zero_shot import ZeroShotClassifier
from saccade.results.detections import Detections
from saccade.verification import verify

CELLS = 24
OUTLINED = 6
LEAST_SCORE = 0.5  # of what is drawn
ENGINES = {"onnxruntime": "ONNX Runtime", "openvino": "OpenVINO"}
QUERIES = (
    captions.Claim("a handwritten seven on a flower", 7, 1),
    captions.Claim("the number three in front of a temple", 3, 0),
    captions.Claim("a picture of the number zero", 0, -1),
    captions.Claim("something painted on a flower", -1, 1),
)
CREDITS = (
    "scikit-learn's handwritten digits on its photographs (danielbuechele, vultilion; CC BY 2.0), both held "
    "out of training."
)

console = Console()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--out", type=Path, default=Path("demo-output"), help="folder for bundles and pictures"
    )
    parser.add_argument("--net", default="stvit", choices=list(nets.NETS))
    parser.add_argument("--pictures", type=int, default=200, help="held-out pictures to classify")
    parser.add_argument("--scenes", type=int, default=20, help="held-out scenes to find digits in, or 0")
    parser.add_argument("--searched", type=int, default=300, help="pictures to search, or 0")
    options = parser.parse_args()
    chosen, out = nets.net(options.net), options.out
    start = time.perf_counter()
    name = f"digits-{chosen.name}"
    bundle = export(chosen, out / name, lambda to, say: bundles.export(chosen, to, say))
    classify(chosen, bundle, scenes.held_out(options.pictures), out / "demo.png")
    console.print(f"next     saccade predict {bundle} YOUR_PICTURE")
    if options.scenes:
        drawn = objects.held_out(options.scenes)
        net = detector.NET
        finder = export(net, out / "digits-detector", lambda to, say: bundles.export_detector(net, to, say))
        detect(finder, drawn, out / "demo-detected.png")
        labeller = export(segmentation.NET, out / "digits-segmenter", segmentation.export)
        segment(labeller, drawn, out / "demo-segmented.png")
    if options.searched:
        pair = export(contrastive.NET, out / "digits-contrastive", contrastive.export)
        search(pair, captions.held_out(options.searched, scenes.SIZE_PX), out)
        console.print(f'next     saccade search {pair} {out / "gallery"} "a handwritten two on a temple"')
    console.print(f"\n[bold]done in {time.perf_counter() - start:.0f} s")


def export(chosen: nets.Net, out: Path, make: Callable[[Path, Callable[[str], None]], object]) -> Path:
    """Make the bundle anew, say what is done, and print what verification measured."""
    console.rule(f"[bold]{chosen.weights.name} to a bundle")
    shutil.rmtree(out, ignore_errors=True)
    out.parent.mkdir(parents=True, exist_ok=True)
    make(out, lambda step: console.print(f"  {step}"))
    table = Table("engine", "output", "largest difference", "tolerance", "verdict")
    table.title = "The graph beside the module"
    for row in verify(out).comparisons:
        verdict = "[green]agrees" if row.agrees else "[red]differs"
        differs, allowed = f"{row.max_abs_difference:.1e}", f"{row.tolerance:.1e}"
        table.add_row(row.engine, row.output, differs, allowed, verdict)
    console.print(table)
    return out


def classify(chosen: nets.Net, bundle: Path, pictures: scenes.Pictures, file: Path) -> None:
    """Classify `pictures` in torch and in every installed engine; draw the first engine's answers."""
    console.rule(f"[bold]{len(pictures)} pictures it has never seen")
    table = Table("", "right", "answers unlike torch", "ms a picture")
    start = time.perf_counter()
    reference = nets.predictions(nets.trained(chosen.name), pictures.at(chosen.size_px))
    table.add_row("PyTorch", *_row(reference, reference, pictures, start))
    scores: list[npt.NDArray[np.float32]] = []
    for engine, title in installed():
        start = time.perf_counter()
        scores.append(bundles.scores(bundle, pictures, engine))
        table.add_row(title, *_row(scores[-1].argmax(1), reference, pictures, start))
    console.print(table)
    draw(chosen, pictures, scores[0], file)
    _wrote(bundle, file)


def detect(bundle: Path, drawn: Sequence[objects.Scene], file: Path) -> None:
    """Find the digits of `drawn` in every installed engine, and draw what the first one found."""
    console.rule(f"[bold]{len(drawn)} scenes it has never seen")
    table = Table("", "box AP", "box AP50", "mask AP", "mask AP50", "ms a picture")
    found: list[list[Detections]] = []
    for engine, title in installed():
        start = time.perf_counter()
        found.append(bundles.found(bundle, drawn, engine))
        each_ms = 1000 * (time.perf_counter() - start) / len(drawn)
        reached = precision.average_precision(found[-1], drawn)
        shares = (reached.box, reached.box_50, reached.mask, reached.mask_50)
        table.add_row(title, *(f"{share:.1%}" for share in shares), f"{each_ms:.1f}")
    console.print(table)
    pairs = zip(drawn[:OUTLINED], found[0], strict=False)
    sure = [saccade.draw(scene.image, answers[answers.scores > LEAST_SCORE]) for scene, answers in pairs]
    poster.grid(sure).save(file, optimize=True)
    _wrote(bundle, file)


def segment(bundle: Path, drawn: Sequence[objects.Scene], file: Path) -> None:
    """Label the pixels of `drawn` in every installed engine; draw the first one's maps and the true ones."""
    console.rule(f"[bold]the pixels of {len(drawn)} scenes it has never seen")
    table = Table("", "mean IoU", "pixels unlike the first", "ms a picture")
    true = np.stack([scene.semantic for scene in drawn])
    maps: list[npt.NDArray[np.uint8]] = []
    for engine, title in installed():
        start = time.perf_counter()
        maps.append(bundles.labelled(bundle, drawn, engine))
        each_ms = 1000 * (time.perf_counter() - start) / len(drawn)
        iou = segmentation.ious(segmentation.confusion(true, maps[-1])).mean()
        table.add_row(title, f"{iou:.1%}", str((maps[-1] != maps[0]).sum()), f"{each_ms:.1f}")
    console.print(table)
    colours = np.array(class_colours(len(segmentation.LABELS)))
    legend = {n: tuple(c.tolist()) for n, c in zip(segmentation.LABELS[1:], colours[1:], strict=True)}
    colours[0] = 24  # the background, nearly black
    content = (
        poster.Row("Pictures", [scene.image for scene in drawn[:OUTLINED]]),
        poster.Row("True classes", colours[true[:OUTLINED]]),
        poster.Row("Answered classes", colours[maps[0][:OUTLINED]]),
    )
    right = (maps[0] == true)[true > 0].mean()
    subtitle = (
        f"{segmentation.NET.title}: {right:.1%} of the digits' pixels in {len(drawn)} scenes are right."
    )
    poster.rows(content, "Every pixel labelled", subtitle, CREDITS, legend).save(file, optimize=True)
    _wrote(bundle, file)


def search(bundle: Path, pictures: captions.Captioned, out: Path) -> None:
    """Name the digits of `pictures` by ten prompts, then index them as a folder and find some by captions."""
    console.rule(f"[bold]{len(pictures)} pictures and what is said of them")
    table = Table("", "named by the nearest of ten prompts", "ms a picture")
    prompts = [contrastive.PROMPT.format(name) for name in scenes.LABELS]
    for engine, title in installed():
        with saccade.load(bundle, engine=engine) as model:
            assert isinstance(model, ZeroShotClassifier)
            start = time.perf_counter()
            answers = model(list(pictures.images), prompts)
            each_ms = 1000 * (time.perf_counter() - start) / len(pictures)
        right = np.mean(
            [a.scores.argmax() == digit for a, digit in zip(answers, pictures.digits, strict=True)]
        )
        table.add_row(title, f"{right:.1%}", f"{each_ms:.1f}")
    console.print(table)
    for folder in (out / "pictures", out / "gallery"):
        shutil.rmtree(folder, ignore_errors=True)
    folders.write_captioned(pictures, out / "pictures")
    with saccade.load(bundle) as model:
        assert isinstance(model, ZeroShotClassifier)
        gallery = saccade.Gallery.index(out / "pictures", model, out / "gallery", progress=False)
        content = [_found(gallery, claim, pictures) for claim in QUERIES]
    subtitle = (
        f"{contrastive.NET.title}: of {len(pictures)} held-out pictures, those nearest to each caption."
    )
    file = out / "demo-found.png"
    poster.rows(content, "Found by what is said of them", subtitle, CREDITS).save(file, optimize=True)
    _wrote(bundle, file)


def _found(gallery: saccade.Gallery, claim: captions.Claim, pictures: captions.Captioned) -> poster.Row:
    """The pictures nearest to a caption; those are wrong of which it is not true."""
    places = [int(hit.path.name.split("_")[0]) for hit in gallery.search(claim.text, poster.COLUMNS)]
    holds = claim.holds(pictures)
    wrong = [column for column, place in enumerate(places) if not holds[place]]
    console.print(f'  "{claim.text}": {len(places) - len(wrong)} of the first {len(places)} are right')
    return poster.Row(f"“{claim.text}”", pictures.images[places], wrong)


def installed() -> list[tuple[str, str]]:
    """The engines that are here, by name and title."""
    return [(name, title) for name, title in ENGINES.items() if importlib.util.find_spec(name)]


def _wrote(bundle: Path, file: Path) -> None:
    console.print(f"\nbundle   {bundle}\npicture  {file}")


def _row(
    answers: npt.NDArray[np.int64],
    reference: npt.NDArray[np.int64],
    pictures: scenes.Pictures,
    start: float,
) -> tuple[str, str, str]:
    each_ms = 1000 * (time.perf_counter() - start) / len(pictures)
    right = (answers == pictures.labels).mean()
    return f"{right:.1%}", str(int((answers != reference).sum())), f"{each_ms:.1f}"


def draw(chosen: nets.Net, pictures: scenes.Pictures, scores: npt.NDArray[np.float32], file: Path) -> None:
    """Write the first pictures with their answers, and a mistake among them if there is one."""
    answers, probabilities = scores.argmax(1), scores.max(1)
    wrong = np.flatnonzero(answers != pictures.labels)
    shown = list(range(min(CELLS, len(pictures))))
    if len(wrong) and not set(wrong) & set(shown):
        shown[len(shown) * 2 // 3] = int(wrong[0])
    cells = [
        poster.Answer(
            pictures.images[i],
            scenes.LABELS[answers[i]],
            float(probabilities[i]),
            scenes.LABELS[pictures.labels[i]],
        )
        for i in shown
    ]
    right, framed = 1 - len(wrong) / len(pictures), len(set(wrong) & set(shown))
    subtitle = f"{chosen.title}: {right:.1%} of {len(pictures)} held-out pictures are right."
    footer = f"{CREDITS} Framed: {framed} of {len(wrong)} mistakes."
    poster.draw(cells, "Digits it has never seen", subtitle, footer).save(file, optimize=True)


if __name__ == "__main__":
    main()
