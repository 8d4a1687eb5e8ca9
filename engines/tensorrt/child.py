"""Compile in a process of its own: NVIDIA's libraries may abort the process they run in, and keep memory.

The child prints lines of JSON, {"phase", "fraction"} while it works and one answer. It lives as long as its
standard input is open: closing that cancels the build, and so does the end of its parent.
"""

from __future__ import annotations

import dataclasses
import json
import os
import resource
import selectors
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import saccade.errors
from saccade.engines.tensorrt.compiler import Outcome, Request, compile_plan
from saccade.engines.tensorrt.flavours import flavour, load
from saccade.engines.tensorrt.gpu import Gpu
from saccade.engines.tensorrt.progress import Say
from saccade.engines.tensorrt.words import Refusal, speak_up
from saccade.errors import EngineError, SaccadeError

_POLL_SECONDS = 0.05
_GRACE_SECONDS = 10.0  # from the wish to cancel to the end of a child that does not listen


@dataclass(frozen=True, slots=True)
class Limits:
    """When to end a child: seconds since its start, MiB of resident memory. None: never."""

    seconds: float | None = None
    memory_mib: int | None = None


NO_LIMITS = Limits()


def run(
    request: Request, *, say: Say = lambda phase, fraction: None, limits: Limits = NO_LIMITS
) -> tuple[Outcome, int]:
    """`compile_plan` in a child; the outcome, and the most memory in MiB that the child held.

    say: called with phase and fraction; whatever it raises cancels the build, as Ctrl-C does. Raises what
    `compile_plan` raises, and EngineError where the child crashed or overran a limit.
    """
    with _started(request) as (child, err):
        try:
            answer = _listen(child, say, limits)
        except _Ended as ended:
            err.seek(0)
            name, library = request.graph.name, request.options.flavour
            raise EngineError(
                f"{library} gave no answer on {name}: {ended}.{_last_words(err.read())}"
            ) from None
    if "error" in answer:
        raise _raised(answer["error"])
    return _outcome(answer["outcome"]), answer["peak_memory_mib"]


class _Ended(Exception):
    """The child will not answer; the message says why."""


@contextmanager
def _started(request: Request) -> Iterator[tuple[subprocess.Popen[bytes], IO[str]]]:
    """The child and what it prints on stderr. Gone at the end, given a little time to stop by itself."""
    command = [sys.executable, "-P", "-m", "saccade.engines.tensorrt.child", json.dumps(request.to_json())]
    # The child finds modules where this process does. A session of its own: Ctrl-C reaches it through us.
    paths = [path for path in (*os.environ.get("PYTHONPATH", "").split(os.pathsep), *sys.path) if path]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(dict.fromkeys(paths))}
    with tempfile.TemporaryFile("w+", errors="replace") as err:
        child = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=err,
            env=environment,
            start_new_session=True,
        )
        try:
            yield child, err
        finally:
            _stop(child)


def _stop(child: subprocess.Popen[bytes]) -> None:
    assert child.stdin is not None
    assert child.stdout is not None
    try:
        child.stdin.close()
        child.stdout.close()
        child.wait(_GRACE_SECONDS)
    except subprocess.TimeoutExpired:
        pass
    finally:  # also on a second Ctrl-C
        child.kill()
        child.wait()


def _listen(child: subprocess.Popen[bytes], say: Say, limits: Limits) -> dict[str, Any]:
    """The child's answer; what it says on the way goes to `say`. _Ended where there is none.

    Memory is watched and not limited by rlimit: under an address-space limit the library hangs.
    """
    assert child.stdout is not None
    deadline = time.monotonic() + (limits.seconds if limits.seconds is not None else float("inf"))
    pending = b""
    with selectors.DefaultSelector() as ready:
        ready.register(child.stdout, selectors.EVENT_READ)
        while True:
            if ready.select(_POLL_SECONDS):
                piece = os.read(child.stdout.fileno(), 2**16)
                if not piece:
                    raise _Ended(f"its process ended with {_status(child.wait())}")
                *lines, pending = (pending + piece).split(b"\n")
                for line in lines:
                    message: dict[str, Any] = json.loads(line)
                    if "phase" not in message:
                        return message
                    say(message["phase"], message["fraction"])
            if time.monotonic() > deadline:
                child.kill()
                raise _Ended(f"it was not done within {limits.seconds:g} s; allow more: timeout_s")
            held = _resident_mib(child.pid)
            if limits.memory_mib is not None and held > limits.memory_mib:
                child.kill()
                over = f"it held {held} MiB, over the limit of {limits.memory_mib}"
                raise _Ended(f"{over}; allow more: memory_limit_mib")


def _resident_mib(pid: int) -> int:
    """Resident memory of a process; 0 once it is gone, and where there is no /proc."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (OSError, IndexError):
        return 0
    return pages * resource.getpagesize() >> 20


def _last_words(stderr: str) -> str:
    lines = [line for line in stderr.splitlines() if line.strip()][-8:]
    return "\n".join((" It last said:", *lines)) if lines else ""


def _status(code: int) -> str:
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"


def _raised(error: Mapping[str, str]) -> SaccadeError:
    kind: type[SaccadeError] = getattr(saccade.errors, error["type"])
    return kind(error["message"])


def _outcome(data: Mapping[str, Any]) -> Outcome:
    """An Outcome from what JSON made of it."""
    return Outcome(
        **{
            **data,
            "gpu": data["gpu"] and Gpu(**data["gpu"]),
            "refusals": tuple(Refusal(*refusal) for refusal in data["refusals"]),
            "warnings": tuple(data["warnings"]),
        }
    )


# --- the child -----------------------------------------------------------------------------------------


def _main(argument: str) -> None:
    """Answer the request in `argument`; what the library prints goes to stderr."""
    pipe = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    speak_up()
    unwanted = threading.Event()
    threading.Thread(target=_wait_for_the_end, args=(unwanted,), daemon=True).start()

    def send(message: Mapping[str, Any]) -> None:
        try:
            pipe.write(json.dumps(message) + "\n")
            pipe.flush()
        except BrokenPipeError:
            unwanted.set()

    request = Request.from_json(json.loads(argument))
    try:
        outcome = compile_plan(
            load(flavour(request.options.flavour)),
            request,
            say=lambda phase, fraction: send({"phase": phase, "fraction": round(fraction, 4)}),
            cancelled=unwanted.is_set,
        )
    except SaccadeError as error:
        send({"error": {"type": type(error).__name__, "message": str(error)}})
    else:
        peak_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        send({"outcome": dataclasses.asdict(outcome), "peak_memory_mib": peak_kib >> 10})
    os._exit(0)  # the library's own shutdown has nothing to add and can crash


def _wait_for_the_end(unwanted: threading.Event) -> None:
    """Set the event when nobody holds the other end of standard input; end the process if that is no help."""
    sys.stdin.buffer.read()
    unwanted.set()
    time.sleep(2 * _GRACE_SECONDS)
    os._exit(1)


if __name__ == "__main__":
    _main(sys.argv[1])
