"""From a name or a file to a predictor, checked before it answers."""

from __future__ import annotations

import contextlib
import importlib
import json
import logging
import os
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saccade import bundle as bundles
from saccade import tuning
from saccade.engines.engine import ENGINES, Engine, EngineOptions, open_engine, resolve_engine
from saccade.errors import BundleError, UsageError
from saccade.evidence import verdict_on
from saccade.models.card import Card

if TYPE_CHECKING:
    from saccade.predictors.predictor import Predictor

__all__ = ["load"]

logger = logging.getLogger("saccade")

PREDICTORS: Mapping[str, str] = {
    "classification": "saccade.predictors.classification:Classifier",
    "embedding": "saccade.predictors.embedding:Embedder",
    "zero_shot": "saccade.predictors.zero_shot:ZeroShotClassifier",
    "detection": "saccade.predictors.detection:Detector",
    "instance_segmentation": "saccade.predictors.detection:InstanceSegmenter",
    "semantic_segmentation": "saccade.predictors.semantic_segmentation:SemanticSegmenter",
    "depth": "saccade.predictors.depth:DepthEstimator",
}
_SMALL = 4 * 2**20  # bytes; files up to this are hashed before anything parses them
CARD_KEY = "saccade.card"  # in an ONNX file's metadata_props


def load(
    name_or_path: str | os.PathLike[str],
    engine: str = "auto",
    *,
    precision: str = "fp32",
    prove: bool = False,
    device: str = "cpu",
    threads: int | None = None,
    memory_limit_mib: int | None = None,
    contexts: int = 1,
    provider: str = "cuda",
    card: Card | str | os.PathLike[str] | None = None,
    check: bool = True,
) -> Predictor[Any]:
    """A predictor from a bundle, or from an ONNX file.

    name_or_path: a bundle's folder or .zip; the name of one in $SACCADE_HOME or of a shipped demo; or a file
    ending in .onnx. engine: "onnxruntime", "openvino", "reference", "tensorrt"; "auto" takes what
    `saccade tune` recorded for this bundle, device and number of threads here, else the first of
    `saccade.engines.engine.AUTO_ORDER` that is installed; the predictor's `engine_name` says which.
    "tensorrt" runs what `saccade build` put into the bundle, on the first GPU unless device says otherwise.
    precision: "fp32", or one that `saccade convert` added: "fp16", "bf16".
    contexts: TensorRT's concurrent runs. provider: of ONNX Runtime on a GPU, "cuda" or "tensorrt".
    prove: run the bundle's sample first and compare with what it gave where the bundle was made.
    device: "cpu", "cuda", "cuda:N". threads: CPU threads of the engine. memory_limit_mib: of CUDA memory.
    card: for an ONNX file, a Card or a JSON file of one; by default the one in the file's own metadata.
    check: compare every file of the bundle with its sha256.

    Raises UsageError for an unknown name, BundleError for a bundle that cannot be trusted or read,
    MissingDependency when the engine is not installed, EngineError when it refuses the graph.
    """
    options = EngineOptions(device, threads, memory_limit_mib, contexts, provider=provider)
    engine_name = resolve_engine(engine, options)
    if provider == "tensorrt" and precision != "fp32":
        raise UsageError(
            f"provider='tensorrt' chooses the precision of layers itself, not {precision!r}: "
            "say precision='fp32', or engine='tensorrt'"
        )
    if Path(name_or_path).suffix == ".onnx":
        if prove:
            raise UsageError("prove=True needs a bundle: an ONNX file holds no sample to compare with")
        if precision != "fp32":
            raise UsageError("precision= is for bundles: an ONNX file has the one it has")
        return _load_graph(Path(name_or_path), engine_name, options, card)
    if card is not None:
        raise UsageError("card= is for ONNX files: a bundle brings its own card")
    bundle = bundles.read(bundles.resolve(name_or_path), check=False)
    if engine == "auto" and (tuned := tuning.choice(bundle, precision, options)):
        engine_name = tuned.engine
    return _load_bundle(bundle, engine_name, options, precision=precision, check=check, prove=prove)


def _load_graph(
    path: Path, engine_name: str, options: EngineOptions, card: Card | str | os.PathLike[str] | None
) -> Predictor[Any]:
    if not path.is_file():
        raise UsageError(f"{path} does not exist")
    read = card if isinstance(card, Card) else _read_card(path, card)
    return _predictor({"model": open_engine({"source": path}, engine_name, options)}, read, engine_name)


