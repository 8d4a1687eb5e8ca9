"""The steps of one row: build, open, compare, time. Each is one named call of `Row`."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from saccade import builds
from saccade import bundle as bundles
from saccade.acceptance import baselines
from saccade.acceptance.row import Row
from saccade.builds import BuildOptions, Built, SizeRange
from saccade.bundle import Bundle
from saccade.engines.conformance import Sample
from saccade.engines.engine import Engine, EngineOptions, open_engine
from saccade.engines.tensorrt.flavours import takes_plugins
from saccade.engines.tensorrt.network import PLAN_TYPES
from saccade.engines.tensorrt.options import Binding
from saccade.errors import EngineError, UsageError

_ROUNDOFF = {"fp32": 2.0**-24, "tf32": 2.0**-11, "fp16": 2.0**-11, "bf16": 2.0**-8, "int8": 2.0**-24}
NO_GPU = "this machine has no GPU"
_CUDA = EngineOptions(device="cuda")


@dataclass
class Findings:
    """What the steps of a row gave, as far as they came."""

    built: dict[str, tuple[Built, ...]] = field(default_factory=dict)
    latency_ms: dict[str, float] = field(default_factory=dict)
    accuracy: dict[str, float] = field(default_factory=dict)


def build_and_compare(
    row: Row, bundle: Bundle, options: BuildOptions, findings: Findings, *, runs: bool
) -> None:
    """Both bindings of one bundle in one precision. runs: whether there is a GPU to run them on."""
    layers = row.call("read graphs", partial(_with_layers, bundle, options.precision)) or ()
    bindings = _bindings(options, layers)
    if "plugin" in bindings and not builds.has_plugin_nodes(bundle, options.precision):
        bindings.remove("plugin")
        row.skip("build plugin", "the form of this model for TensorRT has no nodes for plugins")
    for binding in bindings:
        chosen = _with_binding(options, binding)
        built = row.call(f"build {binding}", partial(builds.build, bundle.path, chosen))
        if built is None:
            continue
        findings.built[binding] = built
        if runs:
            run_and_compare(row, bundle, built, chosen, findings, layers)
            continue
        row.call(f"inspect {binding}", partial(_inspect_unopened, built, options.precision))
        for name in (f"run {binding}", f"time {binding}"):
            row.skip(name, NO_GPU)


def run_and_compare(
    row: Row,
    bundle: Bundle,
    built: tuple[Built, ...],
    options: BuildOptions,
    findings: Findings,
    layers: Sequence[str],
) -> None:
    """The plans of one binding on this GPU: types read back, beside torch, layer by layer, and timed.

    layers: names of the graphs that have semantic-token layers.
    """
    binding = options.binding
    row.call(f"inspect {binding}", partial(_inspect, built, options.precision))
    row.call(f"run {binding}", partial(_run, bundle, built, options))
    if layers:
        row.call(f"layers {binding}", partial(_layers, bundle, options, layers))
    latency = row.call(f"time {binding}", partial(_time, bundle, built, options))
    if latency is not None:
        findings.latency_ms[binding] = latency


def time_baselines(row: Row, bundle: Bundle, options: BuildOptions, findings: Findings) -> None:
    """torch.compile and ONNX Runtime beside the plans; what does not run there is skipped."""
    calls: dict[str, Callable[[], float]] = {
        "torch.compile": partial(_time_torch, bundle, options),
        "onnxruntime-cuda": partial(_time_onnxruntime, bundle, options),
    }
    for name, action in calls.items():
        latency = row.call(f"time {name}", action, optional=True)
        if latency is not None:
            findings.latency_ms[name] = latency


def check_sizes(bundle: Bundle, size: SizeRange) -> str:
    """UsageError where the profile has no place for the sample's pictures, the ones with known answers."""
    name = next(
        key for key, graph in bundle.graphs.items() for spec in graph.inputs if "height" in spec.shape
    )
    height, width = bundles.sample_of(bundle, name).inputs["image"].shape[2:]
    low, best, high = size
    least, most = (min(low[0], height), min(low[1], width)), (max(high[0], height), max(high[1], width))
    if (least, most) != (low, high):
        wanted = ",".join(f"{h}x{w}" for h, w in (least, best, most))
        raise UsageError(
            f"{bundle.name} has known answers for pictures of {height}x{width}, which are outside of the "
            f"profile: --size {wanted}"
        )
    return f"{height}x{width}"


# --- one step each -------------------------------------------------------------------------------------


def _with_binding(options: BuildOptions, binding: Binding) -> BuildOptions:
    return dataclasses.replace(options, binding=binding)


def _bindings(options: BuildOptions, layers: Sequence[str]) -> list[Binding]:
    return ["function", "plugin"] if layers and takes_plugins(options.flavour) else ["function"]


def _with_layers(bundle: Bundle, precision: str) -> tuple[str, ...]:
    """Names of the graphs that have semantic-token layers."""
    import onnx

    from saccade.acceptance.layers import has_layers

    paths = {name: bundles.graph_in(bundle, name, precision).files["source"] for name in bundle.graphs}
    return tuple(
        name for name, path in paths.items() if has_layers(onnx.load(path, load_external_data=False))
    )


