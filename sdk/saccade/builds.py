"""From a bundle to TensorRT plans inside it."""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from saccade import bundle as bundles
from saccade.engines.tensorrt import plans
from saccade.engines.tensorrt.builder import Source, build_plan
from saccade.engines.tensorrt.flavours import flavour, takes_plugins
from saccade.engines.tensorrt.gpu import find_gpu, require_gpu
from saccade.engines.tensorrt.options import BatchRange, BuildOptions, SizeRange
from saccade.engines.tensorrt.plans import Record
from saccade.errors import BundleError, UsageError

__all__ = ["BatchRange", "BuildOptions", "Built", "SizeRange", "build", "trust", "with_plan"]

# What an engine must win as a whole before "auto" takes plugins: they are fusion barriers on a young API.
_FASTER = 1.1
# Variants without functions, by the engine that they were made for, then the source.
_IN_STANDARD_OPERATORS = ("tensorrt", "openvino", "source")


@dataclass(frozen=True, slots=True)
class Built:
    """A plan: its folder in the bundle, and what engine.json there says."""

    path: Path
    record: Record

    def to_json(self) -> dict[str, Any]:
        return {"path": str(self.path), **self.record.to_json()}


def build(
    name_or_path: str | os.PathLike[str],
    options: BuildOptions | None = None,
    *,
    progress: Callable[[str, float], None] = lambda step, fraction: None,
) -> tuple[Built, ...]:
    """Build a plan of every graph of a bundle into its `engines` folder: of all, or of none.

    progress: called with the step and how much of the graph's build is done, 0 to 1; what it raises cancels.
    Raises UsageError where options, graph and machine do not fit together, EngineError where NVIDIA's library
    refuses the graph, MissingDependency with the line that installs it, BundleError for a damaged bundle.
    """
    chosen = options or BuildOptions()
    bundle = bundles.read(bundles.resolve(name_or_path))
    engines = bundle.path / plans.FOLDER
    if not os.access(bundle.path, os.W_OK):
        raise UsageError(f"{bundle.path} cannot be written: cp -r {bundle.path} DIR, and build that copy")
    resolved = _with_binding(chosen, bundle)
    if resolved.binding == "plugin" and not has_plugin_nodes(bundle, resolved.precision):
        raise UsageError(
            f"{bundle.name} in {resolved.precision} is built from a form for TensorRT in standard operators, "
            "without nodes that plugins could take: build it with binding function"
        )
    built: list[Built] = []
    try:
        for name in bundle.graphs:

            def say(phase: str, fraction: float, name: str = name) -> None:
                progress(f"{name}: {phase}", fraction)

            built.append(Built(*build_plan(_source(bundle, name, resolved), resolved, engines, say=say)))
    except BaseException:  # a bundle of two graphs has both plans, or none
        for each in built:
            shutil.rmtree(each.path)
        raise
    return tuple(built)


def trust(name_or_path: str | os.PathLike[str]) -> tuple[Built, ...]:
    """Allow the plans of a bundle that were built elsewhere to be opened by this user. They are code."""
    path = bundles.resolve(name_or_path)
    found = [Built(folder, plans.trust(folder)) for folder, _ in plans.records(path)]
    if not found:
        raise BundleError(f"{path} holds no plans: saccade build {path}")
    return tuple(found)


def with_plan(bundle: bundles.Bundle, name: str, precision: str, device_index: int = 0) -> bundles.Graph:
    """The graph `name` with, among its files, the plan in the bundle that runs on this machine.

    EngineMismatch with the command that builds one where there is none; EngineError without a driver.
    """
    graph = bundles.graph_in(bundle, name, precision)
    sums = {path: entry["sha256"] for path, entry in bundle.files.items()}
    plan = plans.find(bundle.path, name, sums, require_gpu(device_index), precision)
    return dataclasses.replace(graph, files={**graph.files, "tensorrt": plan})


def graph_file(graph: bundles.Graph, options: BuildOptions) -> Path:
    """What to build from. Where no plugin takes the nodes, their bodies folded for fixed sizes give a third
    of the layers (docs/tensorrt.md): then the form in standard operators.
    """
    plugged = options.binding == "plugin" and takes_plugins(options.flavour)
    variants = ("source",) if plugged else _IN_STANDARD_OPERATORS
    return next(graph.files[variant] for variant in variants if variant in graph.files)


def _source(bundle: bundles.Bundle, name: str, options: BuildOptions) -> Source:
    graph = bundles.graph_in(bundle, name, options.precision)
    path = graph_file(graph, options)
    return Source(
        bundle=bundle.name,
        graph=name,
        path=path,
        files=_sums(bundle, path),
        inputs=graph.inputs,
        outputs=graph.outputs,
    )


def has_plugin_nodes(bundle: bundles.Bundle, precision: str) -> bool:
    """Whether plugins find nodes in all its graphs: not where TensorRT takes another form than
    the source only, as a detector's and int8's.
    """
    return not any("tensorrt" in bundles.graph_in(bundle, name, precision).files for name in bundle.graphs)


def graph_sums(bundle: bundles.Bundle, precision: str) -> dict[str, str]:
    """sha256 of all that plans in `precision` come from, by path in the bundle."""
    found: dict[str, str] = {}
    for name in bundle.graphs:
        files = bundles.graph_in(bundle, name, precision).files
        for variant in {"source", "tensorrt"} & set(files):
            found |= _sums(bundle, files[variant])
    return found


def _sums(bundle: bundles.Bundle, graph: Path) -> dict[str, str]:
    """sha256 of the graph's file and of the weights beside it."""
    own = graph.relative_to(bundle.path)
    return {
        name: entry["sha256"]
        for name, entry in bundle.files.items()
        if Path(name) == own or (Path(name).parent == own.parent and Path(name).suffix != ".onnx")
    }


def _with_binding(options: BuildOptions, bundle: bundles.Bundle) -> BuildOptions:
    """`options` with "auto" decided."""
    if options.binding != "auto":
        return options
    from saccade.acceptance.records import plugin_speedup

    gpu = find_gpu() if flavour(options.flavour).aot_plugins else None
    gain = plugin_speedup(graph_sums(bundle, options.precision), gpu.name, options.precision) if gpu else 0.0
    return dataclasses.replace(options, binding="plugin" if gain >= _FASTER else "function")
