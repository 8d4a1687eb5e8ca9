"""Prove the TensorRT path on the GPU at hand: build, compare, read back, time; a verdict per row.

A row is one model in one precision. A call that fails ends what hangs on it, is named in the verdict, and
stops no other row. Records are written row by row, so that a run that was cut short goes on where it was.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from importlib import metadata
from pathlib import Path

from saccade import builds
from saccade import bundle as bundles
from saccade.acceptance import accuracy, device, records
from saccade.acceptance.device import Findings
from saccade.acceptance.records import AcceptanceRecord
from saccade.acceptance.row import Row
from saccade.builds import BatchRange, BuildOptions, SizeRange
from saccade.bundle import Bundle
from saccade.conversion import convert
from saccade.engines.tensorrt import plans
from saccade.engines.tensorrt.flavours import flavour, installed_version
from saccade.engines.tensorrt.gpu import Gpu, require_gpu
from saccade.engines.tensorrt.options import Precision
from saccade.errors import MissingDependency, UsageError

__all__ = ["AcceptanceRecord", "Request", "accept"]

_LIBRARIES = ("saccade", "tensorrt", "tensorrt-rtx-cu13-libs", "torch", "triton", "onnxruntime-gpu", "onnx")
_SIZE = SizeRange((128, 128), (800, 1344), (1344, 1344))  # from those of bundles' samples on
_WEIGHTS = (".safetensors", ".pth", ".pt", ".bin")
_DATA = {"classification": "imagenet", "detection": "coco", "instance_segmentation": "coco"}  # by task
_NO_GPU = Gpu("none", "00", "none")


@dataclass(frozen=True, slots=True)
class Request:
    """What to accept.

    models: bundles, or names of the zoo; these are exported, with `weights`/NAME.* or with random ones.
    batch: of the profile, of detectors at most 2; timed at its middle. size: of the profile, where picture
    sizes are free; those of the bundle's sample are within. imagenet, coco: labelled data, for models whose
    accuracy was published with their weights.
    out: folder of the records. again: repeat rows that were accepted before.
    target: TensorRT for RTX's, to rehearse on a machine without a GPU: what can be built is built, and
    nothing is accepted.
    """

    models: tuple[str, ...]
    out: Path
    precisions: tuple[Precision, ...] = ("fp16",)
    flavour: str = "tensorrt"
    batch: BatchRange = BatchRange(1, 8, 16)  # noqa: RUF009 - immutable
    size: SizeRange = _SIZE
    weights: Path | None = None
    imagenet: Path | None = None
    coco: Path | None = None
    again: bool = False
    target: str | None = None

    def __post_init__(self) -> None:
        if not self.models or not self.precisions:
            raise UsageError("name at least one model and one precision")
        for folder in (self.weights, self.imagenet, self.coco):
            if folder is not None and not folder.is_dir():
                raise UsageError(f"{folder} is not a folder")
        for precision in self.precisions:
            self.options(precision)

    def options(self, precision: Precision) -> BuildOptions:
        """How plans in `precision` are built; UsageError for what cannot be asked of this flavour."""
        return BuildOptions(
            flavour=self.flavour, precision=precision, batch=self.batch, size=self.size, target=self.target
        )


def accept(
    request: Request, *, progress: Callable[[str], None] = lambda step: None
) -> Iterator[AcceptanceRecord]:
    """Each row's record, written before the next row begins. Ctrl-C keeps what is written.

    Raises EngineError without a GPU (unless `target` names one to rehearse for), MissingDependency without
    the flavour of TensorRT.
    """
    version = installed_version(request.flavour)
    if version is None:
        chosen = flavour(request.flavour)
        raise MissingDependency(f"{request.flavour} is not installed: {chosen.install}")
    gpu = _NO_GPU if request.target else require_gpu()
    earlier = {record.file_name: record for record in records.within(request.out)}
    for model in request.models:
        for precision in request.precisions:
            found = _row(request, model, precision, gpu, version, earlier, progress)
            if found is not None:
                records.write(found, request.out)
                if gpu is not _NO_GPU:
                    records.write(found, records.folders()[1])
                yield found


def _row(
    request: Request,
    model: str,
    precision: Precision,
    gpu: Gpu,
    version: str,
    earlier: dict[str, AcceptanceRecord],
    progress: Callable[[str], None],
) -> AcceptanceRecord | None:
    """One row; None where the same was accepted before."""
    row, findings = Row(lambda step: progress(f"{model} {precision}: {step}")), Findings()
    options = request.options(precision)
    bundle = row.call("bundle", partial(_bundle, request, model))
    if bundle is not None and precision not in ("fp32", "tf32"):
        bundle = row.call(f"convert {precision}", partial(_converted, bundle, precision))
    if bundle is None:
        return _record(_name(model), options, gpu, version, row, findings, None, "")
    options, data = _fitted(options, bundle), _data(request, bundle)
    record = partial(_record, _name(model), options, gpu, version, row, findings, bundle, data)
    begun = record()
    before = earlier.get(begun.file_name)
    if before is not None and before.proves(begun) and not request.again:
        return None
    _prove(request, row, bundle, options, findings, runs=gpu is not _NO_GPU)
    return record()


def _name(model: str) -> str:
    """Of a model of the zoo, or of a bundle's folder: what a bundle calls itself may be a model's name."""
    return Path(model).resolve().name.removesuffix(".zip")


def _data(request: Request, bundle: Bundle) -> str:
    """Which of the request's data the bundle's accuracy is measured on; "" for none."""
    data = _DATA.get(bundle.task, "")
    return data if data and getattr(request, data) is not None else ""


def _fitted(options: BuildOptions, bundle: Bundle) -> BuildOptions:
    """`options` for this bundle. A tensor of TensorRT holds fewer than 2^31 numbers: the regions of three
    large pictures are more.
    """
    detects = bundle.task in ("detection", "instance_segmentation")
    most = 2 if detects else options.batch.max
    free = any("height" in spec.shape for graph in bundle.graphs.values() for spec in graph.inputs)
    return dataclasses.replace(
        options,
        batch=BatchRange(*(min(each, most) for each in options.batch)),
        size=options.size if free else None,
    )


def _prove(
    request: Request, row: Row, bundle: Bundle, options: BuildOptions, findings: Findings, *, runs: bool
) -> None:
    if options.size and row.call("fit sample", partial(device.check_sizes, bundle, options.size)) is None:
        return
    device.build_and_compare(row, bundle, options, findings, runs=runs)
    if runs:
        device.time_baselines(row, bundle, options, findings)
    data = _data(request, bundle)
    if bundle.task not in _DATA and (request.imagenet or request.coco):
        row.skip("measure accuracy", f"none is reproduced of models made for {bundle.task}")
    if not data:
        return
    expected = accuracy.published(bundle)
    if not runs or not findings.built or not expected:
        why = "nothing was published of these weights" if findings.built else "no plan was built"
        return row.skip("measure accuracy", why if runs else device.NO_GPU)
    folder: Path = getattr(request, data)
    measured = row.call("measure accuracy", partial(accuracy.measure, bundle, options, folder))
    if measured is not None:
        findings.accuracy.update(measured)
        row.call("compare accuracy", partial(accuracy.check, measured, expected))


def _bundle(request: Request, model: str) -> Bundle:
    """The bundle of that name, or one exported from the zoo, once."""
    from saccade.models.zoo import ENTRIES

    if model not in ENTRIES:
        return bundles.read(bundles.resolve(model))
    weights = _weights(request.weights, model)
    kept = f"{weights.name}-{bundles.sha256(weights)[:12]}" if weights else "random"
    out = plans.cache() / "acceptance" / f"{model}-{kept}"
    if out.is_dir():
        return bundles.read(out)
    from saccade.export import export_bundle

    return export_bundle(model, weights, out, random=weights is None)


def _weights(folder: Path | None, model: str) -> Path | None:
    """The file of the model's weights in `folder`; UsageError where it has none."""
    if folder is None:
        return None
    found = next(
        (folder / f"{model}{ending}" for ending in _WEIGHTS if (folder / f"{model}{ending}").is_file()), None
    )
    if found is None:
        raise UsageError(f"{folder} has no {model} with one of the endings {', '.join(_WEIGHTS)}")
    return found


