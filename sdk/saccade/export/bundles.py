"""Export, compare and write: the same for every task."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saccade.errors import MissingDependency, UsageError
from saccade.export.options import Options, check
from saccade.export.plan import Part, Plan, Progress
from saccade.models import zoo

if TYPE_CHECKING:
    import onnx

    from saccade.bundle import Bundle
    from saccade.engines.graphs import GraphFile
    from saccade.engines.verify import Comparison, Expectation
    from saccade.models.card import Card

# The module that plans each task's graphs: `plan(options, entry) -> Plan`.
TASKS: Mapping[str, str] = {
    "classification": "saccade.export.classification",
    "embedding": "saccade.export.clip",
    "detection": "saccade.export.detection",
    "instance_segmentation": "saccade.export.detection",
    "semantic_segmentation": "saccade.export.dense",
    "depth": "saccade.export.dense",
}
LIBRARIES = ("torch", "timm", "onnx", "onnxscript", "onnxruntime", "openvino")


def export_bundle(
    name: str, weights: Path | str | None, out: Path, *, progress: Progress | None = None, **options: Any
) -> Bundle:
    """Export the model `name` with `weights` to the new folder `out`; nothing is left there on failure.

    options: the other fields of `saccade.export.Options`. progress: called with a line of text as each step
    begins. Raises UsageError, CheckpointError, or ExportError when a graph does not compute what the module
    does.
    """
    try:
        chosen = Options(name, weights, **options)
    except TypeError as error:
        raise UsageError(f"{error}; the options are {', '.join(Options.__slots__)}") from error
    try:
        entry = zoo.entry(name)
        check(chosen, entry)
        from saccade import bundle
        from saccade.engines import verify
        from saccade.engines.export import export_graph
    except ModuleNotFoundError as error:
        raise MissingDependency(
            f"exporting needs {error.name}, which is not installed: pip install 'saccade[export,cpu]'"
        ) from error
    say = progress or (lambda step: None)
    say(f"building {name}")
    planned: Plan = importlib.import_module(TASKS[entry.card.task]).plan(chosen, entry)
    graphs = {}
    for key, part in planned.parts.items():
        say(f"exporting {key}")
        graphs[key] = export_graph(part.module, part.inputs, outputs=part.outputs, name=name)
    card = planned.card(graphs)
    for graph in graphs.values():
        _set_card(graph, card)

    expected = {}
    for key, part in planned.parts.items():
        say(f"computing what {key} answers in float64")
        expected[key] = list(part.expect()) if part.expect else _expected(part, name)

    def fill(folder: Path) -> dict[str, Any]:
        written = _write(graphs, folder)
        rows = list(_compared(written, expected, say))
        verify.require_agreement(rows, name)
        return _manifest(card, graphs, written, _evidence(folder, rows, expected), chosen, planned.sizes)

    return bundle.write(out, fill)


@dataclass(frozen=True)
class _Evidence:
    """samples: the conformance file of each graph."""

    samples: Mapping[str, str]
    largest_difference: float


def _expected(part: Part, name: str) -> list[Expectation]:
    from saccade.engines import verify

    expected = verify.expectations(part.module, part.inputs, part.outputs)
    verify.require_signal(expected, name)
    return expected


def _set_card(graph: onnx.ModelProto, card: Card) -> None:
    from saccade.engines.graphs import set_metadata

    set_metadata(graph, {"saccade.card": json.dumps(card.to_json())})


def _write(graphs: Mapping[str, onnx.ModelProto], folder: Path) -> dict[str, dict[str, GraphFile]]:
    from saccade.engines.graphs import write_graphs

    (folder / "graphs").mkdir()
    return write_graphs(graphs, folder / "graphs")


def _compared(
    written: Mapping[str, Mapping[str, GraphFile]],
    expected: Mapping[str, Sequence[Expectation]],
    say: Progress,
) -> Iterator[Comparison]:
    """Run each graph in every installed engine that takes it, beside what the module answered."""
    from saccade.engines import verify
    from saccade.engines.engine import open_engine

    for key, files in written.items():
        for engine_name, path in _runs(_variants(files)):
            say(f"comparing {path.name} in {engine_name} with the module")
            with open_engine({"source": path}, engine_name) as engine:
                yield from verify.compare(engine, expected[key], graph=path.name, engine_name=engine_name)


def _variants(files: Mapping[str, GraphFile]) -> dict[str, Path]:
    """Which file each engine takes: both CPU engines are best served by the graph without functions."""
    variants = {"source": files["source"].path}
    if "inlined" in files:
        variants |= dict.fromkeys(("onnxruntime", "openvino"), files["inlined"].path)
    if "tensorrt" in files:
        variants["tensorrt"] = files["tensorrt"].path
    return variants


def _runs(variants: Mapping[str, Path]) -> list[tuple[str, Path]]:
    """Every (engine, file) to compare: all files in ONNX Runtime, and OpenVINO's where it is installed."""
    runs = [("onnxruntime", path) for path in dict.fromkeys(variants.values())]
    if importlib.util.find_spec("openvino"):
        runs.append(("openvino", variants.get("openvino", variants["source"])))
    return runs


