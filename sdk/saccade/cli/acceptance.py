"""The command that proves the TensorRT path: accept."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer
from rich.markup import escape

from saccade.cli.app import AsJson, app
from saccade.cli.engines import batch_range, size_range
from saccade.engines.tensorrt.options import Precision
from saccade.terminal import new_table, out, print_json, working

if TYPE_CHECKING:
    from saccade.acceptance import AcceptanceRecord


@app.command()
def accept(
    models: Annotated[list[str], typer.Argument(metavar="MODEL...", help="Bundles, or `saccade models`.")],
    precision: Annotated[
        list[str] | None,
        typer.Option(
            "--precision", metavar="NAME", help="fp32, tf32, fp16, bf16 or int8; repeatable (default: fp16)."
        ),
    ] = None,
    flavour: Annotated[
        str, typer.Option("--flavour", metavar="NAME", help="tensorrt or tensorrt_rtx.")
    ] = "tensorrt",
    batch: Annotated[
        str, typer.Option("--batch", metavar="MIN,OPT,MAX", help="Pictures per run; timed at OPT.")
    ] = "1,8,16",
    size: Annotated[
        str,
        typer.Option("--size", metavar="HxW,HxW,HxW", help="For free picture sizes; with the sample's."),
    ] = "128x128,800x1344,1344x1344",
    weights: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Checkpoints NAME.safetensors, NAME.pth of the zoo.")
    ] = None,
    imagenet: Annotated[
        Path | None, typer.Option(metavar="DIR", help="ImageNet's val: top-1 within 0.1 of published.")
    ] = None,
    coco: Annotated[
        Path | None, typer.Option(metavar="DIR", help="val2017 and annotations: AP within 0.2.")
    ] = None,
    destination: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder of the records.")] = Path(
        "benchmarks/accepted"
    ),
    again: Annotated[bool, typer.Option("--again", help="Repeat rows that were accepted before.")] = False,
    target: Annotated[
        str | None,
        typer.Option(
            metavar="LIST", help="Rehearse without a GPU: tensorrt_rtx builds for it, nothing runs."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Prove models on this GPU: build, compare with torch, read precision back, time; a verdict per row.

    Every row writes a record as it ends; Ctrl-C keeps them, and the same command goes on from there.
    Exit code 7 where a row failed. Example: saccade accept stvit_r_swin_small swin_small --precision fp16
    """
    from saccade import acceptance

    request = acceptance.Request(
        models=tuple(models),
        out=destination,
        precisions=cast(tuple[Precision, ...], tuple(precision or ("fp16",))),  # BuildOptions refuses others
        flavour=flavour,
        batch=batch_range(batch),
        size=size_range(size),
        weights=weights,
        imagenet=imagenet,
        coco=coco,
        again=again,
        target=target,
    )
    found: list[AcceptanceRecord] = []
    try:
        with working("accepting") as say:
            for record in acceptance.accept(request, progress=say):
                found.append(record)
    except KeyboardInterrupt:  # what is done is kept in its file, and shown
        _show(found, destination, as_json)
        raise
    _show(found, destination, as_json)
    if any(record.verdict == "failed" for record in found):
        raise typer.Exit(7)


def _show(found: list[AcceptanceRecord], folder: Path, as_json: bool) -> None:
    if as_json:
        return print_json([record.to_json() for record in found])
    table = new_table("model", "precision", "verdict", "function, ms>", "plugin, ms>", "torch, ms>", "call")
    for record in found:
        latency = [record.latency_ms.get(name) for name in ("function", "plugin", "torch.compile")]
        colour = {"accepted": "green", "failed": "bold red"}.get(record.verdict, "yellow")
        table.add_row(
            escape(record.model),
            record.precision,
            f"[{colour}]{record.verdict}[/{colour}]",
            *("" if each is None else f"{each:.3f}" for each in latency),
            escape(record.failed_call),
        )
    out.print(table)
    for record in found:
        for step in record.steps:
            if step.outcome == "failed":
                out.print(f"{record.model} {record.precision}, {step.call}: {escape(step.message)}")
    out.print(f"records: {escape(str(folder))}", highlight=False)
