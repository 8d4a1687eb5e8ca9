"""The command line: every command parses, calls one public function and prints what it returned.

`--json` puts the same result on standard output as JSON (`predict` prints one object per line). Progress and
errors go to standard error. An error raised on purpose ends with its class's exit code, without a traceback.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from rich.markup import escape
from rich.table import Table

from saccade.errors import SaccadeError, UsageError
from saccade.terminal import counting, err, new_table, out, print_json, scaled, size, working

if TYPE_CHECKING:
    from saccade.doctor import Part
    from saccade.results import Result

app = typer.Typer(
    name="saccade",
    help="Efficient vision models from a trained checkpoint to a predictor.\n\n"
    "Start with [bold]saccade doctor[/bold], then [bold]saccade models[/bold].",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")]
BundleName = Annotated[str, typer.Argument(metavar="BUNDLE", help="A bundle's folder, .zip file or name.")]
EngineName = Annotated[
    str,
    typer.Option("--engine", metavar="NAME", help="auto, onnxruntime, openvino or reference."),
]
Device = Annotated[str, typer.Option("--device", metavar="NAME", help="cpu, cuda or cuda:N.")]
Threads = Annotated[
    int | None, typer.Option("--threads", metavar="N", min=1, help="CPU threads (default: all).")
]


def main() -> NoReturn:
    """Entry point of the `saccade` program."""
    try:
        app()
    except SaccadeError as error:
        _fail(str(error), type(error).__name__, error.exit_code)
    except OSError as error:  # an --out that cannot be written, a full disk: the system's own words
        named = f": {error.filename}" if error.filename else ""
        _fail(f"{error.strerror or error}{named}", type(error).__name__, 1)
    sys.exit(0)


def _fail(message: str, kind: str, exit_code: int) -> NoReturn:
    if "--json" in sys.argv:
        print(json.dumps({"error": {"type": kind, "message": message, "exit_code": exit_code}}))
    else:
        err.print(f"[bold red]error:[/bold red] {escape(message)}")
    sys.exit(exit_code)


@app.command("models")
def list_models(
    matching: Annotated[
        str, typer.Argument(metavar="[FILTER]", help="Part of a name or family: stvit, nvit, deepmad_r.")
    ] = "",
    as_json: AsJson = False,
) -> None:
    """List the models: family, task, parameters, work, published accuracy, licence of the weights."""
    from saccade.models.zoo import ENTRIES

    wanted = matching.casefold()
    cards = [e.card for e in ENTRIES.values() if wanted in e.card.name or wanted in e.card.family.casefold()]
    if not cards:
        raise UsageError(f"no model matches {matching!r}; `saccade models` lists all {len(ENTRIES)}")
    if as_json:
        return print_json([card.to_json() for card in cards])
    table = new_table(
        "model", "family", "task", "parameters>", "GMACs>", "size>", "top-1>", "weights licence"
    )
    for card in cards:
        table.add_row(
            card.name,
            card.family,
            card.task,
            scaled(card.parameters, 1e6, "M"),
            scaled(card.multiply_accumulates, 1e9, ""),
            size(card.preprocessing.input_size_hw),
            "" if card.top1 is None else f"{card.top1:.1f}",
            card.licence,
        )
    out.print(table)
    out.print(
        f"{len(cards)} models. GMACs: multiply-accumulates for one picture; top-1: as published, ImageNet-1k."
    )


@app.command()
def export(
    name: Annotated[str, typer.Argument(metavar="NAME", help="One of `saccade models`.")],
    destination: Annotated[Path, typer.Option("--out", metavar="DIR", help="The bundle's folder; new.")],
    weights: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Checkpoint: safetensors or torch, official or timm layout."),
    ] = None,
    random: Annotated[
        bool, typer.Option("--random", help="No weights: for latency work, marked as untrained.")
    ] = False,
    labels: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Class names, one per line or a JSON list.")
    ] = None,
    num_classes: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Classes (default: the checkpoint's).")
    ] = None,
    input_size: Annotated[
        str | None, typer.Option(metavar="HxW", help="Input size, as 224 or 224x288.")
    ] = None,
    mean: Annotated[
        str | None, typer.Option(metavar="R,G,B", help="Mean to subtract, in units of 0..1.")
    ] = None,
    std: Annotated[str | None, typer.Option(metavar="R,G,B", help="Deviation to divide by.")] = None,
    crop: Annotated[
        float | None, typer.Option(min=0.05, max=1.0, help="Share of the resized side that is kept, 0.875.")
    ] = None,
    interpolation: Annotated[str | None, typer.Option(metavar="NAME", help="bilinear or bicubic.")] = None,
    config: Annotated[
        Path | None, typer.Option(metavar="FILE.json", help="Architecture settings: depths, embed_dim, ...")
    ] = None,
    classes: Annotated[
        Path | None, typer.Option(metavar="FILE", help="CLIP: class names to encode as text, one per line.")
    ] = None,
    class_matrix: Annotated[
        Path | None,
        typer.Option(metavar="FILE.npy", help="CLIP: text embeddings, (512, classes); names from --labels."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Turn a checkpoint into a bundle: exported, compared with the model it came from, written whole or not.

    Example: saccade export deepmad_r18 --weights r18.pth --labels names.txt --out my_bundle
    """
    from saccade.export import export_bundle

    with working(f"exporting {name}") as say:
        bundle = export_bundle(
            name,
            weights,
            destination,
            random=random,
            labels=labels,
            num_classes=num_classes,
            input_size_hw=_parse_size(input_size),
            mean_rgb=_parse_colour("--mean", mean),
            std_rgb=_parse_colour("--std", std),
            crop=crop,
            interpolation=interpolation,
            config=_read_config(config),
            classes=classes,
            class_matrix=class_matrix,
            progress=say,
        )
    if as_json:
        return print_json({"bundle": str(bundle.path), "name": bundle.name, "untrained": bundle.untrained})
    out.print(f"wrote {escape(str(bundle.path))}{_untrained(bundle.untrained)}")
    out.print(f"next: saccade predict {escape(str(bundle.path))} IMAGE")


