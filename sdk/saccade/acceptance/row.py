"""The calls of one row. What fails is named, and what does not hang on it goes on."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TypeVar

from saccade.acceptance.records import Step
from saccade.errors import SaccadeError

logger = logging.getLogger("saccade")
T = TypeVar("T")


class Row:
    """Collects steps. Ctrl-C passes through; everything else that a call raises becomes its verdict."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self.steps: list[Step] = []

    def call(self, name: str, action: Callable[[], T], *, optional: bool = False) -> T | None:
        """What `action` gives; None where it failed. optional: it is then skipped instead."""
        self._say(name)
        started = time.perf_counter()
        try:
            result = action()
        except Exception as error:  # torch, ONNX Runtime and NVIDIA's libraries raise what they like
            words = str(error) if isinstance(error, SaccadeError) else f"{type(error).__name__}: {error}"
            self._note(name, "skipped" if optional else "failed", started, words)
            logger.info("%s: %s", name, words)
            return None
        self._note(name, "passed", started, result if isinstance(result, str) else "")
        return result

    def skip(self, name: str, reason: str) -> None:
        self._note(name, "skipped", time.perf_counter(), reason)

    def _note(self, name: str, outcome: str, started: float, message: str) -> None:
        self.steps.append(Step(name, outcome, round(time.perf_counter() - started, 3), message))

    @property
    def failed_call(self) -> str:
        """The first that failed; "" where none did."""
        return next((step.call for step in self.steps if step.outcome == "failed"), "")
