"""`make demo`: checkpoints become verified bundles, which classify and outline digits they have never seen.

    python examples/demo.py --out demo-output [--net stvit] [--pictures 500] [--scenes 60]

Writes the bundles, `demo.png` and `demo-detected.png` into the folder; a few minutes on two cores.
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

from digits import bundles, detector, nets, objects, poster, precision, scenes
from saccade.drawing import draw as draw_result
from saccade.results.detections import Detections
from saccade.verification import verify

CELLS = 24
OUTLINED = 6
LEAST_SCORE = 0.5  # of what is drawn
ENGINES = {"onnxruntime": "ONNX Runtime", "openvino": "OpenVINO"}

console = Console()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("demo-output"), help="folder for bundle and picture")
    parser.add_argument("--net", default="stvit", choices=list(nets.NETS))
    parser.add_argument("--pictures", type=int, default=500, help="held-out pictures to classify")
    parser.add_argument("--scenes", type=int, default=60, help="held-out scenes to find digits in, or 0")
    options = parser.parse_args()
    chosen = nets.net(options.net)
    bundle = export(chosen, options.out / f"digits-{chosen.name}", bundles.export)
    pictures = scenes.held_out(options.pictures)
    scores = compare_engines(chosen, bundle, pictures)
    sheet = options.out / "demo.png"
    draw(chosen, pictures, scores, sheet)
    console.print(f"\nbundle   {bundle}\npicture  {sheet}")
    console.print(f"next     saccade predict {bundle} YOUR_PICTURE")
    if options.scenes:
        finder = export(detector.NET, options.out / "digits-detector", bundles.export_detector)
        outlined = options.out / "demo-detected.png"
        detect(finder, objects.held_out(options.scenes), outlined)
        console.print(f"\nbundle   {finder}\npicture  {outlined}")


def export(chosen: nets.Net, out: Path, make: Callable[..., object]) -> Path:
    """Make the bundle anew, say what is done, and print what verification measured."""
    console.rule(f"[bold]{chosen.weights.name} to a bundle")
    shutil.rmtree(out, ignore_errors=True)
    out.parent.mkdir(parents=True, exist_ok=True)
    make(chosen, out, lambda step: console.print(f"  {step}"))
    table = Table("engine", "largest difference", "tolerance", "verdict", title="The graph beside the module")
    for row in verify(out).comparisons:
        verdict = "[green]agrees" if row.agrees else "[red]differs"
        table.add_row(row.engine, f"{row.max_abs_difference:.1e}", f"{row.tolerance:.1e}", verdict)
    console.print(table)
    return out


def compare_engines(chosen: nets.Net, bundle: Path, pictures: scenes.Pictures) -> npt.NDArray[np.float32]:
    """Classify `pictures` in torch and in every installed engine; return the first engine's scores."""
    console.rule(f"[bold]{len(pictures)} pictures it has never seen")
    table = Table("", "right", "answers unlike torch", "ms a picture")
    start = time.perf_counter()
    reference = nets.predictions(nets.trained(chosen.name), pictures.at(chosen.size_px))
    table.add_row("PyTorch", *_row(reference, reference, pictures, start))
    scores: list[npt.NDArray[np.float32]] = []
    for engine, title in ENGINES.items():
        if importlib.util.find_spec(engine) is None:
            continue
        start = time.perf_counter()
        scores.append(bundles.scores(bundle, pictures, engine))
        table.add_row(title, *_row(scores[-1].argmax(1), reference, pictures, start))
    console.print(table)
    return scores[0]


def detect(bundle: Path, drawn: Sequence[objects.Scene], file: Path) -> None:
    """Find the digits of `drawn` in every installed engine, and draw what the first one found."""
    console.rule(f"[bold]{len(drawn)} scenes it has never seen")
    table = Table("", "box AP", "box AP50", "mask AP", "mask AP50", "ms a picture")
    found: list[list[Detections]] = []
    for engine, title in ENGINES.items():
        if importlib.util.find_spec(engine) is None:
            continue
        start = time.perf_counter()
        found.append(bundles.found(bundle, drawn, engine))
        each_ms = 1000 * (time.perf_counter() - start) / len(drawn)
        reached = precision.average_precision(found[-1], drawn)
        shares = (reached.box, reached.box_50, reached.mask, reached.mask_50)
        table.add_row(title, *(f"{share:.1%}" for share in shares), f"{each_ms:.1f}")
    console.print(table)
    pairs = zip(drawn[:OUTLINED], found[0], strict=False)
    sure = [draw_result(scene.image, answers[answers.scores > LEAST_SCORE]) for scene, answers in pairs]
    poster.grid(sure).save(file, optimize=True)


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
    footer = (
        "scikit-learn's handwritten digits on its photographs (danielbuechele, vultilion; CC BY 2.0), both "
        f"held out of training. Framed: {framed} of {len(wrong)} mistakes."
    )
    poster.draw(cells, "Digits it has never seen", subtitle, footer).save(file, optimize=True)


if __name__ == "__main__":
    main()
