"""What the C library does with freed memory, where it is glibc; elsewhere the last two do nothing."""

from __future__ import annotations

import ctypes

__all__ = ["give_back", "keep_freed", "share_heaps"]

_KEPT = 2**24  # bytes
_M_ARENA_MAX = -8  # malloc.h


def keep_freed() -> None:
    """Let the C library keep blocks of bodies' sizes for the next bodies.

    glibc gives them back to the kernel, until it has seen a larger one go (mallopt(3), "dynamic mmap
    threshold"), and takes new ones, page by page: for 602 kB that costs more than reading them.
    """
    del bytearray(_KEPT)[:]


def share_heaps() -> None:
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
