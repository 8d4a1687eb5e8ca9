"""What int8 wins and keeps: latency of full-size models, accuracy of trained demo networks.

    python -m saccade.benchmarks.quantization --out benchmarks/results

Latency: random weights, every layer quantized, ONNX Runtime on the CPU, one and two threads, in turns with
float32 and with dynamic quantization. Accuracy: the demo networks of examples/, as trained and with planted
outliers, quantized as `saccade quantize` does it, judged on held-out pictures. Needs a checkout.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import logging
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from saccade.bundle import Bundle
from saccade.engines.engine import EngineOptions, open_engine
from saccade.engines.tensorrt.parser import judge
from saccade.evidence import Pace, race
from saccade.export import export_bundle
from saccade.quantization import NONE, evidence, quantize

RECORD = "quantization.json"
MODELS = ("deit_small", "deepmad_r50")
NETWORKS = ("nvit", "deepmad")
EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
SETTINGS = ((1, 1), (2, 1), (1, 8), (2, 8))  # threads, batch
ROUNDS = 10
CALIBRATION_SEED, EVIDENCE_SEED = 77, 78  # no other sets of pictures have them


@dataclass(frozen=True, slots=True)
class Latency:
    """One setting; paces by arithmetic."""

    model: str
    threads: int
    batch: int
    paces: dict[str, Pace]


@dataclass(frozen=True, slots=True)
class Built:
    """What NVIDIA's builder made of one graph, for compute capability 8.0."""

    model: str
    precision: str
    ok: bool
    layers: int
    plan_mib: float | None
    errors: tuple[str, ...]


def latencies(name: str, bundle: Bundle, folder: Path) -> Iterator[Latency]:
    """Of a bundle that has int8."""
    files = bundle.graphs["model"].files
    dynamic = folder / f"{name}.dynamic.onnx"
    _quantize_dynamically(files["source"], dynamic)
    graphs: dict[str, Mapping[str, Path]] = {
        "float32": {variant: path for variant, path in files.items() if "int8" not in variant},
        "int8": {"source": files["int8"]},
        "dynamic int8": {"source": dynamic},
    }
    height, width = bundle.card.preprocessing.input_size_hw
    rng = np.random.default_rng(0)
    for threads, batch in SETTINGS:
        image = rng.standard_normal((batch, 3, height, width)).astype(np.float32)
        with contextlib.ExitStack() as stack:
            options = EngineOptions(threads=threads)
            engines = {
                arithmetic: stack.enter_context(open_engine(each, "onnxruntime", options))
                for arithmetic, each in graphs.items()
            }
            yield Latency(name, threads, batch, race(engines, {"image": image}, ROUNDS))


def _quantize_dynamically(source: Path, target: Path) -> None:
    """Products only: dynamic convolution (ConvInteger) has no fast kernel, and a head is a small share."""
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    model = onnx.load(source)
    del model.graph.value_info[:]  # the quantizer transposes a Gemm's weights, and not what is said of them
    logging.getLogger().setLevel(logging.ERROR)  # it advises on the root logger
    quantize_dynamic(
        model, target, per_channel=True, weight_type=QuantType.QInt8, op_types_to_quantize=["MatMul"]
    )


def kernels(graph: Path) -> dict[str, int]:
    """Operators that ONNX Runtime runs for a graph, after its own fusions."""
    import onnx
    import onnxruntime

    with tempfile.TemporaryDirectory() as scratch:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.optimized_model_filepath = str(Path(scratch) / "optimized.onnx")
        onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
        optimized = onnx.load(options.optimized_model_filepath, load_external_data=False)
    return dict(Counter(node.op_type for node in optimized.graph.node).most_common())


def built(name: str, bundle: Bundle) -> Iterator[Built]:
    """NVIDIA's verdict on the float32 graph and on the int8 graph that is made for TensorRT."""
    files = bundle.graphs["model"].files
    for precision, variant in (("float32", "source"), ("int8", "int8.tensorrt")):
        verdict = judge(files[variant])
        plan = None if verdict.plan_bytes is None else round(verdict.plan_bytes / 2**20, 1)
        errors = tuple(f"{refusal.node}: {refusal.message}" for refusal in verdict.errors[:3])
        yield Built(name, precision, verdict.ok, verdict.layers, plan, errors)


