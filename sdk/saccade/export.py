"""From a checkpoint to a verified bundle: create, export, derive, compare, write. Build time: needs torch."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.metadata
import importlib.util
import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saccade.errors import MissingDependency, UsageError
from saccade.models import zoo
from saccade.models.card import Card, Preprocessing

if TYPE_CHECKING:
    import onnx
    import torch
    from torch import nn

    from saccade.bundle import Bundle
    from saccade.engines.verify import Comparison, Expectation

Progress = Callable[[str], None]

INTERPOLATIONS = {"bilinear": "pillow-bilinear", "bicubic": "pillow-bicubic"}
LIBRARIES = ("torch", "timm", "onnx", "onnxscript", "onnxruntime", "openvino")


def export_bundle(
    name: str,
    weights: Path | str | None,
    out: Path,
    *,
    random: bool = False,
    labels: Path | None = None,
    num_classes: int | None = None,
    input_size_hw: tuple[int, int] | None = None,
    mean_rgb: tuple[float, float, float] | None = None,
    std_rgb: tuple[float, float, float] | None = None,
    crop: float | None = None,
    interpolation: str | None = None,
    config: Mapping[str, Any] | None = None,
    classes: Path | None = None,
    class_matrix: Path | None = None,
    progress: Progress | None = None,
) -> Bundle:
    """Export the model `name` with `weights` to the new folder `out`; nothing is left there on failure.

    weights: a checkpoint file, or an address of `saccade.models.hub`, such as "hub" or "timm:NAME.TAG".
    random: no weights; the bundle says "untrained" wherever it shows.
    labels: class names, one per line or a JSON list; as many as the head has outputs.
    input_size_hw, mean_rgb, std_rgb (in units of 0..1), crop (share of the resized side that is kept),
    interpolation ("bilinear", "bicubic"): replace what the model's card says of the preprocessing.
    config: sizes for `saccade.models.create`.
    classes, class_matrix: CLIP only: class names to encode with the checkpoint's text tower, or a .npy file
    (width, classes) of normalised class embeddings, named by `labels`. Without them the bundle embeds.
    progress: called with a line of text as each step begins.

    Raises UsageError, CheckpointError, or ExportError when the graph does not compute what the module does.
    """
    try:
        import torch

        from saccade import bundle
        from saccade.engines import verify
        from saccade.models.deploy import merge
    except ModuleNotFoundError as error:
        raise MissingDependency(
            f"exporting needs {error.name}, which is not installed: pip install 'saccade[export,cpu]'"
        ) from error
    from saccade.engines.export import export_graph

    say = progress or (lambda step: None)
    entry = zoo.entry(name)
    _check_sources(entry, weights, random, labels, classes, class_matrix)
    sizes = _sizes(entry, dict(config or {}), num_classes, input_size_hw)
    preprocessing = _preprocessing(
        entry.card.preprocessing,
        input_size_hw or _configured_size(sizes),
        mean_rgb,
        std_rgb,
        crop,
        interpolation,
    )
    size_hw = preprocessing.input_size_hw

    say(f"building {name}")
    module = _module(name, weights, sizes) if weights else _random_module(name, sizes, size_hw)
    names = _read_labels(classes or labels)
    if classes or class_matrix:
        module = _with_class_matrix(module, name, weights, names, class_matrix, sizes)
    embeds = entry.card.task == "embedding" and not names and "num_classes" not in sizes
    output = "embeddings" if embeds else "logits"

    say("exporting the graph")
    graph = export_graph(merge(module), size_hw, outputs=(output,), name=name)
    card = _card(entry.card, preprocessing, module, graph, output, names, untouched=not (sizes or random))
    _set_card(graph, card)

    say("computing what the module answers in float64")
    with torch.inference_mode():
        expected = verify.expectations(module, size_hw, (output,))
    verify.require_signal(expected, name)

    def fill(folder: Path) -> dict[str, Any]:
        graphs, rows = _write_verified(graph, folder, expected, name, say)
        return _manifest(card, graph, graphs, rows, weights, random, sizes)

    return bundle.write(out, fill)


def _check_sources(
    entry: zoo.Entry,
    weights: Path | str | None,
    random: bool,
    labels: Path | None,
    classes: Path | None,
    class_matrix: Path | None,
) -> None:
    name = entry.card.name
    is_tower = "num_classes" not in _settings(entry)
    if (weights is None) != random:
        raise UsageError(f"give {name} either --weights FILE or --random, for a bundle without training")
    if (classes or class_matrix) and not is_tower:
        raise UsageError(f"{name} classifies by itself: --classes and --class-matrix are for CLIP towers")
    if classes and (class_matrix or labels or random):
        raise UsageError("--classes names and encodes the classes: leave --labels, --class-matrix, --random")
    if class_matrix and not labels:
        raise UsageError("--class-matrix needs --labels FILE to name its columns")
    if labels and is_tower and not class_matrix:
        raise UsageError(f"{name} has no classes of its own: give --classes FILE, or --class-matrix FILE too")


def _preprocessing(
    default: Preprocessing,
    input_size_hw: tuple[int, int] | None,
    mean_rgb: tuple[float, float, float] | None,
    std_rgb: tuple[float, float, float] | None,
    crop: float | None,
    interpolation: str | None,
) -> Preprocessing:
    """`default` with what the user gave; another size keeps the share that is cropped."""
    changes: dict[str, Any] = {}
    if interpolation is not None:
        if interpolation not in INTERPOLATIONS:
            raise UsageError(f"interpolation {interpolation!r}: choose one of {', '.join(INTERPOLATIONS)}")
        changes["resampler"] = INTERPOLATIONS[interpolation]
    if mean_rgb is not None:
        changes["mean_rgb"] = mean_rgb
    if std_rgb is not None:
        if min(std_rgb) <= 0:
            raise UsageError(f"std {std_rgb}: all three must be positive")
        changes["std_rgb"] = std_rgb
    if input_size_hw is not None or crop is not None:
        size_hw = input_size_hw or default.input_size_hw
        shares = [
            size / resized for size, resized in zip(default.input_size_hw, default.resize_hw, strict=True)
        ]
        resized = [int(size / (crop or share)) for size, share in zip(size_hw, shares, strict=True)]
        if default.resize == "shorter":
            resized = [max(resized)] * 2
        changes |= {"input_size_hw": size_hw, "resize_hw": tuple(resized)}
    return dataclasses.replace(default, **changes)


def _sizes(
    entry: zoo.Entry,
    config: dict[str, Any],
    num_classes: int | None,
    input_size_hw: tuple[int, int] | None,
) -> dict[str, Any]:
    """Arguments for `create`: the user's, and the picture's size where the architecture depends on it."""
    if num_classes is not None:
        config["num_classes"] = num_classes
    if input_size_hw is not None and "img_size" in _settings(entry):
        height, width = input_size_hw
        config["img_size"] = height if height == width else input_size_hw
    return config


def _settings(entry: zoo.Entry) -> Mapping[str, Any]:
    """What the model's builder takes, by name."""
    module, function = entry.builder.split(":")
    return inspect.signature(getattr(importlib.import_module(module), function)).parameters


