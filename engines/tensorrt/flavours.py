"""The three libraries that share TensorRT's API, and everything in which they differ.

`tensorrt` builds and runs on data-centre, embedded and desktop GPUs: it times kernels on the GPU at hand.
`tensorrt_lean` only runs version-compatible plans. `tensorrt_rtx` builds for GPUs of the RTX class, on any
machine, and a plan specialises itself where it is first used.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import cast

from saccade.engines.tensorrt.bindings import Bindings
from saccade.errors import EngineError, MissingDependency, UsageError

PLUGINS_SINCE = (10, 15)  # before, the parser's choice between plugin and function body is not ours


@dataclass(frozen=True, slots=True)
class Flavour:
    """One library. `modules`: imported in this order, the last one is the API; `install` brings them.

    capabilities: compute capabilities that a plan can be built for without that GPU; empty where the library
    builds for the GPU that it runs on. aot_plugins: kernels can be embedded in the plan. refuses: options of
    `BuildOptions` that this library has not, and why. needs_driver: those that work only beside a GPU.
    """

    name: str
    modules: tuple[str, ...]
    install: str
    builds: bool = True
    capabilities: tuple[str, ...] = ()
    timing_cache: bool = False
    aot_plugins: bool = False
    refuses: Mapping[str, str] = field(default_factory=dict)
    needs_driver: frozenset[str] = frozenset()


_ONE_VERSION = "its plans run on the version that built them"
_HERE = "it builds for the GPU that it runs on"

FLAVOURS: Mapping[str, Flavour] = {
    "tensorrt": Flavour(
        "tensorrt",
        ("tensorrt",),
        "pip install 'saccade[tensorrt]'",
        timing_cache=True,
        aot_plugins=True,
        refuses={"target": _HERE},
    ),
    "tensorrt_rtx": Flavour(
        "tensorrt_rtx",
        ("tensorrt_rtx_libs", "tensorrt_rtx_bindings"),
        "pip install 'saccade[tensorrt-rtx]'",
        capabilities=("75", "80", "86", "89", "120", "121"),
        refuses={
            "version_compatible": _ONE_VERSION,
            "hardware_compatible": "name several targets instead, as in sm86+sm89",
        },
        needs_driver=frozenset({"stripped", "refittable"}),
    ),
    "tensorrt_lean": Flavour(
        "tensorrt_lean", ("tensorrt_lean",), "pip install tensorrt-lean 'saccade[tensorrt]'", builds=False
    ),
}


def flavour(name: str) -> Flavour:
    """The flavour called `name`; UsageError with the known ones otherwise."""
    if name not in FLAVOURS:
        raise UsageError(f"no flavour of TensorRT is called {name!r}; there are {', '.join(FLAVOURS)}")
    return FLAVOURS[name]


def is_installed(chosen: Flavour) -> bool:
    """Whether its modules can be found; nothing is imported."""
    return all(importlib.util.find_spec(module) is not None for module in chosen.modules)


def load(chosen: Flavour) -> Bindings:
    """Import the library. MissingDependency with the install line, EngineError where it cannot start."""
    if not is_installed(chosen):
        missing = next(name for name in chosen.modules if importlib.util.find_spec(name) is None)
        raise MissingDependency(f"{chosen.name} is not installed (no module {missing}): {chosen.install}")
    try:
        *_, library = [importlib.import_module(module) for module in chosen.modules]
    except Exception as error:  # a wheel without its shared libraries fails in many ways
        raise EngineError(
            f"{chosen.name} is installed and does not start: {error}. Install it again: {chosen.install}"
        ) from error
    return cast(Bindings, library)


def installed_version(name: str) -> str | None:
    """The version of the flavour called `name`; None where it is not installed. Imports it."""
    chosen = flavour(name)
    return load(chosen).__version__ if is_installed(chosen) else None


def takes_plugins(name: str) -> bool:
    """Whether the flavour called `name`, as it is installed here, puts plugins in the place of nodes."""
    version = installed_version(name) if flavour(name).aot_plugins else None
    return version is not None and version_numbers(version) >= PLUGINS_SINCE


def version_numbers(version: str) -> tuple[int, ...]:
    """ "10.15.1.29" as (10, 15, 1, 29), to compare."""
    return tuple(int(number) for number in re.findall(r"\d+", version))
