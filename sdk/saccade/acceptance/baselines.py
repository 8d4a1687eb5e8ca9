"""What a plan's latency stands beside: torch.compile and ONNX Runtime on the same GPU.

Every latency is the median of whole runs, arrays in host memory to arrays in host memory.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from saccade.engines.engine import Arrays
from saccade.errors import MissingDependency, UsageError

if TYPE_CHECKING:
    from saccade.bundle import Bundle

_TORCH = {"fp32": "float32", "tf32": "float32", "fp16": "float16", "bf16": "bfloat16"}
_WARM_UP = 5  # runs: kernels are loaded, CUDA graphs recorded
_SECONDS, _LEAST = 2.0, 10  # of timed runs


def median_ms(run: Callable[[], object]) -> float:
    """Milliseconds of one call, the median of those that fit into `_SECONDS`, at least `_LEAST`."""
    for _ in range(_WARM_UP):
        run()
    samples: list[float] = []
    started = time.perf_counter()
    while len(samples) < _LEAST or time.perf_counter() - started < _SECONDS:
        begun = time.perf_counter()
        run()
        samples.append(1e3 * (time.perf_counter() - begun))
    return round(statistics.median(samples), 4)


def batched(feeds: Arrays, batch: int, size_hw: tuple[int, int] | None = None) -> dict[str, Any]:
    """`feeds` repeated or cut to `batch` rows each, and pictures to that size where one is given."""
    made = {name: np.resize(values, (batch, *values.shape[1:])) for name, values in feeds.items()}
    if size_hw is not None:
        made["image"] = np.resize(feeds["image"], (batch, feeds["image"].shape[1], *size_hw))
        if "size_hw" in made:
            made["size_hw"] = np.resize(np.array(size_hw, np.float32), (batch, 2))
    return made


def torch_compiled(bundle: Bundle, precision: str, feeds: Mapping[str, Any]) -> Callable[[], object]:
    """A run of the bundle's torch module, compiled for this GPU; random weights, which take the same time."""
    try:
        import torch
    except ModuleNotFoundError as error:
        raise MissingDependency("torch is not installed: pip install 'saccade[export]'") from error
    from saccade.models import create
    from saccade.models.deploy import merge

    if not torch.cuda.is_available():
        raise MissingDependency("this torch has no CUDA: install the one for your driver from pytorch.org")
    if set(bundle.graphs) != {"model"}:
        raise UsageError(
            f"{bundle.name} has graphs {', '.join(bundle.graphs)}: only one of one graph is compiled"
        )
    if precision not in _TORCH:
        raise UsageError(f"torch.compile runs no {precision}")
    dtype = getattr(torch, _TORCH[precision])
    module = merge(create(bundle.card.name, **bundle.provenance.get("config", {})).eval()).cuda().to(dtype)
    compiled = torch.compile(module, dynamic=False)

    def run() -> object:
        given = [torch.from_numpy(values).cuda() for values in feeds.values()]
        with torch.inference_mode():
            found = compiled(*(each.to(dtype) if each.is_floating_point() else each for each in given))
        return [each.float().cpu() for each in (found if isinstance(found, tuple) else (found,))]

    return run
