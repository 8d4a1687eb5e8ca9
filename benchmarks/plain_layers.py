"""Layers and plans that TensorRT for RTX makes of plain exports: others' modules through torch.onnx.export.

    python -m saccade.benchmarks.plain_layers deit_small swin_small --out benchmarks/results

The models as timm or their authors write them (Swin is timm's, STViT-R has its released cross-attention): no
merged branches or norms, no operators and no rewrites of ours. They are what the layers and plans of our own
exports stand beside. NVIDIA's parser and builder need no GPU for it. A record that is there keeps what is not
measured again.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import json
import multiprocessing
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from saccade.benchmarks.tensorrt_zoo import SIZES
from saccade.engines.tensorrt.parser import BatchRange, ShapeRange, judge
from saccade.errors import EngineError
from saccade.models import zoo

RECORD = "tensorrt_rtx_plain_layers.json"
BATCH = BatchRange(1, 4, 16)


@dataclass(frozen=True, slots=True)
class Plain:
    """One model, float32: layers of the network and the size of its plan for SM80, or the message of why
    there is none (0)."""

    model: str
    date: str
    layers: int = 0
    plan_bytes: int = 0
    message: str = ""


def measure(name: str) -> Plain:
    """Export and build `name` with random weights; its image tower, where it has two."""
    today = datetime.now(UTC).date().isoformat()
    picture = (3, *zoo.entry(name).card.preprocessing.input_size_hw)
    shapes = {"image": ShapeRange(*((batch, *picture) for batch in BATCH))}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "plain.onnx"
        # Others' forms change the process they are made in, and torch's memory is gone before the build.
        context = multiprocessing.get_context("spawn")
        with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as pool:
            pool.submit(_export, name, path).result()
        try:
            verdict = judge(path, profile=shapes)
        except EngineError as error:
            return Plain(name, today, message=str(error))
    if not verdict.ok:
        return Plain(name, today, message="; ".join(map(str, verdict.errors)))
    return Plain(name, today, verdict.layers, verdict.plan_bytes or 0)


def _export(name: str, path: Path) -> None:
    import torch

    from saccade.benchmarks.measuring.peer_models import as_others_write
    from saccade.models import create

    entry, sizes = zoo.entry(name), SIZES.get(name, {})
    module = as_others_write(create(name, **sizes).eval(), entry, sizes)
    torch.compiler.is_exporting = lambda: False  # our attention is no node of ours then
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module,
            (torch.randn(2, 3, *entry.card.preprocessing.input_size_hw),),
            path,
            dynamo=True,
            input_names=["image"],
            dynamic_shapes=({0: torch.export.Dim.DYNAMIC},),
            opset_version=20,
            external_data=True,
            verbose=False,
        )


def save(rows: Sequence[Plain], folder: Path) -> None:
    """Merge `rows` into the record."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / RECORD
    earlier = json.loads(path.read_text(encoding="utf-8"))["models"] if path.exists() else []
    merged = {row["model"]: row for row in (*earlier, *map(asdict, rows))}
    content = {"batch": BATCH._asdict(), "models": [merged[name] for name in sorted(merged)]}
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    """Measure from the command line; a line per model goes to stdout, the record where asked."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="+", metavar="NAME")
    parser.add_argument("--out", type=Path, help="folder for the record")
    arguments = parser.parse_args()
    for name in arguments.names:
        row = measure(name)
        size = row.plan_bytes / 2**20
        print(f"{row.model:<24} {row.layers:>6} layers {size:>7.1f} MiB {row.message}", flush=True)
        if arguments.out:
            save([row], arguments.out)


if __name__ == "__main__":
    main()
