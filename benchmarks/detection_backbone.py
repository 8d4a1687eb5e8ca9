"""The detection backbone at 800x1344 on ONNX Runtime CPU: STViT-R as built here, as released, and plain Swin.

    python -m saccade.benchmarks.detection_backbone --size small --rounds 3 --out benchmarks/results

"As released" gathers overlapping windows of raw tokens and normalises and projects every copy of a token, as
the official code does; ours projects each token once and gathers afterwards. Both run with the same random
weights and must agree. "Plain swin" is what one exports without us: timm's Swin (roll, partition, reverse) by
`torch.onnx.export` for this size, with the detection backbone's LayerNorm on each map. "Our swin" is the same
network through our models and exporter. All four take turns in one process, with the same settings.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import platform
import statistics
import time
import warnings
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import timm
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from saccade.engines.export import export_graph
from saccade.engines.inputs import picture
from saccade.engines.passes.inline import inline
from saccade.errors import ExportError
from saccade.models import create
from saccade.models.stvit import CrossBlock, DenseGeneration, DenseRecovery, DenseRefinement

OUTPUTS = ("map_4", "map_8", "map_16", "map_32")


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds of one pass over one picture: wall time, and the processor time of all threads."""

    name: str
    passes: int
    median_s: float
    fastest_s: float
    median_processor_s: float
    fastest_processor_s: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """Four backbones in one run; ratios are of fastest processor times, which other work disturbs least.

    agreement: largest absolute difference between our maps and the released form's, whose largest absolute
    value is `magnitude`. It may be 0: a projected row does not depend on the rows beside it.
    """

    size: str
    size_hw: tuple[int, int]
    timings: tuple[Timing, ...]
    released_over_ours: float
    plain_over_ours: float
    our_swin_over_ours: float
    agreement: float
    magnitude: float
    load_average: tuple[float, ...]
    date: str
    machine: str
    cpus: int
    versions: dict[str, str]


def measure(size: str, size_hw: tuple[int, int], rounds: int) -> Comparison:
    """Export the four backbones and time them in turn, after one warm-up each."""
    torch.manual_seed(0)
    models = {"ours": create(f"stvit_r_swin_{size}", features=True)}
    for key, parameter in models["ours"].named_parameters():
        if "layer_scale" in key:
            nn.init.ones_(parameter)  # 1e-5 at first, which would hide what the two forms do
    models["released"] = as_released(
        create(f"stvit_r_swin_{size}", models["ours"].state_dict(), features=True)
    )
    models["our swin"] = create(f"swin_{size}", features=True)
    sessions = {name: _session(_export(model, size_hw)) for name, model in models.items()}
    sessions["plain swin"] = _session(_plain_export(PlainSwin(size, size_hw), size_hw))
    image = np.random.default_rng(0).standard_normal((1, 3, *size_hw), np.float32)
    answers: dict[str, list[NDArray[Any]]] = {}
    samples: dict[str, list[tuple[float, float]]] = {name: [] for name in sessions}
    for round_ in range(rounds + 1):
        for name, session in sessions.items():
            wall, processor = time.perf_counter(), time.process_time()
            answers[name] = session.run(None, {"image": image})
            if round_:
                samples[name].append((time.perf_counter() - wall, time.process_time() - processor))
    timings = tuple(_timing(name, figures) for name, figures in samples.items())
    fastest = {each.name: each.fastest_processor_s for each in timings}
    pairs = zip(answers["ours"], answers["released"], strict=True)
    return Comparison(
        size=size,
        size_hw=size_hw,
        timings=timings,
        released_over_ours=round(fastest["released"] / fastest["ours"], 3),
        plain_over_ours=round(fastest["plain swin"] / fastest["ours"], 3),
        our_swin_over_ours=round(fastest["our swin"] / fastest["ours"], 3),
        agreement=max(float(np.abs(a - b).max()) for a, b in pairs),
        magnitude=max(float(np.abs(each).max()) for each in answers["released"]),
        load_average=tuple(round(each, 1) for each in os.getloadavg()),
        date=datetime.now(UTC).date().isoformat(),
        machine=f"{platform.machine()} {platform.system()} {platform.release()}",
        cpus=os.cpu_count() or 1,
        versions={name: version(name) for name in ("saccade", "onnxruntime", "torch", "timm")},
    )


def as_released(backbone: nn.Module) -> nn.Module:
    """`backbone` with the official windowed cross-attention: gather, then normalise and project."""
    for block in backbone.modules():
        if isinstance(block, DenseGeneration | DenseRefinement | DenseRecovery):
            block.windowed = functools.partial(_gather_then_project, block)  # type: ignore[method-assign]
    return backbone


