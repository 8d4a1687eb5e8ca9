"""Memory of decoded pictures: how many pixels are at work at the same time."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

from saccade.serving.batched import Patience
from saccade.serving.heap import give_back

__all__ = ["PixelBudget"]

_LARGE = 4_000_000  # pixels; Pillow keeps 4 bytes of each, in blocks of 16 MiB


class PixelBudget:
    """At most `most` pixels at work at the same time, over all threads: first come, first served."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._taken = 0
        self._turns: deque[object] = deque()
        self._state = threading.Condition()

    @contextmanager
    def held(self, pixels: int, patience: Patience) -> Iterator[None]:
        """Wait until there is room for `pixels`, and hold it. More than `most` wait until they are alone.

        DeadlineError where the room comes too late.
        """
        charged = min(pixels, self._most)
        self._take(charged, patience)
        try:
            yield
        finally:
            with self._state:
                self._taken -= charged
                self._state.notify_all()
            if pixels >= _LARGE:
                give_back()

    def _take(self, pixels: int, patience: Patience) -> None:
        turn = object()
        with self._state:
            self._turns.append(turn)
            try:
                while self._turns[0] is not turn or self._taken + pixels > self._most:
                    self._state.wait(patience.left_ms() / 1e3)
                self._taken += pixels
            finally:
                self._turns.remove(turn)
                self._state.notify_all()  # it is the next one's turn
