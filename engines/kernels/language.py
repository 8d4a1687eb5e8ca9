"""Triton where it is installed. Without it the kernels' modules still import: PTX, launches and references
need no Triton, and `jit` leaves a function that only `saccade.engines.kernels.compile` would miss.
"""

from __future__ import annotations

from typing import Any

jit: Any
tl: Any
try:
    import triton
    import triton.language as triton_language
except ImportError:
    tl = None

    def jit(function: Any) -> Any:
        """Stand-in for `triton.jit`: the function as it is written."""
        return function
else:
    jit, tl = triton.jit, triton_language

__all__ = ["jit", "tl"]