def _evidence(
    folder: Path, rows: Sequence[Comparison], expected: Mapping[str, Sequence[Expectation]]
) -> _Evidence:
    """Write what was compared, and a sample per graph that any host can repeat."""
    from saccade.engines import verify

    samples = {key: "conformance.npz" if len(expected) == 1 else f"conformance.{key}.npz" for key in expected}
    for key, name in samples.items():
        verify.write_conformance(expected[key][0], folder / name)
    report = {
        "reference": "the torch module in float64",
        "tolerance": f"{verify.MARGIN:g} x the float32 noise floor, at least 2^-20 of the largest value",
        "comparisons": [row.to_json() for row in rows],
    }
    (folder / "verify.json").write_text(json.dumps(report, indent=1))
    return _Evidence(samples, max(row.difference for row in rows))


def _manifest(
    card: Card,
    graphs: Mapping[str, onnx.ModelProto],
    written: Mapping[str, Mapping[str, GraphFile]],
    evidence: _Evidence,
    options: Options,
    sizes: Mapping[str, Any],
) -> dict[str, Any]:
    """What bundle.json says, less schema and files, which `bundle.write` adds."""
    return {
        "name": card.name,
        "task": card.task,
        "card": card.to_json(),
        "graphs": {
            key: {
                "inputs": [_tensor(value) for value in graph.graph.input],
                "outputs": [_tensor(value) for value in graph.graph.output],
                "files": {v: f"graphs/{path.name}" for v, path in _variants(written[key]).items()},
                "sample": evidence.samples[key],
            }
            for key, graph in graphs.items()
        },
        "derived": {name: entry for files in written.values() for name, entry in _derived(files)},
        "untrained": options.random,
        "provenance": {
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "weights": Path(options.weights).name if options.weights else None,
            "weights_sha256": _file_sha256(options.weights),
            "config": dict(sizes),
            "versions": {"saccade": importlib.metadata.version("saccade"), **_versions()},
            "nodes": sum(len(graph.graph.node) for graph in graphs.values()),
            "largest_difference": evidence.largest_difference,
        },
    }


def _derived(files: Mapping[str, GraphFile]) -> Iterator[tuple[str, dict[str, Any]]]:
    from saccade import bundle

    source_sha256 = bundle.sha256(files["source"].path)
    for variant, file in files.items():
        if variant != "source":
            yield f"graphs/{file.path.name}", {"source_sha256": source_sha256, "passes": list(file.passes)}


def _file_sha256(weights: Path | str | None) -> str | None:
    """None for random weights and for those of a hub, which its cache names."""
    from saccade import bundle

    return bundle.sha256(Path(weights)) if weights and Path(weights).is_file() else None


def _versions() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in LIBRARIES if importlib.util.find_spec(name)}


def _tensor(value: onnx.ValueInfoProto) -> dict[str, Any]:
    import onnx

    kind = value.type.tensor_type
    dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type).name
    return {"name": value.name, "dtype": dtype, "shape": [d.dim_param or d.dim_value for d in kind.shape.dim]}
