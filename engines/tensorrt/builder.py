"""From a graph to a plan in its folder, whole or not at all, cancelled at any time."""

from __future__ import annotations

import hashlib
import secrets
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

from saccade.engines.engine import TensorSpec
from saccade.engines.tensorrt import child, plans
from saccade.engines.tensorrt.compiler import Outcome, Request
from saccade.engines.tensorrt.options import BuildOptions
from saccade.engines.tensorrt.plans import Record
from saccade.engines.tensorrt.progress import Say
from saccade.errors import EngineError


@dataclass(frozen=True, slots=True)
class Source:
    """The graph of a bundle that a plan is built from.

    path: the ONNX file. files: sha256, by path in the bundle, of all that the plan comes from.
    """

    bundle: str
    graph: str
    path: Path
    files: Mapping[str, str]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


def build_plan(
    source: Source,
    options: BuildOptions,
    engines: Path,
    *,
    say: Say = lambda phase, fraction: None,
) -> tuple[Path, Record]:
    """Build in a child process and write `engines`/<key>; the folder, and the record in it.

    An earlier plan of the same key is replaced. What `say` raises, and Ctrl-C, cancel the build; then and on
    every error nothing stays behind. Raises EngineError where NVIDIA's library refuses the graph, naming the
    node; UsageError where the options do not fit; MissingDependency where the library is not installed.
    """
    started = time.perf_counter()
    staging = engines / f".building-{secrets.token_hex(4)}"
    existed = engines.exists()
    try:
        staging.mkdir(parents=True)
        request = Request(source.path, options, staging / plans.PLAN, timing_cache=plans.cache() / "timings")
        outcome, peak = child.run(request, say=say)
        if outcome.refusals:
            raise EngineError(_refused(source, options, outcome))
        record = _record(source, options, outcome, peak, staging, time.perf_counter() - started)
        return plans.publish(staging, record, engines), record
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        if not existed and engines.exists() and not any(engines.iterdir()):
            engines.rmdir()


def _refused(source: Source, options: BuildOptions, outcome: Outcome) -> str:
    """NVIDIA's words, with the nodes they are about."""
    step = "build" if outcome.parsed else "parse"
    words = "".join(f"\n  {refusal}" for refusal in outcome.refusals[:10])
    return (
        f"{options.flavour} {outcome.version} cannot {step} {source.bundle} ({source.path.name}):{words}\n"
        "`saccade inspect` says which nodes TensorRT supports"
    )


def _record(
    source: Source, options: BuildOptions, outcome: Outcome, peak: int, staging: Path, wall_seconds: float
) -> Record:
    assert outcome.plan_bytes is not None
    assert outcome.build_seconds is not None
    with (staging / plans.PLAN).open("rb") as plan:
        digest = hashlib.file_digest(plan, "sha256").hexdigest()
    return Record(
        bundle=source.bundle,
        graph=source.graph,
        files=source.files,
        options=options,
        version=outcome.version,
        gpu=outcome.gpu,
        binding=outcome.binding,
        inputs=source.inputs,
        outputs=source.outputs,
        layers=outcome.layers,
        working_types=outcome.working_types,
        engine_types=outcome.engine_types,
        device_bytes=outcome.device_bytes,
        plan_sha256=digest,
        plan_bytes=outcome.plan_bytes,
        parse_seconds=outcome.parse_seconds,
        build_seconds=outcome.build_seconds,
        wall_seconds=round(wall_seconds, 3),
        peak_memory_mib=peak,
        built=datetime.now(UTC).isoformat(timespec="seconds"),
        saccade=metadata.version("saccade"),
        log=outcome.warnings,
    )