def _read_card(graph: Path, card: str | os.PathLike[str] | None) -> Card:
    if card is not None:
        try:
            return Card.from_json(json.loads(Path(card).read_text(encoding="utf-8")))
        except (OSError, ValueError) as error:
            raise UsageError(f"card {os.fspath(card)} cannot be read as JSON: {error}") from error
    from saccade.engines.onnx_metadata import read_metadata

    text = read_metadata(graph).get(CARD_KEY)
    if text is None:
        raise UsageError(
            f"{graph} says nothing of its preprocessing and labels: pass card=, a saccade.Card or a JSON file"
        )
    try:
        return Card.from_json(json.loads(text))
    except ValueError as error:
        raise BundleError(f"{graph}: the card in its metadata is not JSON: {error}") from error


def _load_bundle(
    bundle: bundles.Bundle,
    engine_name: str,
    options: EngineOptions,
    *,
    precision: str,
    check: bool,
    prove: bool,
) -> Predictor[Any]:
    """Weights are hashed while the engine opens; nothing is returned, or run, before the sums are right."""
    _predictor_class(bundle.task, bundle.name)
    graphs = {name: graph_for(bundle, name, engine_name, precision, options) for name in bundle.graphs}
    small = [name for name, file in bundle.files.items() if file["bytes"] <= _SMALL]
    large = [name for name in bundle.files if name not in small]
    if check:
        bundles.verify_files(bundle, small)  # graphs: an engine parses only what has its sum
    hashing = _Background(lambda: bundles.verify_files(bundle, large if check else ()))
    with contextlib.ExitStack() as opened:
        try:
            engines = {
                name: opened.enter_context(open_engine(graph.files, engine_name, options))
                for name, graph in graphs.items()
            }
        finally:
            hashing.join()  # a changed file explains best why an engine refused it
        predictor = _predictor(engines, bundle.card, engine_name, untrained=bundle.untrained)
        if prove:
            for name, engine in engines.items():
                _prove(bundle, name, engine, engine_name, precision)
        opened.pop_all()
    logger.info("%s runs on %s (%s)", bundle.name, engine_name, options.device)
    if bundle.untrained:
        logger.warning("%s is untrained: its weights are random, for latency work only", bundle.name)
    if found := verdict_on(bundle, precision):
        pays, words = found
        logger.log(logging.INFO if pays else logging.WARNING, "%s in %s %s", bundle.name, precision, words)
    return predictor


def graph_for(
    bundle: bundles.Bundle, name: str, engine_name: str, precision: str, options: EngineOptions | None = None
) -> bundles.Graph:
    """The graph `name` in one precision; for an engine that runs plans, with the one for this machine."""
    if not ENGINES[engine_name].built:
        if precision == "tf32":
            raise UsageError(f"tf32 is for engine='tensorrt', not for {engine_name!r}: say precision='fp32'")
        return bundles.graph_in(bundle, name, precision)
    from saccade.builds import with_plan

    return with_plan(bundle, name, precision, (options or EngineOptions()).device_index)


def _predictor(
    engines: Mapping[str, Engine], card: Card, engine_name: str, *, untrained: bool = False
) -> Predictor[Any]:
    predictor = _predictor_class(card.task, card.name)
    return predictor(engines, card, engine_name=engine_name, untrained=untrained)


def _predictor_class(task: str, name: str) -> type[Predictor[Any]]:
    if task not in PREDICTORS:
        raise UsageError(f"{name} is made for {task}; there are predictors for {', '.join(PREDICTORS)}")
    module, cls = PREDICTORS[task].split(":")
    predictor: type[Predictor[Any]] = getattr(importlib.import_module(module), cls)
    return predictor


def _prove(bundle: bundles.Bundle, name: str, engine: Engine, engine_name: str, precision: str) -> None:
    """Repeat the sample of the graph `name`; BundleError names the output that differs."""
    sample = bundles.sample_of(bundle, name, precision)
    for row in sample.differences(engine.run(sample.inputs)):
        if not row.agrees:
            raise BundleError(
                f"{bundle.name} on {engine_name} does not give what it gave when it was exported: "
                f"{row.output!r} differs by {row.largest:.3g}, tolerance {row.tolerance:.3g}. "
                "Try another engine, or export again"
            )


class _Background:
    """`work` in a thread; `join` raises what it raised."""

    def __init__(self, work: Callable[[], None]) -> None:
        self._work = work
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="saccade-sha256")
        self._thread.start()

    def join(self) -> None:
        self._thread.join()
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        try:
            self._work()
        except BaseException as error:  # handed to the thread that joins
            self._error = error
