"""Is what an engine computes what the torch module computes? Nothing is trusted until compared.

The yardstick is the module itself in float64. How far its own float32 result is from that is the noise
floor of the arithmetic; an engine may be `MARGIN` times as far, since it may sum in another order.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from saccade.engines.conformance import differences
from saccade.engines.engine import Engine
from saccade.engines.inputs import Input
from saccade.errors import ExportError

BATCHES = (1, 2, 5)
MARGIN = 10.0
LEAST_SIGNAL = 10.0  # how many tolerances two pictures of noise must be apart
LEAST = 2.0**-20  # of the output's largest magnitude: eight units of float32's last place


@dataclass(frozen=True, slots=True)
class Comparison:
    """One output of one graph in one engine at one batch size; all figures are absolute maxima."""

    graph: str
    engine: str
    output: str
    batch: int
    difference: float
    noise_floor: float
    tolerance: float

    @property
    def agrees(self) -> bool:
        """False also for NaN."""
        return self.difference <= self.tolerance

    def to_json(self) -> dict[str, Any]:
        """Plain dict of JSON types."""
        return {**asdict(self), "agrees": self.agrees}


@dataclass(frozen=True)
class Expectation:
    """What a module answers to `feeds`: outputs in float64 rounded to float32, and tolerances by output."""

    feeds: Mapping[str, NDArray[Any]]
    outputs: Mapping[str, NDArray[np.float64]]
    noise_floors: Mapping[str, float]

    def tolerance(self, output: str) -> float:
        """Largest absolute difference that float32 arithmetic explains."""
        largest = float(np.abs(self.outputs[output]).max())
        return max(MARGIN * self.noise_floors[output], LEAST * largest)


def expectations(
    module: nn.Module, inputs: Sequence[Input], outputs: Sequence[str], *, batches: Sequence[int] = BATCHES
) -> list[Expectation]:
    """Run `module` on fresh values for `inputs` in float32 and float64, once per batch size."""
    # The round trip through train() drops what timm caches in the dtype of an earlier run.
    exact = copy.deepcopy(module).double().train().eval()
    rng = np.random.default_rng()
    drawn = [{each.name: each.sample(rng, batch) for each in inputs} for batch in batches]
    expected = [_expectation(module, exact, feeds, outputs) for feeds in drawn]
    # One picture and a head of two classes are two numbers, which may be exact by chance: pool the floors.
    floors = {name: max(each.noise_floors[name] for each in expected) for name in outputs}
    return [replace(each, noise_floors=floors) for each in expected]


def require_signal(expected: Sequence[Expectation], name: str) -> None:
    """Raise ExportError where outputs hardly depend on the picture: comparing them would prove nothing."""
    for expectation in expected:
        for output, values in expectation.outputs.items():
            spread = float(np.abs(values - values[:1]).max())
            if len(values) > 1 and not spread > LEAST_SIGNAL * expectation.tolerance(output):
                raise ExportError(
                    f"{name}: output {output!r} differs by {spread:.3g} between pictures, and float32 noise "
                    f"explains {expectation.tolerance(output):.3g}: whether a graph computes the same "
                    "cannot be seen. Are these the weights of this model?"
                )


def compare(
    engine: Engine, expected: Sequence[Expectation], *, graph: str, engine_name: str
) -> list[Comparison]:
    """Run `engine` on the inputs of `expected` and measure every output."""
    rows = []
    for expectation in expected:
        largest = differences(expectation.outputs, engine.run(expectation.feeds))
        for output, values in expectation.outputs.items():
            rows.append(
                Comparison(
                    graph=graph,
                    engine=engine_name,
                    output=output,
                    batch=len(values),
                    difference=largest[output],
                    noise_floor=expectation.noise_floors[output],
                    tolerance=expectation.tolerance(output),
                )
            )
    return rows


def require_agreement(rows: Sequence[Comparison], name: str) -> None:
    """Raise ExportError naming the worst output unless every row agrees."""
    wrong = [row for row in rows if not row.agrees]
    if wrong:
        worst = max(wrong, key=lambda row: row.difference / row.tolerance)
        raise ExportError(
            f"{name}: output {worst.output!r} of {worst.graph} in {worst.engine} differs from the torch "
            f"module by {worst.difference:.3g} at batch {worst.batch}; float32 noise explains "
            f"{worst.tolerance:.3g}. {len(wrong)} of {len(rows)} comparisons failed; nothing was written"
        )


def write_conformance(expected: Expectation, path: Path) -> None:
    """Store one set of inputs with its outputs and tolerances, for any host to re-check later."""
    arrays = {f"input:{name}": values for name, values in expected.feeds.items()}
    for output, values in expected.outputs.items():
        arrays[f"output:{output}"] = values.astype(np.float32)
        # Other hosts may use other instructions, so they get the wider of the two usual bounds.
        scale = float(np.abs(values).max())
        arrays[f"tolerance:{output}"] = np.asarray(max(expected.tolerance(output), 1e-4 * scale), np.float32)
    np.savez_compressed(path, allow_pickle=False, **arrays)


def _expectation(
    module: nn.Module, exact: nn.Module, feeds: Mapping[str, NDArray[Any]], outputs: Sequence[str]
) -> Expectation:
    tensors = [torch.from_numpy(values) for values in feeds.values()]
    rounded = _run(module, tensors, outputs)
    precise = _run(exact, [each.double() if each.is_floating_point() else each for each in tensors], outputs)
    floors = {name: float(np.abs(rounded[name] - precise[name]).max()) for name in outputs}
    return Expectation(feeds, precise, floors)


def _run(
    module: nn.Module, tensors: Sequence[torch.Tensor], outputs: Sequence[str]
) -> dict[str, NDArray[np.float64]]:
    with torch.inference_mode():
        result = module(*tensors)
    values = result if isinstance(result, tuple | list) else (result,)
    return {name: value.double().numpy() for name, value in zip(outputs, values, strict=True)}