def _gather_then_project(
    block: CrossBlock,
    queries: Tensor,
    keys: Tensor,
    q_window: int,
    k_window: int,
    k_stride: int,
    k_before: int,
) -> Tensor:
    """`CrossBlock.windowed` over raw windows of keys, (B, H, W, C) -> (B, H, W, C)."""
    height, width, channels = queries.shape[1:]
    rows, columns = -(-height // q_window), -(-width // q_window)
    padded = F.pad(queries, (0, 0, 0, columns * q_window - width, 0, rows * q_window - height))
    q_raw = padded.unflatten(2, (columns, q_window)).unflatten(1, (rows, q_window))
    q = block.attn.q(block.norm1(q_raw.permute(0, 1, 3, 2, 4, 5).flatten(3, 4).flatten(1, 2)))

    right, below = columns * k_stride - keys.shape[2], rows * k_stride - keys.shape[1]
    after = k_window - k_stride - k_before
    framed = F.pad(keys, (0, 0, k_before, right + after, k_before, below + after))
    windows = F.unfold(framed.permute(0, 3, 1, 2), k_window, stride=k_stride)
    k_raw = windows.unflatten(1, (channels, k_window**2)).permute(0, 3, 2, 1)
    k, v = block.attn.kv(block.norm1(k_raw)).chunk(2, dim=-1)

    padding = below + rows * q_window - height, right + columns * q_window - width
    mask = _pad_mask((rows * k_stride, columns * k_stride), padding, k_window, k_stride, k_before)
    q, k, v = (t.unflatten(-1, (block.attn.heads, -1)).transpose(2, 3) for t in (q, k, v))
    logits = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    weights = (logits if mask is None else logits + mask).softmax(-1)
    out = (weights @ v).transpose(2, 3).flatten(-2)
    grid = out.unflatten(2, (q_window, q_window)).unflatten(1, (rows, columns)).permute(0, 1, 3, 2, 4, 5)
    return grid.flatten(3, 4).flatten(1, 2)[:, :height, :width]


def _pad_mask(
    grid: tuple[int, int], padding: tuple[int, int], k_window: int, k_stride: int, k_before: int
) -> Tensor | None:
    """(windows, 1, 1, k_window^2) to add to the logits; None where it would be uniform and cancel."""
    if padding == (0, 0):
        return None
    barred = torch.zeros(1, 1, *grid)
    from_row, from_column = (max(n - pad, 0) if pad else 0 for n, pad in zip(grid, padding, strict=True))
    barred[..., from_row:, from_column:] = -1000.0
    after = k_window - k_stride - k_before
    framed = F.pad(barred, (k_before, after, k_before, after), value=-1000.0)
    return F.unfold(framed, k_window, stride=k_stride)[0].transpose(0, 1)[:, None, None]


class PlainSwin(nn.Module):
    """timm's Swin as a detection backbone: (1, 3, *size_hw) -> four maps (1, C_i, H_i, W_i)."""

    def __init__(self, size: str, size_hw: tuple[int, int]) -> None:
        super().__init__()
        name = f"swin_{size}_patch4_window7_224"
        self.trunk = timm.create_model(name, features_only=True, img_size=size_hw, window_size=7).eval()
        self.norms = nn.ModuleList(nn.LayerNorm(width) for width in self.trunk.feature_info.channels())

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        maps = zip(self.norms, self.trunk(image), strict=True)
        return tuple(norm(each).permute(0, 3, 1, 2) for norm, each in maps)


def _plain_export(model: nn.Module, size_hw: tuple[int, int]) -> onnx.ModelProto:
    """What PyTorch's exporter makes of `model` by itself."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            model.eval(), (torch.randn(1, 3, *size_hw),), dynamo=True, input_names=["image"], verbose=False
        )
    if program is None:
        raise ExportError("torch.onnx.export returned nothing for the plain Swin")
    return program.model_proto


def _export(model: nn.Module, size_hw: tuple[int, int]) -> onnx.ModelProto:
    return inline(export_graph(model, [picture(size_hw)], outputs=OUTPUTS, name="backbone"))


def _session(graph: onnx.ModelProto) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])


def _timing(name: str, samples: list[tuple[float, float]]) -> Timing:
    walls, processors = zip(*samples, strict=True)
    return Timing(
        name=name,
        passes=len(samples),
        median_s=round(statistics.median(walls), 3),
        fastest_s=round(min(walls), 3),
        median_processor_s=round(statistics.median(processors), 3),
        fastest_processor_s=round(min(processors), 3),
    )


def main() -> None:
    """Measure from the command line, print the record, and keep it where asked."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", choices=("tiny", "small", "base"), default="small")
    parser.add_argument("--height", type=int, default=800)
    parser.add_argument("--width", type=int, default=1344)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, help="folder for the record")
    given = parser.parse_args()
    record = json.dumps(asdict(measure(given.size, (given.height, given.width), given.rounds)), indent=1)
    print(record)
    if given.out:
        given.out.mkdir(parents=True, exist_ok=True)
        (given.out / f"detection_backbone_{given.size}.json").write_text(record + "\n")


if __name__ == "__main__":
    main()
