"""A bundle gains graphs of lower precision, measured against its own evidence, written whole or not at all.

Needs no checkpoint: the module's float64 answers and the noise floor of float32 travel in the bundle. The
result is a new bundle, since one that may be in use is never changed.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from saccade import bundle as bundles
from saccade.bundle import Bundle
from saccade.engines.conformance import Sample
from saccade.engines.detections import Agreement, agreement
from saccade.engines.engine import Arrays, TensorSpec, open_engine
from saccade.errors import BundleError, ExportError, MissingDependency, UsageError

if TYPE_CHECKING:
    import onnx

    from saccade.engines.conformance import Difference
    from saccade.engines.islands import Search

MARGIN = 2.0  # rounding in another order, and noise floors that were lucky
LEAST = 4.0  # unit roundoffs of an output's largest value
FEATURE = 32.0  # the same of the maps that a detector reads boxes and scores from: no noise floor is known
FLOAT32_ROUNDOFF = 2.0**-24
BATCH = 8
RULE = (
    f"{MARGIN:g} x the float32 noise floor x the ratio of the unit roundoffs, "
    f"at least {LEAST:g} unit roundoffs of the largest value"
)


def convert(
    name_or_path: str | Path,
    precisions: Sequence[str],
    out: str | Path,
    *,
    pictures: str | Path | None = None,
    progress: Callable[[str], None] = lambda step: None,
) -> Bundle:
    """Write the new bundle `out`: the one at `name_or_path` and its graphs in `precisions` ("fp16", "bf16").

    pictures: a folder of them; what the network makes of them is compared too, and their numbers count when
    it is decided what fits float16. Nothing is left at `out` on failure. Raises UsageError for precisions
    that are unknown or there already, ExportError where no choice of float32 islands meets the tolerances.
    """
    try:
        from saccade.engines.precision import precision_named
    except ModuleNotFoundError as error:
        raise MissingDependency(
            f"converting needs {error.name}, which is not installed: pip install 'saccade[export,cpu]'"
        ) from error
    bundle = bundles.read(bundles.resolve(name_or_path))
    if not precisions:
        raise UsageError("name at least one precision: fp16 or bf16")
    for precision in precisions:
        precision_named(precision)
        if any(precision in graph.files for graph in bundle.graphs.values()):
            raise UsageError(f"{bundle.path} has its graphs in {precision} already")
    shown = {} if pictures is None else _shown(bundle, Path(pictures))

    def fill(folder: Path) -> dict[str, Any]:
        copy_files(bundle, folder)
        manifest, report = manifest_of(bundle), report_of(bundle)
        for key in bundle.graphs:
            samples = [with_noise_floors(bundle, key), *_answered(bundle, key, shown.get(key, []))]
            for precision in precisions:
                say = partial(_say, progress, key)
                made = _convert(bundle, key, precision, samples, folder / "graphs", say)
                pictured = sum(len(each.inputs["image"]) for each in samples[1:])
                manifest["graphs"][key]["files"] |= made.files
                manifest["derived"] |= made.derived
                report["precisions"][f"{key}.{precision}.onnx"] = {**made.evidence, "pictures": pictured}
        (folder / "verify.json").write_text(json.dumps(report, indent=1), encoding="utf-8")
        return manifest

    return bundles.write(out, fill)


def _say(progress: Callable[[str], None], key: str, step: str) -> None:
    progress(f"{key}: {step}")


@dataclass(frozen=True)
class _Made:
    """Entries for the manifest (files by variant, derived by file) and for verify.json."""

    files: Mapping[str, str]
    derived: Mapping[str, Any]
    evidence: Mapping[str, Any]


def _convert(
    bundle: Bundle,
    key: str,
    precision: str,
    samples: Sequence[Sample],
    folder: Path,
    progress: Callable[[str], None],
) -> _Made:
    """Write one graph in one precision, and its form without functions, to `folder`."""
    import onnx

    from saccade.engines.graphs import write_graphs
    from saccade.engines.islands import search
    from saccade.engines.precision import PASSES, PRECISIONS
    from saccade.engines.precision import convert as convert_graph

    path = bundle.graphs[key].files["source"]
    source = onnx.load(path)
    features = _features(source)
    watched = _watched(source, features)
    roundoff = PRECISIONS[precision].roundoff
    answers = _answers(watched, samples) if features else []
    if features:
        held = [
            _held(sample, each, features, roundoff) for sample, each in zip(samples, answers, strict=True)
        ]
    else:
        held = [with_tolerances(sample, roundoff) for sample in samples]
    found = search(watched, precision, held, progress)
    converted = convert_graph(source, precision, list(found.measured))
    name = f"{key}.{precision}"
    written = write_graphs({name: converted.model}, folder, f"{name}.bin")[name]
    files = {precision: f"graphs/{written['source'].path.name}"}
    passes: dict[str, tuple[str, ...]] = {files[precision]: PASSES}
    if "inlined" in written:
        inlined = written["inlined"]
        files |= {
            f"{precision}.{engine}": f"graphs/{inlined.path.name}" for engine in ("onnxruntime", "openvino")
        }
        passes[f"graphs/{inlined.path.name}"] = (*PASSES, *inlined.passes)
    if "tensorrt" in written:
        built = written["tensorrt"]
        files[f"{precision}.tensorrt"] = f"graphs/{built.path.name}"
        passes[f"graphs/{built.path.name}"] = (*PASSES, *built.passes)
    record = {
        "source_sha256": bundles.sha256(path),
        "precision": precision,
        "tolerances": held[0].tolerances,
    }
    derived = {path: {**record, "passes": list(made)} for path, made in passes.items()}
    progress(f"comparing {precision} with float32")
    paths = {each.path.name: each.path for each in written.values()}
    evidence = _evidence(found, precision, held, paths, features)
    if features:
        evidence["detections"] = _detections(answers, found, samples)
    return _Made(files, derived, evidence)


def _features(source: onnx.ModelProto) -> list[str]:
    """What stands for the answers of a detector, which are choices; nothing for other graphs."""
    import onnx_ir as ir

    from saccade.engines.passes.coordinates import coordinate_sources

    return coordinate_sources(ir.from_proto(source).graph)


def _watched(model: onnx.ModelProto, features: Sequence[str]) -> onnx.ModelProto:
    """`model`, with `features` among its outputs."""
    from saccade.engines.passes.outputs import with_outputs

    if not features:
        return model
    return with_outputs(model, [*(value.name for value in model.graph.output), *features])


def _answers(model: onnx.ModelProto, samples: Sequence[Sample]) -> list[Arrays]:
    """What `model` gives for the inputs of each sample."""
    from saccade.engines.scratch import opened

    with opened(model) as engine:
        return [engine.run(sample.inputs) for sample in samples]


def _held(sample: Sample, answers: Arrays, features: Sequence[str], roundoff: float) -> Sample:
    """A detector's sample: its features, which float32 `answers` have, with tolerances."""
    outputs = {name: answers[name] for name in features}
    tolerances = {name: FEATURE * roundoff * float(np.abs(each).max()) for name, each in outputs.items()}
    return Sample(sample.inputs, outputs, tolerances)


