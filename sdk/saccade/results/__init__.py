"""What predictors return, one module per kind: frozen columns, plain in JSON, one line for a terminal.

Every result has `to_json(top)` and `summary(top)` (top: the best so many, where there is an order), and
`untrained`: the model has random weights, the result means nothing.
"""

from __future__ import annotations

from typing import Any, Protocol


class Result(Protocol):
    """What the command line and the server know of a result."""

    @property
    def untrained(self) -> bool: ...
    def to_json(self, top: int | None = None) -> dict[str, Any]: ...
    def summary(self, top: int = 5) -> str: ...
