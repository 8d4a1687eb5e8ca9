"""Parse and build with one of the libraries, in the process that calls this. `child` runs it in another."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from saccade.engines.tensorrt import network as networks
from saccade.engines.tensorrt import timing_cache
from saccade.engines.tensorrt.bindings import (
    Bindings,
    Builder,
    IBuilderConfig,
    IHostMemory,
    INetworkDefinition,
    RtxBuilderConfig,
)
from saccade.engines.tensorrt.flavours import PLUGINS_SINCE, Flavour, flavour, version_numbers
from saccade.engines.tensorrt.gpu import Gpu, find_gpu
from saccade.engines.tensorrt.options import CURRENT, BuildOptions, capabilities
from saccade.engines.tensorrt.progress import Say, monitor
from saccade.engines.tensorrt.readback import read_back
from saccade.engines.tensorrt.words import Refusal, as_engine_error, builder_refusals, logger, recorder
from saccade.errors import EngineError, UsageError


@dataclass(frozen=True, slots=True)
class Request:
    """What to compile. plan: the file to write, None to keep none. shapes: (min, opt, max) by input name, for
    inputs whose free dimensions the options do not know. timing_cache: folder. build: False parses only.
    """

    graph: Path
    options: BuildOptions
    plan: Path | None = None
    shapes: Mapping[str, Sequence[Sequence[int]]] = field(default_factory=dict)
    timing_cache: Path | None = None
    build: bool = True

    def to_json(self) -> dict[str, Any]:
        paths = {name: value and str(value) for name, value in self._paths().items()}
        return {
            **paths,
            "options": self.options.to_json(),
            "shapes": {n: list(s) for n, s in self.shapes.items()},
            "build": self.build,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Request:
        return cls(
            graph=Path(data["graph"]),
            options=BuildOptions.from_json(data["options"]),
            plan=data["plan"] and Path(data["plan"]),
            shapes=data["shapes"],
            timing_cache=data["timing_cache"] and Path(data["timing_cache"]),
            build=data["build"],
        )

    def _paths(self) -> dict[str, Path | None]:
        return {"graph": self.graph, "plan": self.plan, "timing_cache": self.timing_cache}


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the library made of a request. `layers`: of the network, functions inlined.

    built: None where no build was asked for, or parsing failed. binding: what semantic-token nodes became,
    "function" or "plugin". working_types: matrix products and
    convolutions by operand type, of the network; engine_types: tensors by type, of the finished plan, None
    where no GPU was there to open it. device_bytes: scratch memory of one context, None likewise.
    """

    version: str
    gpu: Gpu | None
    parsed: bool
    built: bool | None = None
    binding: str = "function"
    refusals: tuple[Refusal, ...] = ()
    layers: int = 0
    working_types: Mapping[str, int] = field(default_factory=dict)
    engine_types: Mapping[str, int] | None = None
    device_bytes: int | None = None
    plan_bytes: int | None = None
    parse_seconds: float = 0.0
    build_seconds: float | None = None
    warnings: tuple[str, ...] = ()


def compile_plan(
    trt: Bindings,
    request: Request,
    *,
    say: Say = lambda phase, fraction: None,
    cancelled: Callable[[], bool] = lambda: False,
) -> Outcome:
    """Parse the graph, build the plan, write it, and read back what it runs in.

    A refusal of parser or builder is in the outcome. Raises UsageError where the options do not fit the
    graph or the machine, EngineError where the result is not what was asked for.
    """
    chosen = flavour(request.options.flavour)
    gpu = find_gpu()
    _check_machine(chosen, request.options, gpu)
    with as_engine_error(f"{chosen.name} {trt.__version__} failed on {request.graph.name}"):
        return _compiled(trt, request, chosen, gpu, say, cancelled)


def _compiled(
    trt: Bindings,
    request: Request,
    chosen: Flavour,
    gpu: Gpu | None,
    say: Say,
    cancelled: Callable[[], bool],
) -> Outcome:
    options = request.options
    binding, remarks = _bind(trt, options, gpu)
    log, errors = logger(trt), recorder(trt)
    builder = trt.Builder(log)
    started = time.perf_counter()
    parsed = networks.parse(trt, builder, log, request.graph)  # held until the plan is built
    network = parsed.network
    facts: dict[str, Any] = {
        "version": trt.__version__,
        "gpu": gpu,
        "binding": binding,
        "parsed": not parsed.refusals,
        "layers": network.num_layers,
        "parse_seconds": round(time.perf_counter() - started, 3),
    }
    if parsed.refusals or not request.build:
        return Outcome(**facts, refusals=parsed.refusals, warnings=(*remarks, *log.warnings))
    found = networks.working_types(trt, network)
    networks.check_precision(options, found)
    # Not before: a network that was parsed under a recorder crashes when it is let go (seen with RTX 1.7.1).
    builder.error_recorder = network.error_recorder = errors
    config = _configure(trt, builder, network, request)
    config.progress_monitor = monitor(trt, say, cancelled)
    cache = timing_cache.attach(config, chosen, request.timing_cache, trt.__version__, gpu)
    log.errors.clear()
    started = time.perf_counter()
    plan = builder.build_serialized_network(network, config)
    facts |= {
        "build_seconds": round(time.perf_counter() - started, 3),
        "built": plan is not None,
        "working_types": dict(found),
    }
    if plan is None:
        said = list(dict.fromkeys([*errors.messages, *log.errors])) or [_SILENT]
        facts["refusals"] = tuple(builder_refusals(network, said))
    else:
        if cache is not None:
            timing_cache.keep(config, cache)
        facts |= _kept(trt, log, request, plan, gpu)
    return Outcome(**facts, warnings=(*remarks, *log.warnings))


