"""A sample of what a graph gave where it was made, and how far what it gives elsewhere is from that.

One .npz file: ``input:NAME`` arrays, ``output:NAME`` arrays, and a scalar ``tolerance:NAME`` for each output.
NumPy only.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from saccade.engines import detections
from saccade.engines.engine import Arrays
from saccade.errors import BundleError


@dataclass(frozen=True, slots=True)
class Difference:
    """One output: largest absolute difference, and the largest that is accepted."""

    output: str
    largest: float
    tolerance: float

    @property
    def agrees(self) -> bool:
        """False also for NaN."""
        return self.largest <= self.tolerance


@dataclass(frozen=True)
class Sample:
    """Inputs, the outputs they gave in float64 arithmetic, and tolerances, each by name."""

    inputs: Arrays
    outputs: Arrays
    tolerances: dict[str, float]

    def differences(self, actual: Arrays) -> list[Difference]:
        """How far `actual` outputs are from the sample's."""
        largest = differences(self.outputs, actual)
        return [Difference(name, largest[name], self.tolerances[name]) for name in self.outputs]


def read_sample(path: Path) -> Sample:
    """The sample in `path`; BundleError when it is no such file."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            parts = {kind: _named(arrays, kind) for kind in ("input", "output", "tolerance")}
    except (OSError, ValueError) as error:
        raise BundleError(f"{path} cannot be read as a conformance sample: {error}") from error
    tolerances = {name: float(value) for name, value in parts["tolerance"].items()}
    if set(tolerances) != set(parts["output"]) or not tolerances:
        raise BundleError(f"{path} must hold a tolerance for each output, and at least one")
    return Sample(parts["input"], parts["output"], tolerances)


def _named(arrays: Any, kind: str) -> dict[str, NDArray[Any]]:
    """The arrays called "kind:name", by name."""
    return {key.partition(":")[2]: arrays[key] for key in arrays.files if key.startswith(f"{kind}:")}


def differences(expected: Arrays, actual: Arrays) -> dict[str, float]:
    """The largest absolute difference of each output; of detections, what `detections.differences` says."""
    if detections.is_reference(expected):
        return detections.differences(expected, actual)
    return {
        name: float(np.abs(actual[name].astype(np.float64) - values).max())
        for name, values in expected.items()
    }
