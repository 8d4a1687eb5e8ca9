"""The command that hands bundles to NVIDIA Triton Inference Server: triton."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer
from rich.markup import escape

from saccade.batching import Limits
from saccade.cli.app import AsJson, PrecisionName, Threads, app
from saccade.terminal import new_table, out, print_json

if TYPE_CHECKING:
    from saccade.serving.triton import Device, Engine


@app.command()
def triton(
    bundles: Annotated[
        list[str],
        typer.Argument(metavar="BUNDLE...", help="Folders, .zip files or names; NAME=BUNDLE renames."),
    ],
    repository: Annotated[Path, typer.Argument(metavar="DIR", help="The model repository; may hold others.")],
    engine: Annotated[
        str, typer.Option("--engine", metavar="NAME", help="auto, tensorrt, onnxruntime, or python: ours.")
    ] = "auto",
    precision: PrecisionName = "fp32",
    device: Annotated[str, typer.Option("--device", metavar="NAME", help="cpu, or cuda: every GPU.")] = "cpu",
    max_batch: Annotated[int, typer.Option(metavar="N", min=1, help="Most pictures per run.")] = 8,
    delay: Annotated[
        float, typer.Option(metavar="MS", min=0, help="How long a picture waits for company.")
    ] = 0.0,
    instances: Annotated[int, typer.Option(metavar="N", min=1, help="Copies of each model.")] = 1,
    threads: Threads = None,
    prompts: Annotated[
        list[str] | None,
        typer.Option("--prompt", metavar="TEXT", help="Zero-shot: a class in words; repeat it for each."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace models of the same names.")] = False,
    as_json: AsJson = False,
) -> None:
    """Write a model repository for NVIDIA Triton: clients send a picture, and get what `predict` gives.

    Example: saccade triton my_bundle plates=other_bundle.zip repository/ --max-batch 16
    """
    from saccade.serving.triton import RepositoryOptions, write_repository

    options = RepositoryOptions(
        engine=cast("Engine", engine),  # RepositoryOptions refuses what is none
        precision=precision,
        limits=Limits(max_batch, delay),
        instances=instances,
        device=cast("Device", device),
        threads=threads,
        prompts=tuple(prompts or ()),
    )
    written = write_repository(bundles, repository, options, force=force)
    if as_json:
        return print_json([each.to_json() for each in written])
    table = new_table("model", "backend", "version>", "folder")
    for each in written:
        table.add_row(escape(each.path.name), each.backend, str(each.version), escape(str(each.path)))
    out.print(table)
    out.print(f"next: tritonserver --model-repository {escape(str(repository.absolute()))}", soft_wrap=True)
