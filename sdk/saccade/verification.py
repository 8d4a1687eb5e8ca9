"""Whether a bundle still computes here what it computed where it was made.

`verify` repeats the check that `saccade.load(..., prove=True)` makes on one engine, on every engine, and
reports the differences instead of refusing. It needs neither torch nor the checkpoint: the expected outputs
and their tolerances travel in the bundle.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from saccade import bundle as bundles
from saccade.builds import graph_file
from saccade.engines.engine import AUTO_ORDER, ENGINES, open_engine, resolve_engine
from saccade.engines.tensorrt.flavours import FLAVOURS, flavour, load
from saccade.engines.tensorrt.gpu import require_gpu
from saccade.engines.tensorrt.options import BuildOptions, Precision
from saccade.errors import MissingDependency, UsageError
from saccade.loading import graph_for

if TYPE_CHECKING:
    from saccade.engines.layers import Layer, Side


@dataclass(frozen=True, slots=True)
class Comparison:
    """One output of one graph in one engine beside the bundle's sample.

    tolerance: the largest absolute difference that is accepted.
    """

    engine: str
    graph: str
    output: str
    max_abs_difference: float
    tolerance: float

    @property
    def agrees(self) -> bool:
        # A NaN difference compares false, as it must.
        return self.max_abs_difference <= self.tolerance


@dataclass(frozen=True, slots=True)
class Verification:
    """What was compared. `files` have the sha256 that was written; `skipped` engines are not installed."""

    name: str
    path: Path
    files: int
    comparisons: tuple[Comparison, ...]
    skipped: tuple[str, ...]

    @property
    def agrees(self) -> bool:
        return all(comparison.agrees for comparison in self.comparisons)

    def to_json(self) -> dict[str, Any]:
        return {
            **dataclasses.asdict(self),
            "path": str(self.path),
            "comparisons": [{**dataclasses.asdict(row), "agrees": row.agrees} for row in self.comparisons],
            "agrees": self.agrees,
        }


def verify(
    name_or_path: str | Path,
    engines: Sequence[str] = (),
    *,
    precision: str = "fp32",
    progress: Callable[[str], None] | None = None,
) -> Verification:
    """Check every file's sha256, then run the conformance sample on each engine.

    engines: names; one that is not installed raises MissingDependency. By default the engines that "auto"
    chooses from, those that are installed; the reference engine is slow and must be asked for.
    precision: of the graphs. progress: called with the name of each engine before it runs.
    """
    chosen, skipped = (tuple(engines), ()) if engines else _installed()
    for engine in chosen:
        resolve_engine(engine)
    bundle = bundles.read(bundles.resolve(name_or_path))
    comparisons: list[Comparison] = []
    for engine in chosen:
        if progress is not None:
            progress(engine)
        comparisons += _compare(bundle, engine, precision)
    return Verification(bundle.name, bundle.path, len(bundle.files), tuple(comparisons), skipped)


def _installed() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The engines of `AUTO_ORDER` that are installed, and those that are not."""
    resolve_engine("auto")  # MissingDependency, with the line to run, where there is none
    found = [name for name in AUTO_ORDER if find_spec(ENGINES[name].package) is not None]
    return tuple(found), tuple(name for name in AUTO_ORDER if name not in found)


def _compare(bundle: bundles.Bundle, engine: str, precision: str) -> list[Comparison]:
    rows = []
    for name in bundle.graphs:
        graph = graph_for(bundle, name, engine, precision)
        sample = bundles.sample_of(bundle, name, precision)
        with open_engine(graph.files, engine) as opened:
            differences = sample.differences(opened.run(sample.inputs))
        rows += [Comparison(engine, name, d.output, d.largest, d.tolerance) for d in differences]
    return rows


@dataclass(frozen=True, slots=True)
class LayerVerification:
    """Every layer of every graph: what `tested` computed beside `yardstick`, both as the user reads them."""

    name: str
    path: Path
    tested: str
    yardstick: str
    layers: dict[str, tuple[Layer, ...]]

    @property
    def starts(self) -> dict[str, Layer]:
        """The layer where the error starts, for the graphs that have one."""
        from saccade.engines.layers import start

        found = {graph: start(rows) for graph, rows in self.layers.items()}
        return {graph: layer for graph, layer in found.items() if layer is not None}

    @property
    def agrees(self) -> bool:
        return not self.starts

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "path": str(self.path),
            "tested": self.tested,
            "yardstick": self.yardstick,
            "starts": {graph: layer.to_json() for graph, layer in self.starts.items()},
            "layers": {graph: [each.to_json() for each in rows] for graph, rows in self.layers.items()},
            "agrees": self.agrees,
        }


