"""The process in which one subject is measured: it opens it, and then times what it is told to, on request.

    python -m saccade.benchmarks.measuring.child

Requests come as JSON lines on standard input, answers go out as JSON lines on the standard output of the
start; whatever a library prints goes to standard error. The process ends with its input: it never outlives
the one that started it.
"""

from __future__ import annotations

import importlib
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any, TextIO

from saccade.benchmarks.measuring import machine
from saccade.benchmarks.measuring.records import Configuration
from saccade.benchmarks.measuring.subjects import Subject

CALM_S = 0.02  # before a slice: threads of the child before may spin a while after their last run
WINDOW = 5  # iterations whose medians are compared while warming up
STABLE = 0.03  # the share by which they may still differ
_PART_RUNS = 5


def main() -> None:
    """Answer requests until there are no more."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    configuration = Configuration(**json.loads(sys.stdin.readline()))
    used = machine.device_used_mib(configuration.device)
    began = time.perf_counter()
    module, _, name = configuration.opener.partition(":")
    subject: Subject = getattr(importlib.import_module(module), name)(configuration)
    opened_s = time.perf_counter() - began - subject.prepared_s
    _answer(answers, {"open_s": opened_s, "agreement": subject.agreement})
    meter = machine.energy_meter(configuration.device)
    requests: dict[str, Callable[..., dict[str, Any]]] = {
        "warm_up": lambda seconds: warm_up(subject, seconds),
        "slice": lambda seconds, iterations: timed_slice(subject, seconds, iterations, meter),
        "parts": lambda seconds: timed_parts(subject, seconds),
        "end": lambda: _summary(subject, configuration, used),
    }
    for line in sys.stdin:
        request = json.loads(line)
        _answer(answers, requests[request.pop("do")](**request))


def warm_up(subject: Subject, seconds: float) -> dict[str, Any]:
    """Run until two windows of iterations in a row have the same median, or `seconds` have passed."""
    began = time.perf_counter()
    clock = subject.clock or partial(_timed, subject.run)
    taken: list[float] = []
    while time.perf_counter() - began < seconds or len(taken) < 2:
        taken.append(clock())
        if len(taken) >= 2 * WINDOW and len(taken) % WINDOW == 0:
            before = statistics.median(taken[-2 * WINDOW : -WINDOW])
            if abs(statistics.median(taken[-WINDOW:]) - before) <= STABLE * before:
                break
    return {"warm_up_s": time.perf_counter() - began}


def timed_slice(
    subject: Subject, seconds: float, iterations: int, meter: Callable[[], float] | None
) -> dict[str, Any]:
    """Iterations, at least `iterations` and for at least `seconds`, after one that brings the caches back."""
    time.sleep(CALM_S)
    clock = subject.clock or partial(_timed, subject.run)
    clock()
    taken: list[float] = []
    joules = meter() if meter else None
    busy = machine.machine_busy_s()
    processor, began = time.process_time(), time.perf_counter()
    while len(taken) < iterations or time.perf_counter() - began < seconds:
        taken.append(clock())
    wall, processor = time.perf_counter() - began, time.process_time() - processor
    others = None if busy is None else max((machine.machine_busy_s() or busy) - busy - processor, 0.0)
    return {
        "samples_s": taken,
        "wall_s": wall,
        "processor_s": processor,
        "others_s": others,
        "joules": meter() - joules if meter and joules is not None else None,
    }


def timed_parts(subject: Subject, seconds: float) -> dict[str, Any]:
    """The median seconds of each part, over `seconds` and at least a few runs of it, after one for warmth."""
    found = {}
    for name, run in subject.parts.items():
        run()
        began = time.perf_counter()
        taken: list[float] = []
        while len(taken) < _PART_RUNS or time.perf_counter() - began < seconds:
            taken.append(_timed(run))
        found[name] = statistics.median(taken)
    return {"parts_s": found}


def _timed(run: Callable[[], object]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def _summary(subject: Subject, configuration: Configuration, used_before: float | None) -> dict[str, Any]:
    used = machine.device_used_mib(configuration.device)
    return {
        "includes": subject.includes,
        "peak_rss_mib": machine.peak_rss_mib(),
        "device_memory_mib": None if used is None or used_before is None else used - used_before,
        "versions": machine.versions(),
    }


def _answer(file: TextIO, answer: dict[str, Any]) -> None:
    file.write(json.dumps(answer) + "\n")
    file.flush()


if __name__ == "__main__":
    main()
