"""Ranges on the time line of NVIDIA's profilers: `preprocess`, `run`, `copy` and `postprocess`, in the domain
`saccade`. Where the package `nvtx` is not installed they are nothing.
"""

from __future__ import annotations

import importlib
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any


@cache
def span(name: str) -> AbstractContextManager[Any]:
    """The range called `name`, for `with`: one object for all threads and nested uses."""
    try:
        nvtx = importlib.import_module("nvtx")
    except ImportError:
        return nullcontext()
    entered: AbstractContextManager[Any] = nvtx.annotate(name, domain="saccade")
    return entered
