"""What can be measured: functions that open something and give it as a `Subject`, in a process of its own.

The harness calls an opener with its `Configuration` inside a child process. Openers import what they need
themselves, so that a child holds nothing that its subject does not use.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from saccade.benchmarks.measuring.records import Configuration

if TYPE_CHECKING:
    from saccade.predictors.predictor import Predictor

PICTURE_HW = (480, 640)  # of the pictures that are preprocessed, where the card does not keep their size


@dataclass(frozen=True, slots=True)
class Subject:
    """Something opened. run: one iteration of what is compared; it returns when the work is done.

    includes: what `run` does. parts: steps that are timed apart. agreement: see `Record`. prepared_s: of the
    time for opening, what went into things that a user has before. clock: for what times itself: the seconds
    of an iteration, called in place of `run`.
    """

    run: Callable[[], object]
    includes: tuple[str, ...] = ("run",)
    parts: Mapping[str, Callable[[], object]] = field(default_factory=dict)
    agreement: float | None = None
    prepared_s: float = 0.0
    clock: Callable[[], float] | None = None


def bundle(configuration: Configuration) -> Subject:
    """A bundle as `saccade.load` gives it. arguments: path; batches as in `Configuration`.

    `run` is the graph alone, on an array in host memory: what every engine and every peer does. Making the
    array and turning outputs into results are parts.
    """
    import numpy as np

    import saccade

    predictor: Any = saccade.load(
        configuration.arguments["path"],
        configuration.engine,
        precision=configuration.precision,
        device=configuration.device,
        threads=configuration.threads,
    )
    given = predictor.card.preprocessing
    size_hw = given.resize_hw if given.resize == "fit" else PICTURE_HW
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 256, (*size_hw, 3), dtype=np.uint8) for _ in range(configuration.batch)]
    (batch,) = predictor.preprocess(pictures)
    outputs = predictor.run(batch)
    answers = getattr(predictor, "embed", predictor)  # zero-shot: results without a set of classes
    return Subject(
        run=lambda: predictor.run(batch),
        includes=("run",) if configuration.device == "cpu" else ("copy", "run"),
        parts={
            "preprocess": lambda: predictor.preprocess(pictures),
            "postprocess": lambda: answers.postprocess(outputs, batch),
        },
        agreement=_agreement(predictor, configuration),
    )


def _agreement(predictor: Predictor[Any], configuration: Configuration) -> float | None:
    """The worst output of the bundle's sample, None where the bundle has none in this precision."""
    import numpy as np

    from saccade import bundle as bundles
    from saccade.errors import BundleError
    from saccade.predictors.predictor import PICTURE_GRAPHS

    read = bundles.read(bundles.resolve(configuration.arguments["path"]), check=False)
    name = next(name for name in PICTURE_GRAPHS if name in read.graphs)
    try:
        sample = bundles.sample_of(read, name, configuration.precision)
    except BundleError:
        return None
    found = predictor.engine.run(sample.inputs)
    return max(
        float(np.abs(found[name] - expected).max() / max(np.abs(expected).max(), 1e-30))
        for name, expected in sample.outputs.items()
    )


def graph(configuration: Configuration) -> Subject:
    """An ONNX file in one of our engines, on noise. arguments: path; sizes, of free dimensions but the first.

    For comparing forms of one graph: the engine's name may carry a remark after a space.
    """
    from pathlib import Path

    import numpy as np

    from saccade.engines.engine import EngineOptions, open_engine

    options = EngineOptions(configuration.device, configuration.threads)
    path = Path(configuration.arguments["path"])
    engine = open_engine({"source": path}, configuration.engine.partition(" ")[0], options)
    sizes: Mapping[str, int] = configuration.arguments.get("sizes", {})
    rng = np.random.default_rng(0)
    feeds = {}
    for spec in engine.inputs.values():
        shape = [
            size if isinstance(size, int) else configuration.batch if axis == 0 else sizes[size]
            for axis, size in enumerate(spec.shape)
        ]
        feeds[spec.name] = rng.standard_normal(shape).astype(spec.dtype)
    return Subject(run=lambda: engine.run(feeds))


def sleep(configuration: Configuration) -> Subject:
    """A wait of a known length, for testing the harness. arguments: seconds; dies_after, in runs."""
    seconds: float = configuration.arguments["seconds"]
    left: float = configuration.arguments.get("dies_after", float("inf"))

    def run() -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise SystemExit(3)
        time.sleep(seconds)

    return Subject(run=run, parts={"half": lambda: time.sleep(seconds / 2)})


def matrix_product(configuration: Configuration) -> Subject:
    """The ceiling: one float32 matrix product of `SIDE` cubed, and as a part a copy of `STREAM` bytes.

    Of NumPy on the CPU; of torch on a GPU, in the configuration's precision.
    """
    if configuration.device != "cpu":
        return _device_matrix_product(configuration)
    import numpy as np

    rng = np.random.default_rng(0)
    one, other = rng.standard_normal((2, SIDE, SIDE), np.float32)
    out = np.empty_like(one)
    source = np.ones(STREAM // 4, np.float32)
    target = np.zeros_like(source)
    return Subject(
        run=lambda: np.matmul(one, other, out=out), parts={"stream": lambda: np.copyto(target, source)}
    )


SIDE = 2048
DEVICE_SIDE = 8192
STREAM = 2**27


def _device_matrix_product(configuration: Configuration) -> Subject:
    import torch

    dtype = {"fp16": torch.float16, "bf16": torch.bfloat16}.get(configuration.precision, torch.float32)
    one, other = torch.randn(2, DEVICE_SIDE, DEVICE_SIDE, device=configuration.device, dtype=dtype)
    source = torch.ones(STREAM // 4, device=configuration.device)
    target = torch.zeros_like(source)

    def run() -> None:
        torch.matmul(one, other)
        torch.cuda.synchronize()

    def stream() -> None:
        target.copy_(source)
        torch.cuda.synchronize()

    return Subject(run=run, parts={"stream": stream})
