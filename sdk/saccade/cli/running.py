"""Commands that use bundles: predict, evaluate."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from saccade.cli.app import AsJson, BundleName, Device, EngineName, Threads, app, untrained_mark
from saccade.errors import UsageError
from saccade.terminal import counting, new_table, out, print_json

if TYPE_CHECKING:
    from saccade.results import Result


@app.command()
def predict(
    bundle: BundleName,
    images: Annotated[
        list[Path], typer.Argument(metavar="IMAGE|FOLDER...", help="Pictures, or folders of pictures.")
    ],
    top: Annotated[int, typer.Option(metavar="K", min=1, help="Answers to show per picture.")] = 5,
    draw_into: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Also write each picture with its answers.")
    ] = None,
    engine: EngineName = "auto",
    device: Device = "cpu",
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Predict for pictures: classes, objects, maps, whatever the bundle is made for.

    Example: saccade predict my_bundle street.jpg holiday/ --top 3 --out drawn
    """
    import saccade

    with saccade.load(bundle, engine=engine, device=device, threads=threads) as predictor:
        table = new_table("picture", "result")
        pictures = _pictures(images)
        results = predictor.stream(list(pictures))
        for (path, name), (_, result) in zip(pictures.items(), results, strict=True):
            if as_json:
                print(json.dumps({"picture": str(path), **result.to_json(top)}), flush=True)
            else:
                table.add_row(
                    escape(str(path)), f"{escape(result.summary(top))}{untrained_mark(result.untrained)}"
                )
            if draw_into is not None:
                _write_drawing(path, result, top, draw_into / f"{name}.png")
    if not as_json:
        out.print(table)


@app.command()
def evaluate(
    bundle: BundleName,
    data: Annotated[
        Path, typer.Option("--data", metavar="DIR", help="One subfolder per class, named by its label.")
    ],
    batch: Annotated[int, typer.Option(metavar="N", min=1, help="Pictures per run.")] = 16,
    engine: EngineName = "auto",
    device: Device = "cpu",
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Measure accuracy on labelled data: for a classifier, top-1 and top-5 over folders named by class."""
    import saccade
    from saccade.evaluation import evaluate as measure

    with (
        saccade.load(bundle, engine=engine, device=device, threads=threads) as predictor,
        counting("evaluating") as advance,
    ):
        report = measure(predictor, data, batch=batch, progress=advance)
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


def _write_drawing(path: Path, result: Result, top: int, target: Path) -> None:
    """The picture with its answers on it. A file that is there already is never written over."""
    import saccade

    if target.exists():
        raise UsageError(f"{target} exists already: choose another --out")
    target.parent.mkdir(parents=True, exist_ok=True)
    saccade.draw(path, result, top).save(target)
