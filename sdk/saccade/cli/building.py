"""Commands that make bundles and check them: export, convert, verify."""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from saccade.cli.app import AsJson, BundleName, PrecisionName, app, untrained_mark
from saccade.errors import UsageError
from saccade.terminal import new_table, out, print_json, working

if TYPE_CHECKING:
    from saccade.verification import LayerVerification, Verification

_SHOWN = 12  # layers in the table; --json has all


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
    templates: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="CLIP: sentences with one {} for a class name, one per line."),
    ] = None,
    mmdet_config: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.py", help="Detectors: mmdet's configuration of the weights; read, not run."
        ),
    ] = None,
    execute_config: Annotated[
        bool, typer.Option("--execute-config", help="Run that configuration as a program, by mmengine.")
    ] = False,
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
            templates=templates,
            mmdet_config=mmdet_config,
            execute_config=execute_config,
            progress=say,
        )
    if as_json:
        return print_json({"bundle": str(bundle.path), "name": bundle.name, "untrained": bundle.untrained})
    out.print(f"wrote {escape(str(bundle.path))}{untrained_mark(bundle.untrained)}")
    out.print(f"next: saccade predict {escape(str(bundle.path))} IMAGE")


@app.command()
def convert(
    bundle: BundleName,
    precision: Annotated[
        list[str], typer.Option("--precision", metavar="NAME", help="fp16 or bf16; repeatable.")
    ],
    destination: Annotated[Path, typer.Option("--out", metavar="DIR", help="The new bundle's folder.")],
    pictures: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Pictures whose answers must stay, and whose numbers must fit."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Add graphs in a lower precision: a new bundle, compared with float32, written whole or not.

    Layers that do not bear the precision stay float32; verify.json lists them with the figures.
    Example: saccade convert my_bundle --precision fp16 --precision bf16 --out my_bundle_low
    """
    from saccade.conversion import convert as make
    from saccade.conversion import detections, float32_nodes

    with working(f"converting {bundle}") as say:
        made = make(bundle, precision, destination, pictures=pictures, progress=say)
    if as_json:
        found = {graph: asdict(seen) for graph, seen in detections(made).items()}
        report = {"bundle": str(made.path), "name": made.name, "float32_nodes": float32_nodes(made)}
        return print_json(report | ({"detections": found} if found else {}))
    out.print(f"wrote {escape(str(made.path))}{untrained_mark(made.untrained)}")
    for graph, reasons in float32_nodes(made).items():
        counts = ", ".join(f"{len(nodes)} {reason}" for reason, nodes in reasons.items())
        out.print(f"{graph}: stay float32: {counts or 'no nodes'} (verify.json names them)")
    for graph, seen in detections(made).items():
        out.print(
            f"{graph}: emulated, it finds {seen.found} of the {seen.rows} objects that float32 finds, and "
            f"{seen.more} others; scores at most {seen.score:.2g} apart, edges {seen.edge_px:.2g} px"
        )


@app.command()
def verify(
    bundle: BundleName,
    engine: Annotated[
        list[str] | None,
        typer.Option("--engine", metavar="NAME", help="Repeatable (default: every installed engine)."),
    ] = None,
    precision: PrecisionName = "fp32",
    layers: Annotated[
        bool, typer.Option("--layers", help="Every layer: the first --engine beside the second.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Check a bundle's files and repeat its conformance sample on each engine; or find where an error starts.

    Exit code 7 when an engine, or with --layers a layer, differs by more than the tolerance.
    """
    from saccade import verification

    with working(f"verifying {bundle}") as say:
        check = verification.verify_layers if layers else verification.verify
        report = check(bundle, tuple(engine or ()), precision=precision, progress=say)
    if as_json:
        print_json(report.to_json())
    elif isinstance(report, verification.LayerVerification):
        _print_layers(report)
    else:
        _print_comparisons(report)
    if not report.agrees:
        raise typer.Exit(7)


def _print_comparisons(report: Verification) -> None:
    out.print(f"{report.name}: {report.files} files have the sha256 they were written with")
    table = new_table("engine", "graph", "output", "largest difference>", "tolerance>", "verdict")
    for row in report.comparisons:
        table.add_row(
            row.engine,
            row.graph,
            row.output,
            f"{row.max_abs_difference:.3g}",
            f"{row.tolerance:.3g}",
            _verdict(row.agrees),
        )
    out.print(table)


def _print_layers(report: LayerVerification) -> None:
    out.print(
        f"{report.name}: {report.tested} beside {report.yardstick}; errors as shares of a layer's largest"
    )
    for graph, rows in report.layers.items():
        ranked = sorted(rows, key=lambda row: (row.agrees, -(row.own or 0.0)))
        table = new_table("layer", "operator", "piled up>", "by itself>", "limit>", "verdict")
        for row in ranked[:_SHOWN]:
            own = "" if row.own is None else f"{row.own:.3g}"
            table.add_row(
                escape(row.node),
                row.operator,
                f"{row.error:.3g}",
                own,
                f"{row.limit:.3g}",
                _verdict(row.agrees),
            )
        out.print(table)
        start = report.starts.get(graph)
        said = f"the error starts at {escape(start.node)}" if start else "no layer adds more than its limit"
        out.print(f"{graph}: {len(rows)} layers; {said}", highlight=False)


def _verdict(agrees: bool) -> str:
    return "[green]agrees[/green]" if agrees else "[bold red]differs[/bold red]"


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
