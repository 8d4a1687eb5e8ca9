"""Latency of every kernel on this GPU, beside what torch would do instead, and the share of its two limits.

    python -m saccade.benchmarks.kernels --batch 1 8 64 --out benchmarks/results

For each shape of STViT-R and Swin, S and B: the shipped kernel, the plain form (windows gathered, then
torch's scaled_dot_product_attention), that form under torch.compile, and the attention alone on keys and
values that are gathered already. Each is replayed from a CUDA graph of REPEATS calls: launches from Python
are not timed. `bandwidth_share` is the least number of bytes that any form moves, over the kernel's time,
over what a copy of a large tensor reaches on this GPU; `matrix_share` is the arithmetic of the two matrix
products, over the kernel's time, over what a product of large matrices of that type reaches. The larger of
the two says how near the kernel is to what the GPU can do. Needs an NVIDIA GPU.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

import saccade.engines.kernels.torch_operators  # noqa: F401 - registers torch.ops.saccade
from saccade.engines.kernels.registry import KERNELS
from saccade.engines.kernels.traffic import traffic
from saccade.engines.tensorrt.gpu import require_gpu
from saccade.errors import EngineError
from saccade.models import attention

REPEATS = 20
ROUNDS = 25
Shapes = tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True)
class Case:
    """One operator at one shape of one model."""

    name: str
    operator: str
    shapes: Shapes
    attributes: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Timing:
    """Median microseconds of one call inside a CUDA-graph replay, for each form.

    sdpa: attention alone on gathered keys and values, a bound for every form that gathers first; None where
    the plain form gathers nothing.
    """

    name: str
    operator: str
    dtype: str
    shapes: Shapes
    kernel_us: float
    plain_us: float
    compiled_us: float
    sdpa_us: float | None
    least_bytes: int
    kernel_bytes: int
    bandwidth_share: float
    flops: int
    matrix_share: float
    max_difference: float

    @property
    def slower(self) -> bool:
        """Whether torch's own form beats the kernel, which the documentation must then say."""
        return self.kernel_us > min(self.plain_us, self.compiled_us)


@dataclass(frozen=True, slots=True)
class Record:
    """Everything measured in one run, with what it ran on."""

    gpu: str
    compute_capability: str
    driver: str
    versions: Mapping[str, str]
    date: str
    copy_gb_per_s: float
    matrix_tflop_per_s: Mapping[str, float]
    timings: tuple[Timing, ...]


def cases(batch: int) -> Iterator[Case]:
    """The calls of STViT-R and Swin at 224, S and B, and of the detection backbone at 800x1344."""
    for size, width in (("S", 96), ("B", 128)):
        for stage in range(4):
            side, channels = 56 >> stage, width << stage
            yield from _shifted(f"Swin-{size} stage {stage + 1}", batch, side, side, channels)
        channels, heads = 4 * width, 4 * width // 32
        x, s = (batch, 14, 14, channels), (batch, 6, 6, channels)
        kv_x, kv_s = (*x[:3], 2 * channels), (*s[:3], 2 * channels)
        seeds = {"heads": heads, "q_window": 3, "k_window": 10, "k_stride": 4}
        yield Case(f"STViT-R-{size} generation", "SeededWindowAttention", (s, kv_s, kv_x), seeds)
        every = {"heads": heads}
        both = (batch, 1, 232, 2 * channels)
        yield Case(f"STViT-R-{size} refinement", "TokenAttention", (s, both), every)
        yield Case(f"STViT-R-{size} global", "TokenAttention", (s, kv_s), every)
        yield Case(f"STViT-R-{size} recovery", "TokenAttention", (x, kv_s), every)
        yield _cross(f"STViT-R-{size} local", s, kv_s, 3, 3, 3, 0)
        if batch <= 4:
            x, s = (batch, 50, 84, channels), (batch, 24, 36, channels)
            kv_x, kv_s = (*x[:3], 2 * channels), (*s[:3], 2 * channels)
            yield _cross(f"STViT-R-{size} detection generation", s, kv_x, 3, 14, 7, 3)
            yield _cross(f"STViT-R-{size} detection refinement", s, kv_x, 3, 21, 7, 7)
            yield _cross(f"STViT-R-{size} detection recovery", x, kv_s, 7, 27, 3, 12)
            yield Case(f"STViT-R-{size} detection global", "TokenAttention", (s, kv_s), every)
            yield from _shifted(f"Swin-{size} detection stage 1", batch, 200, 336, width)


