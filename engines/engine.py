"""The one contract between a predictor and whatever executes its graph."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from saccade.errors import UsageError


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """A graph input or output: `dtype` as NumPy names it, `shape` with names for dynamic dimensions."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """How an engine may use the machine. None leaves the choice to the runtime.

    device: "cpu" or "cuda" or "cuda:N". threads: CPU threads within one operator.
    memory_limit_mib: device memory arena limit (CUDA).
    """

    device: str = "cpu"
    threads: int | None = None
    memory_limit_mib: int | None = None


class Engine(Protocol):
    """Runs one graph. `run` is thread-safe; `close` may be called twice; `run` after it raises ClosedError.

    Arrays returned by `run` belong to the caller.
    """

    @property
    def inputs(self) -> Mapping[str, TensorSpec]: ...
    @property
    def outputs(self) -> Mapping[str, TensorSpec]: ...
    def run(self, feeds: Mapping[str, NDArray[np.generic]]) -> dict[str, NDArray[np.generic]]: ...
    def close(self) -> None: ...