def with_tolerances(sample: Sample, roundoff: float) -> Sample:
    """`sample`, whose tolerances are float32's noise floors, with those of another precision (see `RULE`)."""
    tolerances = {
        name: max(
            MARGIN * floor * roundoff / FLOAT32_ROUNDOFF,
            LEAST * roundoff * float(np.abs(sample.outputs[name]).max()),
        )
        for name, floor in sample.tolerances.items()
    }
    return Sample(sample.inputs, sample.outputs, tolerances)


def _evidence(
    found: Search,
    precision: str,
    samples: Sequence[Sample],
    files: Mapping[str, Path],
    features: Sequence[str],
) -> dict[str, Any]:
    """What verify.json says of one graph in one precision; ExportError where a written file differs."""
    import onnx

    from saccade.engines.islands import OPSET, compare
    from saccade.engines.passes.rounding import emulate
    from saccade.engines.precision import PRECISIONS

    first = next(iter(files))
    rows = [_row(first, "emulated", each) for each in found.differences]
    for name, path in files.items():
        model = _watched(onnx.load(path), features)
        # Rounding is not emulated inside the loop of TensorRT's suppression; float16 files run as they are.
        loops = any(node.op_type == "Loop" for node in model.graph.node)
        if name != first and not (loops and PRECISIONS[precision].cpu_kernels):
            rows += [_row(name, "emulated", each) for each in compare(emulate(model, OPSET), samples)]
        if PRECISIONS[precision].cpu_kernels:
            rows += [_row(name, "onnxruntime", each) for each in compare(model, samples)]
    wrong = next((row for row in rows if not row["agrees"]), None)
    if wrong is not None:
        raise ExportError(
            f"{wrong['file']}, {wrong['arithmetic']}: {wrong['output']!r} differs by {wrong['difference']}, "
            f"tolerance {wrong['tolerance']:.3g}; nothing was written"
        )
    islands: dict[str, list[str]] = {}
    for node, reason in found.converted.islands.items():
        islands.setdefault(reason, []).append(node)
    return {
        "precision": precision,
        "tolerance": f"{FEATURE:g} unit roundoffs of the largest value" if features else RULE,
        "comparisons": rows,
        "float32_nodes": islands,
        "measured": [
            {
                "node": node,
                "error": effect.error if np.isfinite(effect.error) else None,
                "magnitude": effect.magnitude,
            }
            for node, effect in found.measured.items()
        ],
        "runs": found.runs,
    }


