"""Commands around TensorRT plans: build, trust."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, cast

import typer
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from saccade.builds import BatchRange, BuildOptions, Built, SizeRange
from saccade.cli.app import AsJson, BundleName, app
from saccade.engines.tensorrt.options import Binding, Compatibility, Precision
from saccade.engines.tensorrt.plans import device_bytes
from saccade.errors import UsageError
from saccade.terminal import err, new_table, out, print_json


@app.command()
def build(
    bundle: BundleName,
    flavour: Annotated[
        str, typer.Option(metavar="NAME", help="tensorrt, or tensorrt_rtx: needs no GPU here.")
    ] = "tensorrt",
    precision: Annotated[str, typer.Option(metavar="NAME", help="fp32, tf32, fp16, bf16 or int8.")] = "fp32",
    batch: Annotated[
        str, typer.Option(metavar="MIN,OPT,MAX", help="Pictures per run: least, most frequent, greatest.")
    ] = "1,4,16",
    size: Annotated[
        str | None,
        typer.Option(metavar="HxW,HxW,HxW", help="For free picture sizes: least, most frequent, greatest."),
    ] = None,
    target: Annotated[
        str | None,
        typer.Option(
            metavar="LIST", help="RTX: a plan for each, several GPUs in one with +: sm80,sm86+sm89."
        ),
    ] = None,
    binding: Annotated[
        str, typer.Option(metavar="NAME", help="Semantic-token layers: function, plugin or auto.")
    ] = "function",
    version_compatible: Annotated[
        bool, typer.Option(help="Also for later TensorRT of the same major version.")
    ] = False,
    hardware_compatible: Annotated[
        str, typer.Option(metavar="NAME", help="none, ampere+, same_capability.")
    ] = "none",
    stripped: Annotated[bool, typer.Option(help="Leave the weights out; the graph fills them in.")] = False,
    refittable: Annotated[bool, typer.Option(help="Weights can be replaced later.")] = False,
    weight_streaming: Annotated[bool, typer.Option(help="Weights may stay in host memory.")] = False,
    optimization_level: Annotated[
        int | None, typer.Option(metavar="0..5", min=0, max=5, help="How long to look for kernels.")
    ] = None,
    workspace: Annotated[
        int | None, typer.Option(metavar="MIB", min=1, help="Limit of scratch memory while building.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Build TensorRT plans of a bundle's graphs into its folder `engines`. Ctrl-C leaves nothing.

    Example: saccade build my_bundle --flavour tensorrt_rtx --target sm86+sm89 --batch 1,4,16
    """
    import saccade

    built: list[Built] = []
    for each in target.split(",") if target else [None]:
        options = BuildOptions(
            flavour=flavour,
            precision=cast(Precision, precision),  # BuildOptions refuses what is none
            batch=batch_range(batch),
            size=size_range(size) if size else None,
            target=each,
            binding=cast(Binding, binding),
            version_compatible=version_compatible,
            hardware_compatible=cast(Compatibility, hardware_compatible),
            stripped=stripped,
            refittable=refittable,
            weight_streaming=weight_streaming,
            optimization_level=optimization_level,
            workspace_mib=workspace,
        )
        with _bar(each or flavour) as progress:
            built += saccade.build(bundle, options, progress=progress)
    _show(built, as_json)


@app.command()
def trust(bundle: BundleName, as_json: AsJson = False) -> None:
    """Allow plans that were built elsewhere to be opened here. A plan is code: know where it is from."""
    from saccade.builds import trust as allow

    _show(allow(bundle), as_json)


def _show(built: list[Built] | tuple[Built, ...], as_json: bool) -> None:
    if as_json:
        return print_json([each.to_json() for each in built])
    table = new_table("plan", "for", "precision", "layers>", "MiB>", "GPU MiB>", "seconds>")
    for each in built:
        record = each.record
        on_gpu = device_bytes(each.path, record)
        table.add_row(
            escape(str(each.path)),
            record.serves,
            record.options.precision,
            str(record.layers),
            f"{record.plan_bytes / 2**20:.1f}",
            "unknown" if on_gpu is None else f"{on_gpu / 2**20:.1f}",
            f"{record.wall_seconds:.1f}",
        )
    out.print(table)


@contextmanager
def _bar(what: str) -> Iterator[Callable[[str, float], None]]:
    """A bar that the function it yields moves, 0 to 1, naming the step. Silent off a terminal."""
    columns = (
        TextColumn(what),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.description}"),
    )
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as progress:
        task = progress.add_task("starting", total=1.0)
        yield lambda step, fraction: progress.update(task, completed=fraction, description=escape(step))


def batch_range(text: str) -> BatchRange:
    """ "8" or "1,4,16"."""
    match = re.fullmatch(r"(\d+)(?:,(\d+),(\d+))?", text)
    if match is None:
        raise UsageError(f"--batch {text!r}: write one number, or MIN,OPT,MAX as 1,4,16")
    low = int(match[1])
    return BatchRange(low, int(match[2] or low), int(match[3] or low))


def size_range(text: str) -> SizeRange:
    """ "512x512" or three of them, with commas."""
    sizes = [re.fullmatch(r"(\d+)x(\d+)", part) for part in text.split(",")]
    pairs = [(int(size[1]), int(size[2])) for size in sizes if size]
    if len(pairs) != len(sizes) or len(pairs) not in (1, 3):
        raise UsageError(f"--size {text!r}: write one HxW, or three as 224x224,640x640,1024x1024")
    return SizeRange(*(pairs * 3 if len(pairs) == 1 else pairs))