def _shifted(name: str, batch: int, height: int, width: int, channels: int) -> Iterator[Case]:
    heads = channels // 32
    shapes = (batch, height, width, 3 * channels), (3 * channels,), (heads, 49, 49)
    for shift in (0, 3) if min(height, width) > 7 else (0,):
        attributes = {"heads": heads, "window": 7, "shift": shift}
        yield Case(f"{name} shift {shift}", "ShiftedWindowAttention", shapes, attributes)


def _cross(
    name: str, q: tuple[int, ...], kv: tuple[int, ...], q_window: int, k_window: int, stride: int, before: int
) -> Case:
    windows = {"q_window": q_window, "k_window": k_window, "k_stride": stride, "k_before": before}
    return Case(name, "WindowCrossAttention", (q, kv, (kv[3],)), {"heads": q[3] // 32, **windows})


def flops(case: Case) -> int:
    """Multiplications and additions of queries by keys and of weights by values, over whole windows."""
    kernel, (batch, *_) = KERNELS[case.operator], case.shapes[0]
    channels = case.attributes["heads"] * kernel.head_dim(case.shapes, case.attributes)
    queries = kernel.windows(case.shapes, case.attributes) * kernel.queries(case.shapes, case.attributes)
    return int(4 * batch * queries * keys(case) * channels)


def keys(case: Case) -> int:
    """How many keys each query sees."""
    attributes = case.attributes
    if case.operator == "TokenAttention":
        return case.shapes[1][1] * case.shapes[1][2]
    own = attributes["q_window"] ** 2 if case.operator == "SeededWindowAttention" else 0
    return own + int(attributes.get("k_window", attributes.get("window", 0)) ** 2)


def measure(case: Case, dtype: torch.dtype, copy_gb_per_s: float, matrix_tflop_per_s: float) -> Timing:
    """Time every form of one case; raises EngineError where kernel and plain form disagree."""
    kernel = KERNELS[case.operator]
    inputs = tuple(torch.randn(shape, device="cuda").to(dtype) for shape in case.shapes)
    fast = getattr(torch.ops.saccade, kernel.name)
    plain = getattr(attention, kernel.name)
    compiled = torch.compile(plain, dynamic=False)
    with attention.without_kernels():
        expected = plain(*(each.float() for each in inputs), **case.attributes)
        plain_us = time_us(lambda: plain(*inputs, **case.attributes))
        compiled_us = time_us(lambda: compiled(*inputs, **case.attributes))
    difference = (fast(*inputs, **case.attributes).float() - expected).abs().max().item()
    limit = 1e-4 if dtype == torch.float32 else 0.03
    if not difference < limit:
        raise EngineError(f"{case.name} in {dtype} differs by {difference:.1e} from torch, over {limit:.0e}")
    moved = traffic(kernel, case.shapes, case.attributes, inputs[0].element_size())
    kernel_us = time_us(lambda: fast(*inputs, **case.attributes))
    return Timing(
        name=case.name,
        operator=case.operator,
        dtype=str(dtype).removeprefix("torch."),
        shapes=case.shapes,
        kernel_us=kernel_us,
        plain_us=plain_us,
        compiled_us=compiled_us,
        sdpa_us=_attention_alone(case, dtype),
        least_bytes=moved.least,
        kernel_bytes=moved.kernel,
        bandwidth_share=round(moved.least / kernel_us / 1e3 / copy_gb_per_s, 4),
        flops=flops(case),
        matrix_share=round(flops(case) / kernel_us / 1e6 / matrix_tflop_per_s, 4),
        max_difference=difference,
    )


def _attention_alone(case: Case, dtype: torch.dtype) -> float | None:
    """scaled_dot_product_attention on random windows of the case's sizes."""
    kernel = KERNELS[case.operator]
    if case.operator == "TokenAttention":
        return None
    attributes, batch = case.attributes, case.shapes[0][0]
    windows, queries = kernel.windows(case.shapes, attributes), kernel.queries(case.shapes, attributes)
    head_dim = kernel.head_dim(case.shapes, attributes)
    q, k, v = (
        torch.randn(batch * windows, attributes["heads"], tokens, head_dim, device="cuda").to(dtype)
        for tokens in (queries, keys(case), keys(case))
    )
    bias = torch.zeros((1, attributes["heads"], queries, keys(case)), device="cuda").to(dtype)
    mask = None if case.operator == "SeededWindowAttention" else bias
    return time_us(lambda: F.scaled_dot_product_attention(q, k, v, attn_mask=mask))


def time_us(call: Callable[[], Tensor], repeats: int = REPEATS) -> float:
    """Median microseconds of one call, from ROUNDS replays of a CUDA graph of `repeats` calls."""
    for _ in range(3):
        call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(repeats):
            call()
    graph.replay()
    samples = []
    for _ in range(ROUNDS):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        samples.append(start.elapsed_time(end) * 1e3 / repeats)
    return round(statistics.median(samples), 3)


def copy_bandwidth() -> float:
    """GB/s, read and written, of copying a tensor that no cache holds."""
    source = torch.empty(2**28, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return round(2 * source.nbytes / time_us(lambda: target.copy_(source)) / 1e3, 1)


def matrix_speed(dtype: torch.dtype) -> float:
    """TFLOP/s of a product of large square matrices of `dtype`, sums as torch does them."""
    size = 8192 if dtype != torch.float32 else 4096
    a, b = (torch.randn(size, size, device="cuda").to(dtype) for _ in range(2))
    return round(2 * size**3 / time_us(lambda: a @ b, repeats=4) / 1e6, 1)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and keep the record; 1 where a kernel is slower than torch at some shape."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--dtype", nargs="+", default=["float16"], choices=["float32", "float16", "bfloat16"])
    parser.add_argument("--out", type=Path, help="folder for the record")
    options = parser.parse_args(arguments)
    gpu = require_gpu()
    copied = copy_bandwidth()
    multiplied = {dtype: matrix_speed(getattr(torch, dtype)) for dtype in options.dtype}
    timings = []
    with torch.inference_mode():
        for batch in options.batch:
            for case in cases(batch):
                for dtype in options.dtype:
                    torch._dynamo.reset()
                    timing = measure(case, getattr(torch, dtype), copied, multiplied[dtype])
                    print(json.dumps(asdict(timing)), flush=True)
                    timings.append(timing)
    record = Record(
        gpu=gpu.name,
        compute_capability=gpu.capability,
        driver=gpu.driver,
        versions={name: version(name) for name in ("saccade", "torch", "triton")},
        date=datetime.now(UTC).date().isoformat(),
        copy_gb_per_s=copied,
        matrix_tflop_per_s=multiplied,
        timings=tuple(timings),
    )
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        name = f"kernels_{gpu.name.lower().replace(' ', '_')}.json"
        (options.out / name).write_text(json.dumps(asdict(record), indent=1) + "\n")
    slower = [f"{timing.name} {timing.dtype} {timing.shapes[0]}" for timing in timings if timing.slower]
    print(f"slower than torch at {len(slower)} of {len(timings)} shapes: {slower}", file=sys.stderr)
    return 1 if slower else 0


if __name__ == "__main__":
    sys.exit(main())
