"""Do PyTorch, ONNX Runtime and OpenVINO give the same answers? Accuracy of each on held-out pictures.

python examples/03_compare_engines.py --pictures 2000
python examples/03_compare_engines.py stvit --pictures 200
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.table import Table

from digits import bundles, nets, scenes

ENGINES = ("onnxruntime", "openvino")
REFERENCE = "torch"


@dataclasses.dataclass(frozen=True)
class Agreement:
    """`right` and `differing` are shares of the pictures; the latter counts answers that are not torch's."""

    net: str
    engine: str
    pictures: int
    right: float
    differing: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(nets.NETS)}; all by default")
    parser.add_argument("--pictures", type=int, default=2000)
    options = parser.parse_args()
    pictures = scenes.held_out(options.pictures)
    table = Table("network", "engine", "right", "not as torch", title=f"{len(pictures)} held-out pictures")
    for name in options.names or nets.NETS:
        for row in compare(nets.net(name), pictures):
            table.add_row(row.net, row.engine, f"{row.right:.2%}", f"{row.differing:.2%}")
    Console().print(table)


def compare(chosen: nets.Net, pictures: scenes.Pictures, engines: Sequence[str] = ENGINES) -> list[Agreement]:
    """Export `chosen`, and let torch and every engine answer for `pictures`."""
    reference = nets.predictions(nets.trained(chosen.name), pictures.at(chosen.size_px))
    answers: dict[str, npt.NDArray[np.int64]] = {REFERENCE: reference}
    with tempfile.TemporaryDirectory() as scratch:
        bundle = bundles.export(chosen, Path(scratch) / chosen.name)
        for engine in engines:
            answers[engine] = bundles.scores(bundle.path, pictures, engine).argmax(1)
    return [
        Agreement(
            chosen.name,
            engine,
            len(pictures),
            float((answer == pictures.labels).mean()),
            float((answer != reference).mean()),
        )
        for engine, answer in answers.items()
    ]


if __name__ == "__main__":
    main()