def _detections(exact: Sequence[Arrays], found: Search, samples: Sequence[Sample]) -> dict[str, Any]:
    """What float32 finds in the samples, `exact`, beside what the precision, emulated, finds."""
    from saccade.engines.islands import OPSET
    from saccade.engines.passes.rounding import emulate

    rounded = _answers(emulate(found.converted.model, OPSET), samples)
    return asdict(agreement(zip(exact, rounded, strict=True)))


def float32_nodes(bundle: Bundle) -> dict[str, dict[str, list[str]]]:
    """For every graph of a lower precision in `bundle`: the nodes that stay float32, by the reason."""
    return {graph: each["float32_nodes"] for graph, each in report_of(bundle)["precisions"].items()}


def detections(bundle: Bundle) -> dict[str, Agreement]:
    """For every graph of a detector in a lower precision: what it finds beside what float32 finds."""
    found = {graph: each.get("detections") for graph, each in report_of(bundle)["precisions"].items()}
    return {graph: Agreement(**each) for graph, each in found.items() if each}


def manifest_of(bundle: Bundle) -> dict[str, Any]:
    """What bundle.json says of `bundle`, less schema and files."""

    def inside(path: Path) -> str:
        return path.relative_to(bundle.path).as_posix()

    return {
        "name": bundle.name,
        "task": bundle.task,
        "card": bundle.card.to_json(),
        "graphs": {
            key: {
                "inputs": [_tensor(spec) for spec in graph.inputs],
                "outputs": [_tensor(spec) for spec in graph.outputs],
                "files": {variant: inside(path) for variant, path in graph.files.items()},
                "sample": inside(graph.sample) if graph.sample else None,
            }
            for key, graph in bundle.graphs.items()
        },
        "derived": dict(bundle.derived),
        "untrained": bundle.untrained,
        "provenance": dict(bundle.provenance),
    }


def _tensor(spec: TensorSpec) -> dict[str, Any]:
    return {"name": spec.name, "dtype": spec.dtype, "shape": list(spec.shape)}


def copy_files(bundle: Bundle, folder: Path) -> None:
    for name in bundle.files:
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(bundle.path / name, target)


def report_of(bundle: Bundle) -> dict[str, Any]:
    """verify.json as it is, with a place for what is compared here."""
    path = bundle.path / "verify.json"
    report = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if not isinstance(report, dict):
        raise BundleError(f"{path} must hold an object: export the bundle again")
    return {"comparisons": [], "precisions": {}, **report}


# --- what is compared ----------------------------------------------------------------------------------


def with_noise_floors(bundle: Bundle, key: str) -> Sample:
    """The graph's sample, with the float32 noise floors of its outputs in the place of tolerances."""
    sample = bundles.sample_of(bundle, key)
    rows = [row for row in report_of(bundle)["comparisons"] if row["graph"].split(".")[0] == key]
    floors = {
        name: max((row["noise_floor"] for row in rows if row["output"] == name), default=0.0)
        for name in sample.outputs
    }
    return Sample(sample.inputs, sample.outputs, floors)


def _shown(bundle: Bundle, folder: Path) -> dict[str, list[dict[str, Any]]]:
    """What the pictures in `folder` feed to the graph that takes them, in batches, by its name."""
    from saccade.pictures import list_pictures
    from saccade.predictors.predictor import PICTURE_GRAPHS
    from saccade.preprocess import batches

    found = list_pictures(folder)
    if not found:
        raise UsageError(f"there are no pictures in {folder}")
    key = next(name for name in PICTURE_GRAPHS if name in bundle.graphs)
    sized = any(spec.name == "size_hw" for spec in bundle.graphs[key].inputs)
    fed = []
    for start in range(0, len(found), BATCH):
        for batch in batches(found[start : start + BATCH], bundle.card.preprocessing):
            size = {"size_hw": np.array(batch.resized_hw, np.float32)} if sized else {}
            fed.append({"image": batch.image, **size})
    return {key: fed}


def _answered(bundle: Bundle, key: str, feeds: Sequence[Mapping[str, Any]]) -> list[Sample]:
    """Samples of what float32 answers to `feeds`, held to the noise floors of the bundle's own sample."""
    if not feeds:
        return []
    graph = bundle.graphs[key]
    floors = with_noise_floors(bundle, key).tolerances
    with open_engine(graph.files, "onnxruntime") as engine:
        return [Sample(feed, engine.run(feed), floors) for feed in feeds]


def _row(file: str, arithmetic: str, difference: Difference) -> dict[str, Any]:
    """arithmetic: "emulated", or "onnxruntime", which computes in float32 whatever the file says."""
    finite = np.isfinite(difference.largest)
    return {
        "file": file,
        "arithmetic": arithmetic,
        "output": difference.output,
        "difference": difference.largest if finite else None,
        "tolerance": difference.tolerance,
        "agrees": difference.agrees,
    }
