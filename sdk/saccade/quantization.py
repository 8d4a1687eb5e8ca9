"""A bundle gains int8 graphs, judged on pictures that set no range, written whole or not at all."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from saccade import bundle as bundles
from saccade.bundle import Bundle
from saccade.conversion import copy_files, manifest_of, report_of
from saccade.engines.engine import Arrays, EngineOptions, open_engine
from saccade.errors import ExportError, MissingDependency, UsageError
from saccade.evaluation.classification import labelled_pictures
from saccade.evidence import ALLOWED_ERROR, ALLOWED_LOSS, flips, race, verdict
from saccade.models.card import Preprocessing
from saccade.pictures import list_pictures
from saccade.predictors.predictor import PICTURE_GRAPHS
from saccade.preprocess import batches

if TYPE_CHECKING:
    import onnx

    from saccade.engines.quantization import Judge, Kept, Search

PRECISION = "int8"
AUTO, NONE = "auto", "none"
LIMIT = 256
TASKS = ("classification", "embedding", "semantic_segmentation", "depth")
_BATCH = 8
_LEAST_PICTURES = 4
_ROUNDS = 20
_EXACT = 1e-4  # of an output's largest value: what float32 may answer otherwise once channels are equal
_MARGIN = 2.0  # other machines round otherwise


@dataclass(frozen=True)
class Pictures:
    """Pictures as the graph is fed with them, in batches, decoded anew each time they are gone through."""

    paths: Sequence[Path]
    preprocessing: Preprocessing

    def __iter__(self) -> Iterator[Arrays]:
        for start in range(0, len(self.paths), _BATCH):
            for batch in batches(list(self.paths[start : start + _BATCH]), self.preprocessing):
                yield {"image": batch.image}


def quantize(
    name_or_path: str | Path,
    calibration: str | Path,
    out: str | Path,
    *,
    method: str | None = None,
    exclude: Sequence[str] = (AUTO,),
    data: str | Path | None = None,
    limit: int = LIMIT,
    progress: Callable[[str], None] = lambda step: None,
) -> Bundle:
    """Write the new bundle `out`: the one at `name_or_path`, its graph in int8, and the evidence.

    calibration: a folder of pictures as the network will see them. Of at most `limit`, evenly spread over the
    folder, every other one sets ranges and the rest judge. method: "entropy", "percentile" or "minmax";
    by default the one that errs least. exclude: names of layers that stay float32; with "auto" among them
    those too that measurement asks for; "none" for none at all. data: a labelled folder, as `evaluate`
    takes it, to count flips on.

    Nothing is left at `out` on failure. Raises UsageError for what cannot be quantized, InputError naming a
    picture that cannot be read.
    """
    try:
        from saccade.engines import quantization as engine
        from saccade.engines.calibration import METHODS
    except ModuleNotFoundError as error:
        raise MissingDependency(
            f"quantizing needs {error.name}, which is not installed: pip install 'saccade[export,cpu]'"
        ) from error
    if method is not None and method not in METHODS:
        raise UsageError(f"there is no calibration method {method!r}: choose from {', '.join(METHODS)}")
    bundle = bundles.read(bundles.resolve(name_or_path))
    key = _key(bundle)
    labelled = None if data is None else _labelled(bundle, Path(data))
    found = _spread(list_pictures(Path(calibration)), limit)
    if len(found) < _LEAST_PICTURES:
        raise UsageError(
            f"{calibration} holds {len(found)} pictures; at least {_LEAST_PICTURES} are needed, "
            "a hundred are better"
        )
    calibrating = Pictures(found[::2], bundle.card.preprocessing)
    held_back = list(Pictures(found[1::2], bundle.card.preprocessing))
    source = _float32(bundle, key)
    asked = _asked(exclude, engine.layers(source))
    judge = engine.judge(source, held_back, classes=bundle.card.task == "classification")
    progress("making channels equal")
    equal, joints = _equalized(source, calibrating, judge)
    names = engine.tensors(equal, engine.FORMS["cpu"])
    from saccade.engines.calibration import calibrate

    ranges = calibrate(equal, names, calibrating, METHODS if method is None else [method], progress)
    searched = {
        form.name: engine.search(
            equal, form, ranges, judge, _meets, asked=asked, automatic=AUTO in exclude, say=progress
        )
        for form in engine.FORMS.values()
    }

    def fill(folder: Path) -> dict[str, Any]:
        copy_files(bundle, folder)
        manifest, report = manifest_of(bundle), report_of(bundle)
        files = _write(bundle, key, searched, folder, manifest)
        for variant, each in files.items():
            form = searched["tensorrt" if variant.endswith("tensorrt") else "cpu"]
            report["precisions"][each.name] = {
                "precision": PRECISION,
                "pictures": {
                    "calibrated": len(calibrating.paths),
                    "held_back": len(found) - len(calibrating.paths),
                },
                "equalized_joints": joints,
                **_said(form),
            }
        progress("measuring what is kept and won")
        report["evidence"] = _evidence(bundle, key, files[PRECISION], judge, labelled)
        (folder / "verify.json").write_text(json.dumps(report, indent=1), encoding="utf-8")
        return manifest

    return bundles.write(out, fill)


def evidence(bundle: Bundle) -> dict[str, Any]:
    """What was measured of the precisions in `bundle`: "pictures", "data" and "rows"."""
    found: dict[str, Any] = report_of(bundle).get("evidence", {"rows": []})
    return found


def _key(bundle: Bundle) -> str:
    """The graph to quantize; UsageError where there is none that can be judged."""
    if bundle.task not in TASKS or len(bundle.graphs) != 1 or bundle.card.preprocessing.resize == "fit":
        raise UsageError(
            f"{bundle.name} is made for {bundle.task}: int8 is for one graph of pictures of one size, made "
            f"for {', '.join(TASKS)}. Another precision: saccade convert {bundle.path} --precision fp16"
        )
    (key,) = bundle.graphs
    if key not in PICTURE_GRAPHS:
        raise UsageError(f"{bundle.name}: its graph {key!r} takes no pictures")
    if PRECISION in bundle.graphs[key].files:
        raise UsageError(f"{bundle.path} has its graph in {PRECISION} already")
    return key


def _spread(paths: Sequence[Path], limit: int) -> list[Path]:
    """At most `limit` of `paths`, at equal distances: a folder sorted by class gives some of each."""
    if len(paths) <= limit:
        return list(paths)
    return [paths[index] for index in np.linspace(0, len(paths) - 1, limit).astype(int)]


def _labelled(bundle: Bundle, data: Path) -> tuple[list[Path], np.ndarray[Any, Any]]:
    if bundle.task != "classification":
        raise UsageError(f"--data counts flips of classes, and {bundle.name} is made for {bundle.task}")
    (output,) = next(iter(bundle.graphs.values())).outputs
    labels = bundle.card.labels or tuple(map(str, range(int(output.shape[1]))))
    pictures = labelled_pictures(data, labels)
    return [each.path for each in pictures], np.array([each.target for each in pictures])


def _float32(bundle: Bundle, key: str) -> onnx.ModelProto:
    """The source in standard operators, every constant an initializer; UsageError where it is not float32."""
    import onnx
    import onnx_ir as ir

    from saccade.engines.passes.inline import inline
    from saccade.engines.precision import typed
    from saccade.engines.quantization import layers

    path = bundle.graphs[key].files["source"]
    model = onnx.load(path)
    if any(node.op_type in ("QuantizeLinear", "DequantizeLinear") for node in model.graph.node):
        raise UsageError(f"{path} is quantized already: begin with the float32 bundle")
    if any(
        tensor.data_type in (onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16)
        for tensor in model.graph.initializer
    ):
        raise UsageError(f"{path} is not a float32 graph: begin with the float32 bundle")
    model = ir.to_proto(typed(inline(model)))
    if not layers(model):
        raise UsageError(f"{path} has no convolution or product with constant weights: nothing to quantize")
    return model


def _asked(exclude: Sequence[str], known: Sequence[str]) -> list[str]:
    import difflib

    asked = [name for name in exclude if name not in (AUTO, NONE)]
    for name in asked:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=3)
            hint = f"did you mean {' or '.join(near)}?" if near else f"they are {', '.join(known[:5])}, ..."
            raise UsageError(f"--exclude {name!r} is no layer with weights of this graph; {hint}")
    return asked


def _equalized(source: onnx.ModelProto, feeds: Pictures, judge: Judge) -> tuple[onnx.ModelProto, int]:
    """`source` with equal channels, compared with what it answered before."""
    from saccade.engines.equalization import equalize
    from saccade.engines.quantization import answered

    first = next(iter(feeds))
    equal, joints = equalize(source, [first])
    for name, answers in answered(equal, judge.feeds).items():
        apart, largest = np.abs(answers - judge.answers[name]).max(), np.abs(judge.answers[name]).max()
        if not apart <= _EXACT * largest:
            raise ExportError(f"{name!r} differs by {apart:.3g} once channels are equal; nothing was written")
    return equal, joints


def _meets(kept: Kept) -> bool:
    """Half of what may be lost: few pictures judge."""
    return kept.error <= ALLOWED_ERROR and (kept.expected_loss or 0.0) <= ALLOWED_LOSS / 2


def _said(found: Search) -> dict[str, Any]:
    measured = [name for name, error in found.float32.items() if error is not None]
    return {
        "tolerance": f"error {ALLOWED_ERROR:g} of the answers' spread, expected loss {ALLOWED_LOSS / 2:g}",
        "method": found.method,
        "held_back": found.kept.to_json(),
        "float32_nodes": {
            "measured": measured,
            "asked": [name for name in found.float32 if name not in measured],
        },
        "measured": [{"node": name, "error": found.float32[name]} for name in measured],
        "runs": found.runs,
    }


def _write(
    bundle: Bundle, key: str, searched: Mapping[str, Search], folder: Path, manifest: dict[str, Any]
) -> dict[str, Path]:
    """Write the graphs and enter them into the manifest; their files by variant."""
    from saccade.engines.graphs import write_graphs

    stems = {PRECISION: f"{key}.{PRECISION}", f"{PRECISION}.tensorrt": f"{key}.{PRECISION}.tensorrt"}
    models = dict(zip(stems.values(), (searched["cpu"].model, searched["tensorrt"].model), strict=True))
    written = write_graphs(models, folder / "graphs", f"{key}.{PRECISION}.bin")
    files = {variant: written[stem]["source"].path for variant, stem in stems.items()}
    record = {
        "source_sha256": bundles.sha256(bundle.graphs[key].files["source"]),
        "precision": PRECISION,
        "passes": ["inline", "equalize", "quantize"],
        "tolerances": _tolerances(bundle, key, files[PRECISION]),
    }
    for variant, path in files.items():
        name = f"graphs/{path.name}"
        manifest["graphs"][key]["files"][variant] = name
        manifest["derived"][name] = record
    return files


def _tolerances(bundle: Bundle, key: str, graph: Path) -> dict[str, float]:
    """What other machines are held to on the bundle's own sample: a multiple of what int8 differs by here."""
    if bundle.graphs[key].sample is None:
        return {}
    sample = bundles.sample_of(bundle, key)
    with open_engine({"source": graph}, "onnxruntime") as engine:
        rows = sample.differences(engine.run(sample.inputs))
    return {row.output: max(_MARGIN * row.largest, row.tolerance) for row in rows}


