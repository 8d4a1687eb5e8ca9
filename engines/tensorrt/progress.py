"""From TensorRT's nested phases to one number that rises from 0 to 1."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from saccade.engines.tensorrt.bindings import Bindings

Say = Callable[[str, float], None]
_SECONDS_BETWEEN = 0.1


@dataclass(slots=True)
class _Phase:
    parent: str | None
    steps: int
    done: int = 0


class Phases:
    """The phases that are under way. Called from several threads."""

    def __init__(self) -> None:
        self._phases: dict[str, _Phase] = {}
        self._reached = 0.0
        self._lock = threading.Lock()

    def start(self, name: str, parent: str | None, steps: int) -> None:
        with self._lock:
            self._phases[name] = _Phase(parent, max(steps, 1))

    def step(self, name: str, step: int) -> None:
        """Step number `step`, from 0, is done."""
        with self._lock:
            if name in self._phases:
                self._phases[name].done = step + 1

    def finish(self, name: str) -> None:
        with self._lock:
            self._phases.pop(name, None)

    def fraction(self) -> float:
        """How much of the outermost phases is done. It never falls, though phases come as they please."""
        with self._lock:
            roots = [name for name, phase in self._phases.items() if phase.parent not in self._phases]
            self._reached = max([self._reached, *map(self._of, roots)])
            return self._reached

    def _of(self, name: str) -> float:
        phase = self._phases[name]
        inside = max((self._of(n) for n, p in self._phases.items() if p.parent == name), default=0.0)
        return min((phase.done + inside) / phase.steps, 1.0)


def monitor(trt: Bindings, say: Say, cancelled: Callable[[], bool]) -> Any:
    """An IProgressMonitor that says phase and fraction a few times a second; the build stops when asked."""

    base: Any = trt.IProgressMonitor

    class Monitor(base):
        def __init__(self) -> None:
            base.__init__(self)
            self._phases = Phases()
            self._next = 0.0

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self._phases.start(phase_name, parent_phase, num_steps)
            self._tell(phase_name)

        def step_complete(self, phase_name: str, step: int) -> bool:
            self._phases.step(phase_name, step)
            self._tell(phase_name)
            return not cancelled()

        def phase_finish(self, phase_name: str) -> None:
            self._phases.finish(phase_name)

        def _tell(self, phase: str) -> None:
            # Twice in one tenth of a second from two threads does no harm.
            now = time.monotonic()
            if now >= self._next:
                self._next = now + _SECONDS_BETWEEN
                say(phase, self._phases.fraction())

    return Monitor()
