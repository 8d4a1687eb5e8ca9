"""Commands that measure: bench, compare-bench, tune."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from saccade.cli.app import AsJson, BundleName, Device, PrecisionName, Threads, app
from saccade.errors import UsageError
from saccade.terminal import err, new_table, out, print_json

if TYPE_CHECKING:
    from saccade.benchmarks.measuring.compare import Difference
    from saccade.benchmarks.measuring.records import Record

_COLOURS = {"faster": "green", "slower": "bold red"}


@app.command()
def bench(
    bundles: Annotated[list[str], typer.Argument(metavar="BUNDLE...", help="Folders, .zip files or names.")],
    engine: Annotated[
        str,
        typer.Option(metavar="LIST", help="With commas: onnxruntime,openvino (default: those installed)."),
    ] = "",
    precision: Annotated[str, typer.Option(metavar="LIST", help="fp32,fp16,bf16,...")] = "fp32",
    batch: Annotated[str, typer.Option(metavar="LIST", help="Pictures per run: 1,8,32.")] = "1",
    threads: Annotated[str, typer.Option(metavar="LIST", help="CPU threads: 1,2 (default: all).")] = "",
    device: Device = "cpu",
    peers: Annotated[
        bool, typer.Option("--peers", help="Also torch, torch.compile and plain exports of the same models.")
    ] = False,
    weights: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The checkpoint, so that peers answer the same.")
    ] = None,
    seconds: Annotated[float, typer.Option(metavar="S", min=0, help="Timed at least, for each.")] = 5.0,
    rounds: Annotated[int, typer.Option(metavar="N", min=1, help="Turns that each takes.")] = 10,
    record_file: Annotated[
        Path | None, typer.Option("--out", metavar="FILE.jsonl", help="Add the records to this file.")
    ] = None,
    report: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write report.html, and pictures of its charts.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Measure bundles: latency, throughput, memory, energy, beside what the machine can do. Ctrl-C keeps what
    was measured.

    Every combination runs in a process of its own; they take turns. Example:
    saccade bench my_bundle --engine onnxruntime,openvino --batch 1,8 --peers --report report
    """
    from saccade.benchmarks import bench as benchmarking
    from saccade.benchmarks.measuring.harness import Settings

    wanted = benchmarking.Wanted(
        bundles=tuple(bundles),
        engines=_words(engine),
        precisions=_words(precision),
        batches=_numbers("--batch", batch),
        threads=_numbers("--threads", threads),
        device=device,
        peers=peers,
        weights=weights,
    )
    with _bar() as progress:
        run = benchmarking.bench(
            wanted,
            Settings(seconds=seconds, rounds=rounds),
            out=record_file,
            report=report,
            progress=progress,
        )
    if as_json:
        from saccade.benchmarks.measuring.records import to_json

        print_json([to_json(record) for record in run.records])
    else:
        _show(run.records)
    if report is not None:
        err.print(f"wrote {escape(str(report / 'report.html'))}")
    if run.interrupted:
        err.print("[bold yellow]stopped:[/bold yellow] these are the records of what was measured")
        raise typer.Exit(130)


