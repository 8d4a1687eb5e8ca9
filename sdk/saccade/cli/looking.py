"""Commands that only look: models, inspect, doctor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from saccade.cli.app import AsJson, BundleName, app, untrained_mark
from saccade.errors import UsageError
from saccade.terminal import new_table, out, print_json, scaled, size

if TYPE_CHECKING:
    from saccade.doctor import Part


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
def inspect(bundle: BundleName, as_json: AsJson = False) -> None:
    """Show what is in a bundle: card, graphs, nodes, sizes, where it came from, TensorRT readiness."""
    from saccade.inspection import inspect as look

    inspection = look(bundle)
    if as_json:
        return print_json(inspection.to_json())
    card = inspection.card
    out.print(f"[bold]{escape(inspection.name)}[/bold]{untrained_mark(inspection.untrained)}")
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
