"""What careless int8 and float16 conversions do to networks with planted outliers, and to the plain ones.

    python examples/04_break_naive_conversions.py stvit --pictures 200

The naive int8 is ONNX Runtime's static quantisation as it comes: one scale per tensor, from the smallest and
largest value seen. The naive float16 stores every weight and every result of an operation in half precision.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import torch
from onnx.inliner import inline_local_functions
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from digits import nets, scenes
from digits.planted_outliers import FLOAT16_BREAKER, INT8_BREAKER, plant
from saccade.engines.export import export_graph
from saccade.engines.inputs import picture

CALIBRATION_PICTURES = 64


@dataclasses.dataclass(frozen=True)
class Damage:
    """Accuracy (shares of the pictures) of a network in float32, and after each naive conversion."""

    net: str
    strength: float
    float32: float
    float16: float
    int8: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(nets.NETS)}; all by default")
    parser.add_argument("--pictures", type=int, default=500)
    options = parser.parse_args()
    pictures = scenes.held_out(options.pictures)
    table = Table("network", "outliers", "float32", "naive float16", "naive int8")
    for name in options.names or nets.NETS:
        for row in damages(nets.net(name), pictures):
            outliers = f"x {row.strength:g}" if row.strength > 1 else "none"
            table.add_row(row.net, outliers, *(f"{v:.1%}" for v in (row.float32, row.float16, row.int8)))
    Console().print(table)


def damages(chosen: nets.Net, pictures: scenes.Pictures) -> Iterator[Damage]:
    """Rows for the plain network and for both strengths of planted outliers."""
    plain, pictures = nets.trained(chosen.name), pictures.at(chosen.size_px)
    for strength in (1.0, INT8_BREAKER, FLOAT16_BREAKER):
        module = plant(plain, strength)
        yield Damage(
            chosen.name,
            strength,
            nets.accuracy(module, pictures),
            float16_accuracy(module, pictures),
            float((naive_int8_predictions(module, pictures) == pictures.labels).mean()),
        )


def float16_accuracy(module: nn.Module, pictures: scenes.Pictures) -> float:
    """Accuracy with weights and results in float16, and sums inside an operation in float32, as GPUs do.

    Emulated: PyTorch's own float16 convolutions take seconds a picture on most CPUs.
    """
    rounded = copy.deepcopy(module).half().float()
    with HalfPrecision():
        return nets.accuracy(rounded, pictures)


class HalfPrecision(TorchDispatchMode):
    """Rounds what every operation returns to float16; what does not fit becomes infinite."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        return result if func.is_view else tree_map(_rounded, result)


def _rounded(value: Any) -> Any:
    is_float32 = isinstance(value, torch.Tensor) and value.dtype == torch.float32
    return value.half().float() if is_float32 else value


def naive_int8_predictions(module: nn.Module, pictures: scenes.Pictures) -> npt.NDArray[np.int64]:
    """(n,): what `module` answers after tensor-wide static quantisation of its exported graph."""
    with tempfile.TemporaryDirectory() as scratch:
        graph, quantised = Path(scratch) / "model.onnx", Path(scratch) / "model.int8.onnx"
        side_px = pictures.images.shape[1]
        exported = export_graph(module, [picture((side_px, side_px))])
        onnx.save(inline_local_functions(exported), graph)
        quantize_naively(graph, quantised, scenes.render("train", CALIBRATION_PICTURES, seed=1).at(side_px))
        session = onnxruntime.InferenceSession(quantised, _quiet())
        parts = [session.run(None, {"image": images})[0] for images in batches(pictures)]
    return np.concatenate(parts).argmax(1)


def _quiet() -> onnxruntime.SessionOptions:
    """Without the warnings about initialisers that quantisation left behind."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return options


def quantize_naively(graph: Path, quantised: Path, pictures: scenes.Pictures) -> None:
    """Static int8 with Q/DQ nodes, calibrated on `pictures`."""
    logging.disable(logging.WARNING)  # it recommends the very preparation that is left out here
    quantize_static(
        graph,
        quantised,
        Calibration(pictures),
        quant_format=QuantFormat.QDQ,
        per_channel=False,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )
    logging.disable(logging.NOTSET)


class Calibration(CalibrationDataReader):
    """Feeds `pictures` to ONNX Runtime's calibration."""

    def __init__(self, pictures: scenes.Pictures) -> None:
        self._feeds = iter([{"image": images} for images in batches(pictures)])

    def get_next(self) -> dict[str, npt.NDArray[np.float32]] | None:
        return next(self._feeds, None)


def batches(pictures: scenes.Pictures, batch: int = 16) -> Iterator[npt.NDArray[np.float32]]:
    """Network inputs (batch, 3, H, W)."""
    for start in range(0, len(pictures), batch):
        yield nets.inputs(pictures.images[start : start + batch]).numpy()


if __name__ == "__main__":
    main()
