"""The program itself, and the arguments that several commands share."""

from __future__ import annotations

from typing import Annotated

import typer

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
    typer.Option("--engine", metavar="NAME", help="auto, onnxruntime, openvino, tensorrt or reference."),
]
Device = Annotated[str, typer.Option("--device", metavar="NAME", help="cpu, cuda or cuda:N.")]
PrecisionName = Annotated[
    str, typer.Option("--precision", metavar="NAME", help="fp32, or one that `saccade convert` added.")
]
Threads = Annotated[
    int | None, typer.Option("--threads", metavar="N", min=1, help="CPU threads (default: all).")
]


def untrained_mark(untrained: bool) -> str:
    return " [bold yellow]UNTRAINED: random weights, for latency work only[/bold yellow]" if untrained else ""