def _sample(bundle: Bundle, name: str, options: BuildOptions, *, answers: bool = True) -> Sample:
    """The graph's sample with as many rows as the profile takes: repeated, or the first ones.

    answers: False for what has none in this precision that could be compared.
    """
    sample = bundles.sample_of(bundle, name, options.precision if answers else "fp32")
    rows = len(next(iter(sample.inputs.values())))
    wanted = min(max(rows, options.batch.min), options.batch.max)
    places = np.arange(wanted) % rows
    return Sample(
        {key: values[places] for key, values in sample.inputs.items()},
        {key: values[places] for key, values in sample.outputs.items()},
        sample.tolerances,
    )


def _inspect_unopened(built: tuple[Built, ...], precision: str) -> str:
    """The types of the network that was built; no driver has opened the plan."""
    for each in built:
        if not each.record.working_types:
            raise EngineError(f"{each.path.name}: the network has no matrix product or convolution")
    counts = {each.record.graph: dict(each.record.working_types) for each in built}
    return f"of the network, not of the plan: {counts} for {precision}"


def _inspect(built: tuple[Built, ...], precision: str) -> str:
    """The types that the finished plan runs in, as the engine inspector gives them."""
    for each in built:
        types = each.record.engine_types
        if not types:
            raise EngineError(f"{each.path.name}: could not be opened where it was built, or names no types")
        if PLAN_TYPES[precision] not in types:
            raise EngineError(f"{each.path.name} was to run in {precision} and runs in {', '.join(types)}")
    return "; ".join(f"{each.record.graph}: {dict(each.record.engine_types or {})}" for each in built)


def _opened(built: Built) -> Engine:
    return open_engine({"source": built.path, "tensorrt": built.path}, "tensorrt", _CUDA)


def _run(bundle: Bundle, built: tuple[Built, ...], options: BuildOptions) -> str:
    """The bundle's sample, answered by torch in float64, repeated by the plan."""
    worst = 0.0
    for each in built:
        if options.precision != "fp32" and any(spec.name == "count" for spec in each.record.outputs):
            _run_choices(bundle, each, options)
            continue
        sample = _sample(bundle, each.record.graph, options)
        with _opened(each) as engine:
            for difference in sample.differences(engine.run(sample.inputs)):
                if not difference.agrees:
                    raise EngineError(
                        f"{each.record.graph}: output {difference.output!r} differs from torch by "
                        f"{difference.largest:.3g}, tolerance {difference.tolerance:.3g}"
                    )
                worst = max(worst, difference.largest / difference.tolerance)
    return f"at most {worst:.2f} of the tolerance"


def _run_choices(bundle: Bundle, built: Built, options: BuildOptions) -> None:
    """What a detector chooses may change with rounding: its answers must be there, and be numbers."""
    sample = _sample(bundle, built.record.graph, options, answers=False)
    with _opened(built) as engine:
        found = engine.run(sample.inputs)
    if not all(np.isfinite(values).all() for values in found.values()) or not found["count"].any():
        raise EngineError(f"{built.record.graph}: the plan finds nothing, or no numbers, in the sample")


def _layers(bundle: Bundle, options: BuildOptions, names: Sequence[str]) -> str:
    """Every semantic-token layer beside torch. EngineError names the first that differs."""
    import onnx

    from saccade.acceptance.layers import compare, watched
    from saccade.engines.tensorrt.temporary import run_once

    count, worst = 0, 0.0
    for name in names:
        model = onnx.load(bundles.graph_in(bundle, name, options.precision).files["source"])
        feeds = _sample(bundle, name, options, answers=False).inputs
        answers = run_once(watched(model), feeds, options, f"{bundle.name} layers")
        for layer in compare(model, feeds, answers, roundoff=_ROUNDOFF[options.precision]):
            count, worst = count + 1, max(worst, layer.share / layer.limit)
            if not layer.agrees:
                raise EngineError(
                    f"{name}: {layer.node} ({layer.operator}) differs from torch by {layer.share:.3g} of "
                    f"its largest value, limit {layer.limit:.3g}"
                )
    return f"{count} layers, at most {worst:.2f} of the limit"


def _feeds(bundle: Bundle, name: str, options: BuildOptions) -> dict[str, Any]:
    size_hw = options.size.opt if options.size else None
    return baselines.batched(bundles.sample_of(bundle, name).inputs, options.batch.opt, size_hw)


def _time(bundle: Bundle, built: tuple[Built, ...], options: BuildOptions) -> float:
    """Milliseconds of all graphs, one after another."""
    total = 0.0
    for each in built:
        feeds = _feeds(bundle, each.record.graph, options)
        with _opened(each) as engine:
            total += baselines.median_ms(partial(engine.run, feeds))
    return round(total, 4)


def _time_torch(bundle: Bundle, options: BuildOptions) -> float:
    feeds = _feeds(bundle, next(iter(bundle.graphs)), options)
    return baselines.median_ms(baselines.torch_compiled(bundle, options.precision, feeds))


def _time_onnxruntime(bundle: Bundle, options: BuildOptions) -> float:
    total = 0.0
    with contextlib.ExitStack() as stack:
        for name in bundle.graphs:
            files = bundles.graph_in(bundle, name, options.precision).files
            engine = stack.enter_context(open_engine(files, "onnxruntime", _CUDA))
            total += baselines.median_ms(partial(engine.run, _feeds(bundle, name, options)))
    return round(total, 4)