def accuracies(name: str, pictures: Mapping[str, Path], count: int, folder: Path) -> Iterator[dict[str, Any]]:
    """The evidence of one demo network, as trained and with planted outliers."""
    nets, outliers = (
        importlib.import_module("digits.nets"),
        importlib.import_module("digits.planted_outliers"),
    )
    for strength in (1.0, outliers.INT8_BREAKER):
        chosen = nets.net(name)
        exported = _exported(
            chosen, outliers.plant(nets.trained(name), strength), folder / f"{name}_{strength:g}"
        )
        made = quantize(
            exported.path,
            pictures["calibration"],
            folder / f"{name}_{strength:g}_int8",
            data=pictures["held-out"],
            limit=128,
        )
        report = json.loads((made.path / "verify.json").read_text(encoding="utf-8"))
        yield {
            "network": name,
            "outliers": strength,
            "pictures": count,
            "graphs": {
                graph: {key: each[key] for key in ("method", "held_back", "measured", "equalized_joints")}
                for graph, each in report["precisions"].items()
            },
            "rows": evidence(made)["rows"],
        }


def _exported(chosen: Any, module: Any, out: Path) -> Bundle:
    from safetensors.torch import save_file

    scenes, nets = importlib.import_module("digits.scenes"), importlib.import_module("digits.nets")
    weights, labels = out.with_suffix(".safetensors"), out.with_suffix(".txt")
    save_file({name: value.contiguous() for name, value in module.state_dict().items()}, weights)
    labels.write_text("\n".join(scenes.LABELS), encoding="utf-8")
    return export_bundle(
        chosen.model,
        weights,
        out,
        labels=labels,
        config=chosen.config,
        input_size_hw=(chosen.size_px, chosen.size_px),
        mean_rgb=nets.MEAN_RGB,
        std_rgb=nets.STD_RGB,
        crop=1.0,
    )


def painted(folder: Path, count: int) -> dict[str, Path]:
    """Labelled folders of calibration pictures, from the training part, and of held-out ones."""
    scenes = importlib.import_module("digits.scenes")
    sets = {
        "calibration": scenes.render("train", 128, CALIBRATION_SEED),
        "held-out": scenes.render("held-out", count, EVIDENCE_SEED),
    }
    for part, pictures in sets.items():
        for index, (image, label) in enumerate(zip(pictures.images, pictures.labels, strict=True)):
            target = folder / part / scenes.LABELS[label]
            target.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(target / f"{index:04d}.png", compress_level=1)
    return {part: folder / part for part in sets}


def main() -> None:
    """Measure from the command line; lines go to stdout as they are ready, the record where asked."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="*", default=MODELS, metavar="NAME")
    parser.add_argument("--networks", nargs="*", default=NETWORKS, metavar="NAME")
    parser.add_argument("--pictures", type=int, default=2000, help="held-out pictures")
    parser.add_argument("--out", type=Path, help="folder for the record")
    options = parser.parse_args()
    sys.path.insert(0, str(EXAMPLES))
    record: dict[str, Any] = {
        "date": datetime.now(UTC).date().isoformat(),
        "versions": {
            each: version(each) for each in ("saccade", "onnx", "onnxruntime", "tensorrt-rtx-cu13-libs")
        },
        "latency": [],
        "kernels": {},
        "tensorrt_rtx": [],
        "accuracy": [],
    }
    with tempfile.TemporaryDirectory() as scratch:
        pictures = painted(Path(scratch), options.pictures)
        for name in options.networks:
            for row in accuracies(name, pictures, options.pictures, Path(scratch)):
                record["accuracy"].append(row)
                _print_accuracy(row)
                _write(options.out, record)
        for name in options.models:
            folder = Path(scratch)
            plain = export_bundle(name, None, folder / name, random=True)
            made = quantize(
                plain.path,
                pictures["calibration"],
                folder / f"{name}_int8",
                method="minmax",
                exclude=(NONE,),
                limit=8,
            )
            record["kernels"][name] = kernels(made.graphs["model"].files["int8"])
            for latency in latencies(name, made, folder):
                record["latency"].append(asdict(latency))
                _print_latency(latency)
            record["tensorrt_rtx"] += [asdict(each) for each in built(name, made)]
            print(*record["tensorrt_rtx"][-2:], sep="\n", flush=True)
            _write(options.out, record)


def _print_accuracy(row: Mapping[str, Any]) -> None:
    for each in row["rows"]:
        start = f"{row['network']:<12} outliers x {row['outliers']:<5g} {each['precision']:<6}"
        print(f"{start} {each['accuracy']:.2%} {each.get('verdict', '')}", flush=True)


def _print_latency(latency: Latency) -> None:
    for arithmetic, pace in latency.paces.items():
        low, high = pace.quartiles
        print(
            f"{latency.model:<12} threads {latency.threads} batch {latency.batch} {arithmetic:<13}"
            f"{pace.latency_ms:8.1f} ms, processor {pace.processor_ms:8.1f} ms: {pace.speedup:.2f} x "
            f"({low:.2f} to {high:.2f}), latency {pace.latency_speedup:.2f} x",
            flush=True,
        )


def _write(out: Path | None, record: Mapping[str, Any]) -> None:
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        (out / RECORD).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
