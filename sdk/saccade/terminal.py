"""How the command line looks: tables and JSON on standard output, progress on standard error."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console, JustifyMethod
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

# Off a terminal nothing is folded: a line of a table stays a line for grep and awk.
_WIDE = None if sys.stdout.isatty() else 250

# soft_wrap: a path or a command to paste is never broken into two lines.
out = Console(soft_wrap=True, highlight=False, width=_WIDE)
err = Console(stderr=True, soft_wrap=True, highlight=False)


def print_json(value: Any) -> None:
    """`value` as indented JSON on standard output, without colours."""
    print(json.dumps(value, indent=2))


def new_table(*columns: str) -> Table:
    """An empty table. A column whose name ends in ">" is right-aligned; the first never folds."""
    empty = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for place, column in enumerate(columns):
        name = column.removesuffix(">")
        justify: JustifyMethod = "left" if name == column else "right"
        empty.add_column(name, justify=justify, overflow="fold", no_wrap=place == 0)
    return empty


def scaled(count: float | None, unit: float, suffix: str = "") -> str:
    """`count` in `unit`s with three significant digits or one decimal; empty for None."""
    if count is None:
        return ""
    value = count / unit
    return f"{value:.1f}{suffix}" if value >= 1 else f"{value:.3g}{suffix}"


def size(size_hw: tuple[int, int]) -> str:
    """Height x width."""
    return f"{size_hw[0]}x{size_hw[1]}"


@contextmanager
def working(what: str) -> Iterator[Callable[[str], None]]:
    """A spinner while the body runs; the function it yields names the step. Silent off a terminal."""
    if not err.is_terminal:
        yield lambda step: None
        return
    with err.status(f"{what} ...") as status:
        yield lambda step: status.update(f"{what}: {step} ...")


@contextmanager
def counting(what: str) -> Iterator[Callable[[int, int | None], None]]:
    """A bar while the body runs, moved by the function it yields: (done, total). Silent off a terminal."""
    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    # Lines printed meanwhile pass through the bar's console only where both are the same terminal:
    # standard output that goes to a file or a pipe must get there.
    with Progress(
        *columns,
        console=err,
        transient=True,
        disable=not err.is_terminal,
        redirect_stdout=sys.stdout.isatty(),
    ) as progress:
        task = progress.add_task(what, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)
