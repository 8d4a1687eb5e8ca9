"""The command that adds an int8 graph: quantize."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from saccade.cli.app import AsJson, BundleName, app, untrained_mark
from saccade.errors import UsageError
from saccade.terminal import new_table, out, print_json, working


@app.command()
def quantize(
    bundle: BundleName,
    calibration: Annotated[
        Path, typer.Option(metavar="DIR", help="Pictures as the network will see them; a hundred or more.")
    ],
    destination: Annotated[Path, typer.Option("--out", metavar="DIR", help="The new bundle's folder.")],
    int8: Annotated[
        bool, typer.Option("--int8", help="The type: eight bits, the only one there is.")
    ] = False,
    method: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="entropy, percentile or minmax (default: the one that errs least)."
        ),
    ] = None,
    exclude: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NODE", help="Stays float32; repeatable. auto: what measurement asks for; none."
        ),
    ] = None,
    data: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Labelled pictures, a folder per class: counts flips.")
    ] = None,
    limit: Annotated[
        int, typer.Option(metavar="N", min=4, help="Most calibration pictures: half set ranges, half judge.")
    ] = 256,
    as_json: AsJson = False,
) -> None:
    """Add a graph in int8: a new bundle, with what it keeps of the accuracy and wins in latency.

    Example: saccade quantize my_bundle --int8 --calibration holiday --out my_bundle_int8
    """
    from saccade.conversion import float32_nodes
    from saccade.quantization import AUTO, evidence
    from saccade.quantization import quantize as make

    if not int8:
        raise UsageError("say --int8; fp16 and bf16: saccade convert BUNDLE --precision fp16 --out DIR")
    with working(f"quantizing {bundle}") as say:
        made = make(
            bundle,
            calibration,
            destination,
            method=method,
            exclude=exclude or (AUTO,),
            data=data,
            limit=limit,
            progress=say,
        )
    measured, stay = evidence(made), float32_nodes(made)
    if as_json:
        return print_json(
            {"bundle": str(made.path), "name": made.name, "float32_nodes": stay, "evidence": measured}
        )
    out.print(f"wrote {escape(str(made.path))}{untrained_mark(made.untrained)}")
    _print(measured)
    for graph, reasons in stay.items():
        named = ", ".join(f"{len(nodes)} {reason}" for reason, nodes in reasons.items() if nodes)
        out.print(f"{graph}: stay float32: {named or 'no layers'} (verify.json names them)")


def _print(measured: dict[str, Any]) -> None:
    table = new_table(
        "precision", "ms, one thread>", "times as fast>", "agreement>", "error>", "accuracy>", "flips"
    )
    for row in measured["rows"]:
        flips = row.get("flips")
        table.add_row(
            row["precision"],
            f"{row['processor_ms']:.2f}",
            f"{row['speedup']:.2f}",
            "" if row["agreement"] is None else f"{row['agreement']:.1%}",
            f"{row['error']:.2%}",
            f"{row['accuracy']:.2%}" if flips else "",
            f"+{flips['gained']} -{flips['lost']} of {flips['pictures']}" if flips else "",
        )
    out.print(table)
    for row in measured["rows"]:
        if "verdict" in row:
            out.print(f"{row['precision']} {row['verdict']}")