_SILENT = "the builder failed and gave no reason"


def _kept(trt: Bindings, log: Any, request: Request, plan: IHostMemory, gpu: Gpu | None) -> dict[str, Any]:
    """Write the plan where that is asked for, and read back what it says of itself where a GPU opens it."""
    content = memoryview(plan)  # type: ignore[arg-type]  # IHostMemory speaks the buffer protocol
    if request.plan is not None:
        _write(request.plan, content)
    said = {} if gpu is None else read_back(trt, log, request.options, content)
    return {"plan_bytes": plan.nbytes, **said}


def _check_machine(chosen: Flavour, options: BuildOptions, gpu: Gpu | None) -> None:
    """EngineError where the build needs a GPU that is not there. The library itself may crash on that."""
    if gpu is not None:
        return
    if not chosen.capabilities:
        raise EngineError(
            f"{chosen.name} times kernels on the GPU that it builds for, and this machine has no NVIDIA "
            "driver: build on the target machine, or with flavour tensorrt_rtx, which needs no GPU"
        )
    if options.target == CURRENT:
        names = ", ".join(f"sm{number}" for number in chosen.capabilities)
        raise UsageError(f"this machine has no GPU to build for: name a target ({names}), as --target sm89")
    for name in sorted(chosen.needs_driver):
        if getattr(options, name):
            raise EngineError(
                f"{name} plans of {chosen.name} are built beside an NVIDIA driver only; here is none"
            )


def _bind(trt: Bindings, options: BuildOptions, gpu: Gpu | None) -> tuple[str, tuple[str, ...]]:
    """Register the plugins where they are asked for; what nodes become, and remarks for the log."""
    if options.binding != "plugin":
        return "function", ()
    if version_numbers(trt.__version__) < PLUGINS_SINCE:
        since = ".".join(map(str, PLUGINS_SINCE))
        return "function", (
            f"TensorRT {trt.__version__} is older than {since}: nodes run from function bodies, not plugins",
        )
    from saccade.engines.kernels import plugins

    assert gpu is not None  # flavours with plugins build on a GPU
    plugins.register(int(gpu.capability))
    return "plugin", ()


def _configure(
    trt: Bindings, builder: Builder, network: INetworkDefinition, request: Request
) -> IBuilderConfig:
    options = request.options
    config: IBuilderConfig = networks.made(builder.create_builder_config(), "create_builder_config")
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # the inspector then names number types
    _set_flags(trt, config, options)
    if options.workspace_mib is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_mib * 2**20)
    if options.optimization_level is not None:
        config.builder_optimization_level = options.optimization_level
    if options.hardware_compatible != "none":
        level = options.hardware_compatible.upper().replace("+", "_PLUS")
        level = "SAME_COMPUTE_CAPABILITY" if level == "SAME_CAPABILITY" else level
        config.hardware_compatibility_level = getattr(trt.HardwareCompatibilityLevel, level)
    if flavour(options.flavour).capabilities:
        _set_targets(trt, builder, config, options)  # type: ignore[arg-type]  # those flavours have them
    profile = networks.made(builder.create_optimization_profile(), "create_optimization_profile")
    networks.fill_profile(profile, network, options, request.shapes)
    if config.add_optimization_profile(profile) < 0:
        raise UsageError(f"the library refuses the profile {options.dimensions()} for {request.graph.name}")
    return config


def _set_flags(trt: Bindings, config: IBuilderConfig, options: BuildOptions) -> None:
    flags = {
        "TF32": options.precision == "tf32",
        "VERSION_COMPATIBLE": options.version_compatible,
        "STRIP_PLAN": options.stripped,
        "REFIT_IDENTICAL": options.stripped and not options.refittable,
        "REFIT": options.refittable,
        "WEIGHT_STREAMING": options.weight_streaming,
    }
    for name, wanted in flags.items():
        change = config.set_flag if wanted else config.clear_flag
        change(getattr(trt.BuilderFlag, name))


def _set_targets(trt: Bindings, builder: Builder, config: RtxBuilderConfig, options: BuildOptions) -> None:
    names = [f"SM{number}" for number in capabilities(options)] or ["CURRENT"]
    config.num_compute_capabilities = len(names)
    for index, name in enumerate(names):
        if not config.set_compute_capability(getattr(trt.ComputeCapability, name), index):
            raise UsageError(f"{options.flavour} {trt.__version__} does not build for {name.lower()}")


def _write(path: Path, content: memoryview) -> None:
    """To the disk before anybody hears of it."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
