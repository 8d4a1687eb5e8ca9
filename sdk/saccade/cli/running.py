"""Commands that use bundles: predict, evaluate."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from saccade.cli.app import (
    AsJson,
    BundleName,
    Device,
    EngineName,
    PrecisionName,
    Threads,
    app,
    untrained_mark,
)
from saccade.errors import UsageError
from saccade.media import VIDEO_SUFFIXES
from saccade.terminal import counting, new_table, out, print_json

if TYPE_CHECKING:
    from saccade.pictures import Picture, RgbArray
    from saccade.predictors.predictor import Predictor
    from saccade.results import Result

_CLASSES = 5  # answers shown per picture where there is a score for every class


@app.command()
def predict(
    bundle: BundleName,
    images: Annotated[
        list[Path], typer.Argument(metavar="IMAGE|FOLDER|VIDEO...", help="Pictures, folders, video files.")
    ],
    top: Annotated[
        int | None,
        typer.Option(metavar="K", min=1, help="Answers per picture (default: 5 classes, all objects)."),
    ] = None,
    draw_into: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Also write each picture with its answers.")
    ] = None,
    tile: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE,OVERLAP", help="Objects and pixels: cut large pictures into tiles, as 1024,128."
        ),
    ] = None,
    prompts: Annotated[
        list[str] | None,
        typer.Option("--prompt", metavar="TEXT", help="Zero-shot: a class in words; repeat it for each."),
    ] = None,
    batch: Annotated[int, typer.Option(metavar="N", min=1, help="Pictures per run.")] = 8,
    engine: EngineName = "auto",
    device: Device = "cpu",
    precision: PrecisionName = "fp32",
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Predict for pictures: classes, objects, maps, whatever the bundle is made for.

    A video gives one line of --json per frame, and with --out a video. Example:
    saccade predict my_bundle street.jpg holiday/ traffic.mp4 --out drawn
    """
    import saccade

    videos = [image for image in images if image.suffix.lower() in VIDEO_SUFFIXES]
    pictures = (
        _pictures([image for image in images if image not in videos]) if set(images) - set(videos) else {}
    )
    with saccade.load(bundle, engine, precision=precision, device=device, threads=threads) as loaded:
        predictor = _with_prompts(loaded, prompts)
        stream: Any = partial(predictor.stream, batch_size=batch, **_tile_option(predictor, tile))
        table = new_table("picture", "result")
        for (path, name), (_, result) in zip(pictures.items(), stream(list(pictures)), strict=True):
            if as_json:
                print(json.dumps({"picture": str(path), **result.to_json(_top(result, top))}), flush=True)
            else:
                summary = escape(result.summary(top or _CLASSES))
                table.add_row(escape(str(path)), f"{summary}{untrained_mark(result.untrained)}")
            if draw_into is not None:
                _write_drawing(path, result, top, draw_into / f"{name}.png")
        for path in videos:
            frames = _video(path, stream(path), top, draw_into, as_json)
            table.add_row(escape(str(path)), f"{frames} frames")
    if not as_json:
        out.print(table)