def _configured_size(sizes: Mapping[str, Any]) -> tuple[int, int] | None:
    """The picture's size where `config` states it."""
    size = sizes.get("img_size")
    pair = tuple(size) if isinstance(size, list | tuple) else (size, size)
    if size is None:
        return None
    if len(pair) != 2 or not all(type(side) is int and side > 0 for side in pair):
        raise UsageError(f"img_size is {size!r} in the configuration: write 224 or [224, 288]")
    return pair[0], pair[1]


def _module(name: str, weights: Path | str, sizes: Mapping[str, Any]) -> nn.Module:
    """The model with its weights, from a file or a hub."""
    from saccade.models import create
    from saccade.models.hub import is_address

    return create(name, checkpoint=str(weights) if is_address(str(weights)) else Path(weights), **sizes)


def _random_module(name: str, sizes: Mapping[str, Any], size_hw: tuple[int, int]) -> nn.Module:
    """The model with random weights, always the same.

    Fresh ones let a picture vanish on its way through a deep convolutional network: comparing outputs would
    compare nothing, and tiny numbers are slow on some processors. So batch norms take the statistics of
    noise, which gives every layer's output unit scale.
    """
    import torch

    from saccade.models import create

    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        module = create(name, **sizes)
        norms = [m for m in module.modules() if isinstance(m, torch.nn.BatchNorm2d)]
        hooks = [norm.register_forward_pre_hook(_observe_maps) for norm in norms]
        module(torch.randn(2, 3, *size_hw))
    for hook in hooks:
        hook.remove()
    return module.eval()