def _converted(bundle: Bundle, precision: str) -> Bundle:
    """The bundle with graphs in `precision`: itself, or a converted copy beside the cache's others.

    UsageError where it lacks int8, with the command that makes it: that needs pictures.
    """
    if precision == "int8" or all(precision in graph.files for graph in bundle.graphs.values()):
        for name in bundle.graphs:
            bundles.graph_in(bundle, name, precision)
        return bundle
    digest = bundles.sha256(bundle.path / bundles.MANIFEST)[:12]
    out = plans.cache() / "acceptance" / f"{bundle.name}-{precision}-{digest}"
    return bundles.read(out) if out.is_dir() else convert(bundle.path, [precision], out)


def _record(
    name: str,
    options: BuildOptions,
    gpu: Gpu,
    version: str,
    row: Row,
    findings: Findings,
    bundle: Bundle | None,
    data: str,
) -> AcceptanceRecord:
    latency, built = findings.latency_ms, findings.built
    both = "function" in latency and "plugin" in latency
    plan_of = {
        f"{binding}/{each.record.graph}": each.record for binding, made in built.items() for each in made
    }
    return AcceptanceRecord(
        model=name,
        graph_sha256=builds.graph_sums(bundle, options.precision) if bundle else {},
        precision=options.precision,
        gpu=gpu.name,
        compute_capability=gpu.capability,
        driver=gpu.driver,
        flavour=options.flavour,
        version=version,
        versions=_versions(),
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        batch=options.batch,
        size=options.size,
        data=data,
        random=bundle is None or bundle.untrained,
        plan_sha256={key: record.plan_sha256 for key, record in plan_of.items()},
        engine_types={
            key: dict(record.engine_types) for key, record in plan_of.items() if record.engine_types
        },
        latency_ms=dict(latency),
        plugin_speedup=round(latency["function"] / latency["plugin"], 4) if both else None,
        accuracy=dict(findings.accuracy),
        verdict="failed" if row.failed_call else "accepted" if "function" in latency else "incomplete",
        failed_call=row.failed_call,
        steps=tuple(row.steps),
        log=tuple(line for record in plan_of.values() for line in record.log)[:100],
    )


def _versions() -> dict[str, str]:
    """Of the packages that are installed."""
    found = {}
    for name in _LIBRARIES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found