def verify_layers(
    name_or_path: str | Path,
    engines: Sequence[str] = (),
    *,
    precision: str = "fp32",
    progress: Callable[[str], None] | None = None,
) -> LayerVerification:
    """Compare every layer on the bundle's sample, and say where an error starts.

    engines: the one that is tested, and the yardstick. The tested one runs the graph in `precision`; in a
    lower one than float32 ONNX Runtime does so by emulation. The yardstick runs the float32 source graph,
    the reference engine in float64. Defaults: onnxruntime, beside onnxruntime for a lower precision and
    beside the reference for float32. "tensorrt" and "tensorrt_rtx" run plans with every layer's result as an
    output, which are built for it on the first GPU.
    """
    try:
        from saccade.engines import layers
    except ModuleNotFoundError as error:
        raise MissingDependency(
            f"comparing layers needs {error.name}, which is not installed: pip install 'saccade[export,cpu]'"
        ) from error
    tested, yardstick = _two(engines, precision)
    bundle = bundles.read(bundles.resolve(name_or_path))
    roundoff = _roundoff(tested, precision)
    say = progress or (lambda step: None)
    found = {}
    for name in bundle.graphs:
        sides = _tested(bundle, name, tested, precision, say), _yardstick(bundle, name, yardstick, say)
        feeds = bundles.sample_of(bundle, name).inputs
        found[name] = tuple(layers.compare(*sides, feeds, roundoff=roundoff, progress=say))
    arithmetic = "float64" if yardstick == "reference" else "fp32"
    return LayerVerification(
        bundle.name, bundle.path, f"{tested} {precision}", f"{yardstick} {arithmetic}", found
    )


def _two(engines: Sequence[str], precision: str) -> tuple[str, str]:
    """The tested engine and the yardstick."""
    default = ("onnxruntime", "reference" if precision == "fp32" else "onnxruntime")
    chosen = (*engines, *default[len(engines) :])
    if len(chosen) > 2:
        raise UsageError(f"layers are compared between two engines, not {len(chosen)}: {', '.join(chosen)}")
    for engine in chosen:
        if engine in FLAVOURS:
            _require_builder(engine)
        else:
            resolve_engine(engine)
    return chosen[0], chosen[1]


def _require_builder(name: str) -> None:
    """EngineError without a GPU, MissingDependency without the library: before any graph is read."""
    BuildOptions(flavour=name)  # UsageError for the one that builds nothing
    require_gpu()
    resolve_engine("tensorrt")
    load(flavour(name))


def _roundoff(tested: str, precision: str) -> float:
    from saccade.engines.precision import PRECISIONS, precision_named

    if precision == "fp32":
        return 2.0**-24
    if precision == "tf32" and tested in FLAVOURS:
        return PRECISIONS["fp16"].roundoff  # it has as many digits
    return precision_named(precision).roundoff


def _tested(
    bundle: bundles.Bundle, name: str, engine: str, precision: str, progress: Callable[[str], None]
) -> Side:
    import onnx

    from saccade.engines.islands import OPSET
    from saccade.engines.layers import in_engine, in_plans
    from saccade.engines.passes.rounding import emulate

    graph = bundles.graph_in(bundle, name, precision)
    files = graph.files
    if engine in FLAVOURS:
        options = BuildOptions(flavour=engine, precision=cast(Precision, precision))
        model = onnx.load(graph_file(graph, options))
        return in_plans(model, options, f"{bundle.name} layers", progress)
    if engine == "onnxruntime" and precision != "fp32":
        return in_engine(emulate(onnx.load(files["source"]), OPSET), engine)
    return in_engine(onnx.load(files.get(engine, files["source"])), engine)


def _yardstick(bundle: bundles.Bundle, name: str, engine: str, progress: Callable[[str], None]) -> Side:
    import onnx

    from saccade.engines.layers import in_engine, in_plans
    from saccade.engines.passes.float64 import as_float64

    files = bundle.graphs[name].files
    if engine == "reference":
        return in_engine(as_float64(onnx.load(files["source"])), engine)
    # Source graph where the engine knows functions: there `saccade` nodes are nodes.
    if engine in FLAVOURS:
        model = onnx.load(files.get("tensorrt", files["source"]))
        return in_plans(model, BuildOptions(flavour=engine), f"{bundle.name} layers", progress)
    path = files.get(engine, files["source"]) if engine == "openvino" else files["source"]
    return in_engine(onnx.load(path), engine)