def _observe_maps(norm: nn.BatchNorm2d, inputs: tuple[torch.Tensor]) -> None:
    """Let `norm` take the statistics of maps; pooled values hardly vary, scaled up they would be noise."""
    norm.momentum = None  # the plain average of what is seen
    norm.train(inputs[0].shape[2:].numel() > 1)


def _with_class_matrix(
    tower: nn.Module,
    name: str,
    weights: Path | str | None,
    names: Sequence[str],
    file: Path | None,
    sizes: Mapping[str, Any],
) -> nn.Module:
    import numpy as np
    import torch

    from saccade.models.clip import EmbeddingClassifier, class_matrix
    from saccade.models.hub import fetch, is_address

    if file is None:
        assert weights is not None  # _check_sources
        source = fetch(str(weights), zoo.entry(name)) if is_address(str(weights)) else weights
        quick_gelu = bool(sizes.get("quick_gelu"))  # both towers were trained with one or the other
        return EmbeddingClassifier(tower, class_matrix(name, source, names, quick_gelu=quick_gelu)).eval()
    try:
        matrix = np.lib.format.open_memmap(file, mode="r")
    except (OSError, ValueError) as error:
        raise UsageError(f"{file} is not a .npy file of numbers: {error}") from error
    if matrix.ndim != 2 or matrix.shape[1] != len(names):
        raise UsageError(f"{file} has the shape {matrix.shape}, but there are {len(names)} labels")
    return EmbeddingClassifier(tower, torch.from_numpy(np.array(matrix, np.float32))).eval()


def _read_labels(file: Path | None) -> tuple[str, ...]:
    """Class names from lines or from a JSON list; () without a file."""
    if file is None:
        return ()
    try:
        text = file.read_text(encoding="utf-8").strip()
        names = json.loads(text) if text.startswith("[") else [line.strip() for line in text.splitlines()]
    except (OSError, ValueError) as error:
        raise UsageError(f"{file} cannot be read as labels: {error}") from error
    if not names or not all(isinstance(each, str) and each for each in names):
        raise UsageError(f"{file} must hold one label a line, none empty, or a JSON list of strings")
    return tuple(names)


def _card(
    card: Card,
    preprocessing: Preprocessing,
    module: nn.Module,
    graph: onnx.ModelProto,
    output: str,
    names: tuple[str, ...],
    *,
    untouched: bool,
) -> Card:
    """The zoo's card for this bundle. What was published stays only where the model is the published one."""
    changes: dict[str, Any] = {"preprocessing": preprocessing}
    if output == "logits":
        count = graph.graph.output[0].type.tensor_type.shape.dim[1].dim_value
        changes |= {"task": "classification", "labels": _labels(names, count)}
    headed = card.task == "embedding" and output == "logits"
    counted = sum(parameter.numel() for parameter in module.parameters())
    if headed or not untouched or counted != card.parameters:  # the last: a head of the user's own
        changes |= {"top1": None, "multiply_accumulates": None, "parameters": counted}
        changes |= {"weights": "", "licence": "", "remark": ""}  # of the published weights, not of these
    return dataclasses.replace(card, **changes)


def _labels(names: tuple[str, ...], count: int) -> tuple[str, ...]:
    from saccade.models.labels import imagenet_1k

    if names and len(names) != count:
        raise UsageError(f"there are {len(names)} labels, but the model has {count} classes")
    if names:
        return names
    return imagenet_1k() if count == 1000 else tuple(str(i) for i in range(count))


