"""A child process of `saccade.benchmarks.measuring.child`, and what it says when it dies."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from typing import Any

from saccade.benchmarks.measuring.records import Configuration

_TAIL = 600  # characters of what a dead child said last
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


class ChildError(Exception):
    """The child has died or keeps silent; the message says how, with its last words."""


class Child:
    """Starts opening at once; the first answer comes when the subject is open. `close` ends it."""

    def __init__(self, configuration: Configuration, patience_s: float) -> None:
        self._patience_s = patience_s
        self._words = tempfile.TemporaryFile()  # noqa: SIM115 -- as long as the child
        self._process = subprocess.Popen(
            [sys.executable, "-m", "saccade.benchmarks.measuring.child"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._words,
            env={**os.environ, **dict.fromkeys(_THREADS, str(configuration.threads))},
            start_new_session=True,  # Ctrl-C is for the parent, which ends its children
        )
        self._send(asdict(configuration))

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """The answer to `request`; to none, {}, the one that it gives by itself when it is open."""
        if request:
            self._send(request)
        answer: dict[str, Any] = json.loads(self._line())
        return answer

    def close(self) -> None:
        """End the process, whatever it does. Twice is fine."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(OSError):  # unsent bytes for a dead child
                assert pipe is not None
                pipe.close()
        self._words.close()

    def _send(self, message: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(message).encode() + b"\n")
            self._process.stdin.flush()
        except OSError as error:
            raise self._death() from error

    def _line(self) -> bytes:
        """One line. Answers come whole and one at a time, so nothing waits behind it."""
        assert self._process.stdout is not None
        deadline = time.monotonic() + self._patience_s
        descriptor = self._process.stdout.fileno()
        read = bytearray()
        while not read.endswith(b"\n"):
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([descriptor], [], [], left)[0]:
                raise ChildError(f"no answer within {self._patience_s:g} s. {self._last_words()}".strip())
            piece = os.read(descriptor, 2**16)
            if not piece:
                raise self._death()
            read += piece
        return bytes(read)

    def _death(self) -> ChildError:
        code = self._process.wait()
        how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        return ChildError(f"{how}. {self._last_words()}".strip())

    def _last_words(self) -> str:
        self._words.seek(0)
        text = self._words.read().decode(errors="replace").strip()
        return text.splitlines()[-1][:_TAIL] if text else ""
