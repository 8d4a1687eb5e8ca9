"""The demo networks in float16 and bfloat16, plain and with planted outliers, beside a naive conversion.

    python examples/10_lower_precision.py deepmad --pictures 200

Each network is exported, its bundle converted as `saccade convert --pictures` does it with a few pictures of
the training set, and the converted graph asked about pictures it has not seen. Both precisions are emulated:
every weight and result rounded, sums inside an operation in float32.
"""

from __future__ import annotations

import argparse
import importlib
import json
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from PIL import Image
from rich.console import Console
from rich.table import Table
from safetensors.torch import save_file
from torch import nn

from digits import nets, scenes
from digits.planted_outliers import FLOAT16_BREAKER, INT8_BREAKER, plant
from saccade.bundle import Bundle
from saccade.conversion import convert, float32_nodes
from saccade.engines.islands import OPSET
from saccade.engines.passes.rounding import emulate
from saccade.engines.scratch import opened
from saccade.export import export_bundle

PRECISIONS = ("fp16", "bf16")
SHOWN = 32  # training pictures that the conversion sees: noise alone does not show where digits overflow


@dataclass(frozen=True)
class Kept:
    """Accuracy (shares of the pictures) and agreement of best classes with float32, by precision.

    islands: nodes that stay float32 because of what was measured, by precision.
    """

    net: str
    strength: float
    pictures: int
    float32: float
    naive_float16: float
    accuracy: dict[str, float]
    agreement: dict[str, float]
    islands: dict[str, int]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(nets.NETS)}; all by default")
    parser.add_argument("--pictures", type=int, default=500)
    parser.add_argument("--strengths", type=float, nargs="+", default=[1.0, INT8_BREAKER, FLOAT16_BREAKER])
    parser.add_argument("--out", type=Path, metavar="FILE.json", help="also write the figures here")
    options = parser.parse_args()
    pictures = scenes.held_out(options.pictures)
    table = Table("network", "outliers", "float32", "naive float16", "fp16", "bf16", "fp16 islands")
    rows = []
    for name in options.names or nets.NETS:
        for row in kept(nets.net(name), pictures, options.strengths):
            rows.append(asdict(row))
            outliers = f"x {row.strength:g}" if row.strength > 1 else "none"
            shares = (row.float32, row.naive_float16, *(row.accuracy[each] for each in PRECISIONS))
            table.add_row(row.net, outliers, *(f"{v:.1%}" for v in shares), str(row.islands["fp16"]))
            if options.out:
                options.out.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    Console().print(table)


def kept(chosen: nets.Net, pictures: scenes.Pictures, strengths: list[float]) -> Iterator[Kept]:
    """A row for each strength of planted outliers; 1 leaves the network as it was trained."""
    naive = importlib.import_module("04_break_naive_conversions").float16_accuracy
    pictures = pictures.at(chosen.size_px)
    for strength in strengths:
        module = plant(nets.trained(chosen.name), strength)
        with tempfile.TemporaryDirectory() as scratch:
            bundle = converted(module, chosen, Path(scratch))
            files = bundle.graphs["model"].files
            plain = predictions(onnx.load(files["source"]), pictures)
            low = {each: predictions(emulate(onnx.load(files[each]), OPSET), pictures) for each in PRECISIONS}
            islands = {
                each: len(float32_nodes(bundle)[f"model.{each}.onnx"].get("measured", []))
                for each in PRECISIONS
            }
        yield Kept(
            chosen.name,
            strength,
            len(pictures),
            float((plain == pictures.labels).mean()),
            naive(module, pictures),
            {each: float((answers == pictures.labels).mean()) for each, answers in low.items()},
            {each: float((answers == plain).mean()) for each, answers in low.items()},
            islands,
        )


def converted(module: nn.Module, chosen: nets.Net, folder: Path) -> Bundle:
    """The bundle of `module`, with its graphs in both precisions."""
    weights, labels = folder / "weights.safetensors", folder / "labels.txt"
    save_file({name: value.contiguous() for name, value in module.state_dict().items()}, weights)
    labels.write_text("\n".join(scenes.LABELS))
    exported = export_bundle(
        chosen.model,
        weights,
        folder / "float32",
        labels=labels,
        config=chosen.config,
        input_size_hw=(chosen.size_px, chosen.size_px),
        mean_rgb=nets.MEAN_RGB,
        std_rgb=nets.STD_RGB,
        crop=1.0,
    )
    shown = folder / "pictures"
    shown.mkdir()
    for number, image in enumerate(scenes.render("train", SHOWN, seed=0).images):
        Image.fromarray(image).save(shown / f"{number}.png")
    return convert(exported.path, PRECISIONS, folder / "low", pictures=shown)


def predictions(graph: onnx.ModelProto, pictures: scenes.Pictures, batch: int = 50) -> npt.NDArray[np.int64]:
    """(n,): the class with the largest logit, -1 where a logit is not a finite number."""
    starts = range(0, len(pictures), batch)
    with opened(graph) as engine:
        images = (nets.inputs(pictures.images[start : start + batch]).numpy() for start in starts)
        logits = np.concatenate([engine.run({"image": each})["logits"] for each in images])
    return np.where(np.isfinite(logits).all(1), logits.argmax(1), -1)


if __name__ == "__main__":
    main()