def _set_card(graph: onnx.ModelProto, card: Card) -> None:
    from saccade.engines.graphs import set_metadata

    set_metadata(graph, {"saccade.card": json.dumps(card.to_json())})


def _write_verified(
    graph: onnx.ModelProto, folder: Path, expected: Sequence[Expectation], name: str, say: Progress
) -> tuple[dict[str, Any], list[Comparison]]:
    """Write the graphs, run each in every installed engine that takes it, and compare."""
    from saccade import bundle
    from saccade.engines import verify
    from saccade.engines.engine import open_engine
    from saccade.engines.graphs import write_graphs

    (folder / "graphs").mkdir()
    written = write_graphs(graph, folder / "graphs")
    variants = _variants(written)
    rows: list[Comparison] = []
    for engine_name, files in _runs(variants):
        graph_name = files.name
        say(f"comparing {graph_name} in {engine_name} with the module")
        with open_engine({"source": files}, engine_name) as engine:
            rows += verify.compare(engine, expected, graph=graph_name, engine_name=engine_name)
    verify.require_agreement(rows, name)
    verify.write_conformance(expected[0], folder / "conformance.npz")
    report = {
        "reference": "the torch module in float64",
        "tolerance": f"{verify.MARGIN:g} x the float32 noise floor, at least 2^-20 of the largest value",
        "comparisons": [row.to_json() for row in rows],
    }
    (folder / "verify.json").write_text(json.dumps(report, indent=1))
    source_sha256 = bundle.sha256(written["source"].path)
    derived = {
        f"graphs/{file.path.name}": {"source_sha256": source_sha256, "passes": list(file.passes)}
        for variant, file in written.items()
        if variant != "source"
    }
    paths = {variant: f"graphs/{path.name}" for variant, path in variants.items()}
    return {"graphs": paths, "derived": derived}, rows


def _variants(written: Mapping[str, Any]) -> dict[str, Path]:
    """Which file each engine takes: both CPU engines are best served by the graph without functions."""
    source = written["source"].path
    if "inlined" not in written:
        return {"source": source}
    inlined = written["inlined"].path
    return {"source": source, "onnxruntime": inlined, "openvino": inlined}


def _runs(variants: Mapping[str, Path]) -> list[tuple[str, Path]]:
    """Every (engine, file) to compare: all files in ONNX Runtime, and OpenVINO's where it is installed."""
    runs = [("onnxruntime", path) for path in dict.fromkeys(variants.values())]
    if importlib.util.find_spec("openvino"):
        runs.append(("openvino", variants.get("openvino", variants["source"])))
    return runs


def _manifest(
    card: Card,
    graph: onnx.ModelProto,
    graphs: Mapping[str, Any],
    rows: Sequence[Comparison],
    weights: Path | str | None,
    random: bool,
    sizes: Mapping[str, Any],
) -> dict[str, Any]:
    """What bundle.json says, less schema and files, which `bundle.write` adds."""
    return {
        "name": card.name,
        "task": card.task,
        "card": card.to_json(),
        "inputs": [_tensor(value) for value in graph.graph.input],
        "outputs": [_tensor(value) for value in graph.graph.output],
        **graphs,
        "untrained": random,
        "provenance": {
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "weights": Path(weights).name if weights else None,
            "weights_sha256": _file_sha256(weights),
            "config": dict(sizes),
            "versions": {"saccade": importlib.metadata.version("saccade"), **_versions()},
            "nodes": len(graph.graph.node),
            "largest_difference": max(row.difference for row in rows),
        },
    }


def _file_sha256(weights: Path | str | None) -> str | None:
    """None for random weights and for those of a hub, which its cache names."""
    from saccade import bundle

    return bundle.sha256(Path(weights)) if weights and Path(weights).is_file() else None


def _versions() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in LIBRARIES if importlib.util.find_spec(name)}


def _tensor(value: onnx.ValueInfoProto) -> dict[str, Any]:
    dims = value.type.tensor_type.shape.dim
    return {"name": value.name, "dtype": "float32", "shape": [d.dim_param or d.dim_value for d in dims]}
