"""The command line: every command parses, calls one public function and prints what it returned.

`--json` puts the same result on standard output as JSON (`predict` prints one object per line). Progress and
errors go to standard error. An error raised on purpose ends with its class's exit code, without a traceback.
"""

from __future__ import annotations

import json
import sys
from typing import NoReturn

from rich.markup import escape

from saccade.cli import (  # noqa: F401 -- each adds its commands to the app
    acceptance,
    benchmarking,
    building,
    engines,
    looking,
    quantizing,
    running,
    searching,
    serving,
    triton,
)
from saccade.cli.app import app
from saccade.errors import SaccadeError
from saccade.terminal import err

__all__ = ["app", "main"]


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
