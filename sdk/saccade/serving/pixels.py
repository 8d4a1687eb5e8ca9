"""Memory of decoded pictures: how many pixels are at work at the same time, and that they are given back."""

from __future__ import annotations

import ctypes
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

from saccade.serving.batched import Patience

__all__ = ["PixelBudget", "give_back"]

_LARGE = 4_000_000  # pixels; Pillow keeps 4 bytes of each, in blocks of 16 MiB
_M_ARENA_MAX = -8  # malloc.h


class PixelBudget:
    """At most `most` pixels at work at the same time, over all threads: first come, first served."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._taken = 0
        self._turns: deque[object] = deque()
        self._state = threading.Condition()
        _share_heaps()

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


def _share_heaps() -> None:
    """Let the threads that come share two of the C library's heaps, where it is glibc.

    It gives every thread a heap of its own, up to eight per processor, and leaves up to 32 MiB at the end of
    each when it gives memory back: a burst of pictures of 6 megapixels left 54 MiB, with two heaps 2.
    """
    library = ctypes.CDLL(None)
    if hasattr(library, "malloc_trim"):
        library.mallopt(_M_ARENA_MAX, 2)


def give_back() -> None:
    """Return freed memory to the kernel, where the C library can.

    glibc keeps freed blocks for the next ones of their size: a burst of large pictures would leave as many as
    there were at once. What this takes, a tenth of a millisecond per megabyte, is little beside decoding.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's only
    if trim is not None:
        trim(0)