def _evidence(
    bundle: Bundle,
    key: str,
    graph: Path,
    judge: Judge,
    labelled: tuple[list[Path], np.ndarray[Any, Any]] | None,
) -> dict[str, Any]:
    """A row for each precision that ONNX Runtime runs here: what it keeps, its pace on one thread."""
    from saccade.engines.precision import PRECISIONS

    own = bundle.graphs[key].files
    graphs: dict[str, Mapping[str, Path]] = {"fp32": own, PRECISION: {"source": graph}}
    for name, each in PRECISIONS.items():
        if name in own and each.cpu_kernels:
            graphs[name] = bundles.graph_in(bundle, key, name).files
    one = {"image": judge.feeds[0]["image"][:1]}
    rows = []
    with contextlib.ExitStack() as opened:
        engines = {
            name: opened.enter_context(open_engine(files, "onnxruntime", EngineOptions(threads=1)))
            for name, files in graphs.items()
        }
        paces = race(engines, one, _ROUNDS)
        right = (
            {}
            if labelled is None
            else {name: _right(bundle, engine, *labelled) for name, engine in engines.items()}
        )
        for name, engine in engines.items():
            answers = [engine.run(feed) for feed in judge.feeds]
            kept = judge.compare(
                {each: np.concatenate([row[each] for row in answers]) for each in answers[0]}
            )
            counted = flips(right["fp32"], right[name]) if right else None
            row = {"precision": name, **kept.to_json(), **asdict(paces[name])}
            if counted is not None:
                row |= {"accuracy": float(right[name].mean()), "flips": counted.to_json()}
            if name != "fp32":
                pays, words = verdict(
                    paces[name], error=kept.error, expected_loss=kept.expected_loss, counted=counted
                )
                row |= {"pays": pays, "verdict": words}
            rows.append(row)
    return {
        "pictures": sum(len(feed["image"]) for feed in judge.feeds),
        "engine": "onnxruntime",
        "rows": rows,
    }


def _right(
    bundle: Bundle, engine: Any, paths: Sequence[Path], targets: np.ndarray[Any, Any]
) -> np.ndarray[Any, Any]:
    """(n,) bool: whether each picture's best class is its label."""
    best = [
        next(iter(engine.run(feed).values())).argmax(1) for feed in Pictures(paths, bundle.card.preprocessing)
    ]
    right: np.ndarray[Any, Any] = np.concatenate(best) == targets
    return right