@app.command("compare-bench")
def compare_bench(
    old: Annotated[Path, typer.Argument(metavar="OLD.jsonl", help="Records of `saccade bench --out`.")],
    new: Annotated[Path, typer.Argument(metavar="NEW.jsonl", help="Records to hold against them.")],
    processor: Annotated[
        bool, typer.Option("--processor", help="Compare processor time: for machines that others use too.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Say what became faster or slower between two files of records, and what noise forbids to say.

    Exit code 1 when anything became slower.
    """
    from dataclasses import asdict

    from saccade.benchmarks.measuring import compare as comparing
    from saccade.benchmarks.measuring.records import read_records

    rows = comparing.compare(read_records(old), read_records(new), "processor" if processor else "wall")
    if as_json:
        print_json(
            [{"configuration": list(row.new.configuration.key), **asdict(row.difference)} for row in rows]
        )
    else:
        table = new_table(
            "model", "engine", "batch>", "threads>", "old ms>", "new ms>", "ratio>", "99 %", "verdict"
        )
        for row in rows:
            table.add_row(*_identity(row.new), _ms(row.old), _ms(row.new), *_difference(row.difference))
        out.print(table)
    if any(row.difference.verdict == "slower" for row in rows):
        raise typer.Exit(1)


@app.command()
def tune(
    bundle: BundleName,
    batch: Annotated[str, typer.Option(metavar="LIST", help="Pictures per run that count: 1,8.")] = "1",
    precision: PrecisionName = "fp32",
    threads: Threads = None,
    device: Device = "cpu",
    seconds: Annotated[float, typer.Option(metavar="S", min=0, help="Timed at least, for each.")] = 3.0,
    as_json: AsJson = False,
) -> None:
    """Measure the engines on this machine and record the fastest, which engine `auto` takes from then on.

    The choice holds for this bundle, device and number of threads until the machine or a version changes.
    """
    from dataclasses import replace

    from saccade.benchmarks import tune as tuning

    with _bar() as progress:
        tuned = tuning.tune(
            bundle,
            precision=precision,
            batches=_numbers("--batch", batch),
            threads=threads,
            device=device,
            settings=replace(tuning.SETTINGS, seconds=seconds),
            progress=progress,
        )
    if as_json:
        return print_json(tuned.to_json())
    _show(tuned.records)
    out.print(f"auto takes [bold]{tuned.engine}[/bold] for {escape(tuned.name)}: {escape(tuned.reason)}")


def _show(records: Sequence[Record]) -> None:
    table = new_table(
        "model", "engine", "batch>", "threads>", "median ms>", "p90>", "p99>", "images/s>", "GFLOP/s>",
        "of ceiling>", "MiB>", "remark",
    )  # fmt: skip
    for record in records:
        timing, used = record.timing, record.resources
        table.add_row(
            *_identity(record),
            _ms(record),
            f"{timing.p90_ms:.4g}" if timing else "",
            f"{timing.p99_ms:.4g}" if timing else "",
            f"{record.images_per_s:.4g}" if record.images_per_s else "",
            f"{record.gflops:.3g}" if record.gflops else "",
            f"{record.of_ceiling:.0%}" if record.of_ceiling else "",
            f"{used.peak_rss_mib:.0f}" if used else "",
            _remark(record),
        )
    out.print(table)
    if any(record.noisy for record in records):
        out.print("[yellow]noisy[/yellow]: repeat these on a quiet machine before you rely on them")


def _identity(record: Record) -> tuple[str, str, str, str]:
    given = record.configuration
    return escape(given.model), escape(given.label), str(given.batch), str(given.threads)


def _ms(record: Record) -> str:
    return f"{record.timing.median_ms:.4g}" if record.timing else ""


def _remark(record: Record) -> str:
    if record.error:
        return f"[bold red]failed:[/bold red] {escape(record.error)}"
    return f"[yellow]noisy:[/yellow] {escape(record.noisy)}" if record.noisy else ""


def _difference(found: Difference) -> tuple[str, str, str]:
    colour = _COLOURS.get(found.verdict, "default")
    interval = f"{found.low:.3f} to {found.high:.3f}" if found.low and found.high else ""
    remark = f" ({escape(found.remark)})" if found.remark else ""
    return (
        "" if found.ratio is None else f"{found.ratio:.3f}",
        interval,
        f"[{colour}]{found.verdict}[/]{remark}",
    )


@contextmanager
def _bar() -> Iterator[Callable[[int, int, str], None]]:
    """A bar that names what is being measured. Silent off a terminal."""
    columns = (
        BarColumn(),
        TimeElapsedColumn(),
        TextColumn("of about"),
        TimeRemainingColumn(),
        TextColumn("{task.description}"),
    )
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as progress:
        task = progress.add_task("starting", total=None)

        def show(done: int, total: int, what: str) -> None:
            progress.update(task, completed=done, total=total, description=escape(what))

        yield show


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())


def _numbers(option: str, text: str) -> tuple[int, ...]:
    words = _words(text)
    if not all(word.isdigit() and int(word) > 0 for word in words):
        raise UsageError(f"{option} {text!r}: write numbers above 0 with commas between, as 1,8,32")
    return tuple(dict.fromkeys(map(int, words)))
