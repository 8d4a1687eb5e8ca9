"""Who may use a runtime's object, and until when: open in one process, closed once."""

from __future__ import annotations

import os
import weakref
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

from saccade.errors import ClosedError

T = TypeVar("T")


class Closing:
    """What `with` closes at its end: whatever has a `close`."""

    def close(self) -> None:
        """Free what is held."""
        raise NotImplementedError(f"{type(self).__name__} must say what closing means")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


class Owned(Generic[T]):
    """Gives out a runtime's object while it is open, in the process that made it.

    A runtime's threads do not exist in a forked child. Its object is refused there, and never destroyed:
    destroying it waits for those threads (OpenVINO) or crashes (ONNX Runtime).
    """

    def __init__(self, value: T, what: str) -> None:
        self._value: T | None = value
        self._what = what
        self._pid = os.getpid()
        _open.add(self)

    def get(self) -> T:
        """The object; ClosedError after `close` or in a forked child. A call that holds it keeps it alive."""
        if os.getpid() != self._pid:
            raise ClosedError(
                f"{self._what} was opened in process {self._pid} and cannot be used in {os.getpid()}, "
                "which was forked from it: load it in the child"
            )
        value = self._value
        if value is None:
            raise ClosedError(f"{self._what} is closed: load it again")
        return value

    def close(self) -> None:
        """Let go of the object, which is freed when the last call in flight returns. Twice is fine."""
        self._value = None


_open: weakref.WeakSet[Owned[Any]] = weakref.WeakSet()


def _keep_forever_in_child() -> None:
    import ctypes

    for owned in _open:
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(owned._value))


os.register_at_fork(after_in_child=_keep_forever_in_child)