@app.command()
def evaluate(
    bundle: BundleName,
    data: Annotated[
        Path,
        typer.Option(
            "--data",
            metavar="DIR",
            help="Pictures; for classes, one subfolder per class by label; for pixels, images/ and labels/.",
        ),
    ],
    annotations: Annotated[
        Path | None,
        typer.Option(metavar="FILE.json", help="Objects: what is in the pictures, in COCO's format."),
    ] = None,
    tile: Annotated[
        str | None, typer.Option(metavar="SIZE,OVERLAP", help="Pixels: tiles, as for predict.")
    ] = None,
    first_label: Annotated[
        int | None, typer.Option(metavar="N", min=0, help="Pixels: what the files call class 0 (ADE20K: 1).")
    ] = None,
    batch: Annotated[int, typer.Option(metavar="N", min=1, help="Pictures per run.")] = 16,
    engine: EngineName = "auto",
    device: Device = "cpu",
    precision: PrecisionName = "fp32",
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Measure accuracy on labelled data: top-1 and top-5 of classes, COCO's average precision of objects,
    mean IoU of pixels.
    """
    import saccade
    from saccade.evaluation import evaluate as measure

    with (
        saccade.load(bundle, engine, precision=precision, device=device, threads=threads) as predictor,
        counting("evaluating") as advance,
    ):
        given = {"annotations": annotations, "first_label": first_label}
        more = {name: value for name, value in given.items() if value is not None}
        more |= _tile_option(predictor, tile)
        report = measure(predictor, data, batch=batch, progress=advance, **more)
    if as_json:
        return print_json(report.to_json())
    shown = report.table()
    table = new_table(*shown.heading)
    for row in shown.rows:
        table.add_row(*map(escape, row))
    out.print(table)
    out.print(shown.closing, highlight=False)


def _pictures(images: Sequence[Path]) -> dict[Path, Path]:
    """Every picture, folders unfolded, with the name that its drawing gets."""
    from saccade.pictures import list_pictures

    found: dict[Path, Path] = {}
    for image in images:
        if image.is_dir():
            root = Path(image.resolve().name)
            found |= {path: root / path.relative_to(image) for path in list_pictures(image)}
        else:
            found[image] = Path(image.name)
    if not found:
        raise UsageError(f"there are no pictures in {', '.join(map(str, images))}")
    return found


def _top(result: Result, top: int | None) -> int | None:
    """How many answers are shown: of all classes only the best ones."""
    from saccade.results.classification import Classification

    return _CLASSES if top is None and isinstance(result, Classification) else top


def _with_prompts(predictor: Predictor[Any], prompts: Sequence[str] | None) -> Predictor[Any]:
    """The predictor with the classes that were given in words."""
    from saccade.predictors.zero_shot import ZeroShotClassifier

    if not isinstance(predictor, ZeroShotClassifier):
        if prompts:
            raise UsageError(f"--prompt is for zero-shot bundles; {predictor.card.name} has its own classes")
        return predictor
    if not prompts:
        raise UsageError(f"{predictor.card.name} takes classes in words: --prompt 'a dog' --prompt 'a cat'")
    return predictor.with_classes(prompts)


def _tile_option(predictor: Predictor[Any], text: str | None) -> dict[str, Any]:
    """What `stream` is told of tiles: nothing, or (size, overlap)."""
    from saccade.predictors.detection import Detector
    from saccade.predictors.semantic_segmentation import SemanticSegmenter

    if text is None:
        return {}
    if not isinstance(predictor, Detector | SemanticSegmenter):
        raise UsageError(
            f"--tile is for objects and classes of pixels; {predictor.card.name} is made for "
            f"{predictor.card.task}"
        )
    match = re.fullmatch(r"(\d+),(\d+)", text.strip())
    if match is None:
        raise UsageError(f"--tile {text!r}: write SIZE,OVERLAP in pixels, as 1024,128")
    return {"tile": (int(match[1]), int(match[2]))}


def _write_drawing(path: Path, result: Result, top: int | None, target: Path) -> None:
    """The picture with its answers on it. A file that is there already is never written over."""
    import saccade

    if target.exists():
        raise UsageError(f"{target} exists already: choose another --out")
    target.parent.mkdir(parents=True, exist_ok=True)
    saccade.draw(path, result, top).save(target)


def _video(
    path: Path,
    results: Iterable[tuple[Picture, Result]],
    top: int | None,
    draw_into: Path | None,
    as_json: bool,
) -> int:
    """Print what is in each frame, and write the frames with it; returns how many there are."""
    from saccade.media import open_source
    from saccade.video import write_video

    frames = _frames(path, results, top, as_json, draw_into is not None)
    if draw_into is None:
        return sum(1 for _ in frames)
    draw_into.mkdir(parents=True, exist_ok=True)
    rate = open_source(path).frames_per_second
    return write_video(draw_into / f"{path.stem}.mp4", frames, rate)


def _frames(
    path: Path, results: Iterable[tuple[Picture, Result]], top: int | None, as_json: bool, drawn: bool
) -> Iterator[RgbArray]:
    import numpy as np

    import saccade

    for index, (frame, result) in enumerate(results):
        if as_json:
            line = {"video": str(path), "frame": index, **result.to_json(_top(result, top))}
            print(json.dumps(line), flush=True)
        yield np.asarray(saccade.draw(frame, result, top) if drawn else frame)
