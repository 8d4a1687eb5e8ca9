"""Layers that TensorRT for RTX makes of plain exports: the torch module through torch.onnx.export as it is.

    python -m saccade.benchmarks.plain_layers deit_small swin_small --out benchmarks/results

Models of the zoo without operators of ours, and timm's own Swin. No merged norms, no rewrites: what the
layers of our own exports stand beside. Parsed
only, by NVIDIA's parser; no GPU is needed. A record that is there keeps what is not measured again.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import timm
import torch

from saccade.engines.tensorrt.parser import BatchRange, judge
from saccade.errors import EngineError
from saccade.models import create, zoo

RECORD = "tensorrt_rtx_plain_layers.json"
BATCH = BatchRange(1, 4, 16)
TIMM = {f"swin_{size}": f"swin_{size}_patch4_window7_224" for size in ("tiny", "small", "base")}


@dataclass(frozen=True, slots=True)
class Plain:
    """One model: layers of the network, or the message of why NVIDIA's parser refused it (layers 0)."""

    model: str
    date: str
    layers: int
    message: str = ""


def measure(name: str) -> Plain:
    """Export and parse `name` with random weights; its image tower, where it has two."""
    module = timm.create_model(TIMM[name]).eval() if name in TIMM else create(name).eval()
    size_hw = zoo.entry(name).card.preprocessing.input_size_hw
    today = datetime.now(UTC).date().isoformat()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "plain.onnx"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                module,
                (torch.randn(2, 3, *size_hw),),
                path,
                dynamo=True,
                input_names=["image"],
                dynamic_shapes=({0: torch.export.Dim.DYNAMIC},),
                opset_version=20,
                external_data=True,
                verbose=False,
            )
        try:
            verdict = judge(path, profile=BATCH, build=False)
        except EngineError as error:
            return Plain(name, today, 0, str(error))
    return Plain(name, today, verdict.layers if verdict.parsed else 0, "; ".join(map(str, verdict.errors)))


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
        print(f"{row.model:<24} {row.layers:>6} layers {row.message}", flush=True)
        if arguments.out:
            save([row], arguments.out)


if __name__ == "__main__":
    main()
