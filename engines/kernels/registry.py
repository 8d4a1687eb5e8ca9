"""The attention kernels by the name of their operator."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from saccade.engines.kernels import (
    seeded_window_attention,
    shifted_window_attention,
    token_attention,
    window_cross_attention,
)
from saccade.engines.kernels.launch import Kernel

KERNELS: Mapping[str, Kernel] = MappingProxyType(
    {
        module.KERNEL.operator.name: module.KERNEL
        for module in (
            shifted_window_attention,
            token_attention,
            window_cross_attention,
            seeded_window_attention,
        )
    }
)