@app.command()
def verify(
    bundle: BundleName,
    engine: Annotated[
        list[str] | None,
        typer.Option("--engine", metavar="NAME", help="Repeatable (default: every installed engine)."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check a bundle's files and repeat its conformance sample on each engine.

    Exit code 7 when an engine differs by more than the bundle's tolerance.
    """
    from saccade.verification import verify as check

    with working(f"verifying {bundle}") as say:
        verification = check(bundle, tuple(engine or ()), progress=say)
    if as_json:
        print_json(verification.to_json())
    else:
        out.print(f"{verification.name}: {verification.files} files have the sha256 they were written with")
        table = new_table("engine", "graph", "output", "largest difference>", "tolerance>", "verdict")
        for row in verification.comparisons:
            table.add_row(
                row.engine,
                row.graph,
                row.output,
                f"{row.max_abs_difference:.3g}",
                f"{row.tolerance:.3g}",
                "[green]agrees[/green]" if row.agrees else "[bold red]differs[/bold red]",
            )
        out.print(table)
    if not verification.agrees:
        raise typer.Exit(7)


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
                    escape(str(path)), f"{escape(result.summary(top))}{_untrained(result.untrained)}"
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


@app.command()
def inspect(bundle: BundleName, as_json: AsJson = False) -> None:
    """Show what is in a bundle: card, graphs, nodes, sizes, where it came from, TensorRT readiness."""
    from saccade.inspection import inspect as look

    inspection = look(bundle)
    if as_json:
        return print_json(inspection.to_json())
    card = inspection.card
    out.print(f"[bold]{escape(inspection.name)}[/bold]{_untrained(inspection.untrained)}")
    facts = new_table("", "")
    facts.show_header = False
    facts.add_row("family", card.family)
    facts.add_row("task", card.task)
    facts.add_row("input", f"{size(card.preprocessing.input_size_hw)}, {card.preprocessing.resampler}")
    facts.add_row("classes", str(len(card.labels)))
    facts.add_row("paper", escape(card.paper))
    facts.add_row("licence", escape(card.licence))
    for key, value in inspection.provenance.items():
        if isinstance(value, dict):
            value = ", ".join(f"{name} {each}" for name, each in value.items())
        if value not in (None, ""):
            facts.add_row(key, escape(str(value)))
    out.print(facts)
    graphs = {graph.path: graph for graph in inspection.graphs}
    files = new_table("file", "KiB>", "nodes>")
    for path, size_bytes in inspection.files.items():
        nodes = graphs[path].nodes if path in graphs else None
        files.add_row(escape(path), f"{size_bytes / 1024:,.0f}", "" if nodes is None else str(nodes))
    out.print(files)
    for graph in inspection.graphs:
        for line in graph.readiness.text() if graph.readiness else ():
            out.print(f"  {escape(line)}" if line else "")


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """Show what this machine can run and the line that installs what is missing.

    Exit code 1 when no engine runs or installed packages overwrite each other.
    """
    from saccade.doctor import examine

    report = examine()
    if as_json:
        print_json(report.to_json())
    else:
        machine = report.machine
        instructions = f" ({', '.join(machine.instructions)})" if machine.instructions else ""
        out.print(f"saccade {report.saccade}, Python {escape(machine.python)}, {machine.system}")
        out.print(f"{machine.cores} cores of {machine.cpu}{instructions}, {machine.memory_mib} MiB")
        for gpu in machine.gpus or ("no NVIDIA GPU",):
            out.print(f"{gpu}{f', driver {machine.gpu_driver}' if machine.gpu_driver else ''}")
        out.print(_parts("engine", report.engines))
        out.print(_parts("feature", report.features))
        for part in (*report.engines, *report.features):
            if part.mend:
                out.print(f"for {part.name}: {escape(part.mend)}")
        for clash in report.clashes:
            out.print(f"[bold red]clash:[/bold red] {', '.join(clash.installed)}: {clash.why}. Mend it with")
            out.print(f"  {escape(clash.mend)}")
    if not report.healthy:
        raise typer.Exit(1)


def _parts(heading: str, parts: Sequence[Part]) -> Table:
    colours = {"ready": "green", "missing": "yellow", "broken": "bold red"}
    table = new_table(heading, "status", "version", "detail")
    for part in parts:
        status = f"[{colours[part.status]}]{part.status}[/]"
        table.add_row(part.name, status, part.version, escape(part.detail))
    return table


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


def _parse_size(text: str | None) -> tuple[int, int] | None:
    """ "224" or "224x288" as (height, width)."""
    if text is None:
        return None
    match = re.fullmatch(r"(\d+)(?:x(\d+))?", text.strip().lower())
    if match is None or "0" in (match[1], match[2]):
        raise UsageError(f"--input-size {text!r} is no size: write 224 or HEIGHTxWIDTH, as 224x288")
    return int(match[1]), int(match[2] or match[1])


def _parse_colour(option: str, text: str | None) -> tuple[float, float, float] | None:
    """Three numbers, separated by commas, in the order red, green, blue."""
    if text is None:
        return None
    try:
        red, green, blue = (float(part) for part in text.split(","))
    except ValueError:
        raise UsageError(f"{option} {text!r} is no colour: write R,G,B as 0.485,0.456,0.406") from None
    return red, green, blue


def _read_config(path: Path | None) -> dict[str, Any] | None:
    if path is None:
        return None
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise UsageError(f"--config {path} cannot be read as JSON: {error}") from error
    if not isinstance(config, dict):
        raise UsageError(f"--config {path} holds a {type(config).__name__}; it must be an object of settings")
    return config


def _untrained(untrained: bool) -> str:
    return " [bold yellow]UNTRAINED: random weights, for latency work only[/bold yellow]" if untrained else ""
