"""Any one call of a stand-in can go wrong."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any


class Faults:
    """Counts calls. The one numbered `at` fails by its API's sign of failure; TensorRT's bindings may also
    raise. The driver and CUDA give codes only.
    """

    def __init__(self, at: int | None = None, raises: bool = False) -> None:
        self.at = at
        self.raises = raises
        self.calls: list[str] = []
        self.struck = ""

    def strikes(self, name: str, *, bindings: bool = False) -> bool:
        self.calls.append(name)
        if len(self.calls) - 1 != self.at:
            return False
        self.struck = name
        if self.raises and bindings:
            raise RuntimeError(f"injected into {name}")
        return True


def call(bad: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """A method that can be made to fail: it then gives `bad`. TensorRT's classes have `is_binding`."""

    def decorate(method: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(method)
        def counted(self: Any, *arguments: Any) -> Any:
            if self._faults.strikes(method.__name__, bindings=getattr(self, "is_binding", False)):
                self._complain(f"injected into {method.__name__}")
                return bad
            return method(self, *arguments)

        return counted

    return decorate
