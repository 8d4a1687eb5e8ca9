"""Models, whole or block by block, on this GPU with the project's kernels and without, eager and compiled.

    python -m saccade.benchmarks.kernel_models --out benchmarks/results
    python -m saccade.benchmarks.kernel_models --blocks --batch 8 --out benchmarks/results

STViT-R-Swin-S/B and Swin-S/B with random weights, in fp16. A block is one residual block with attention and
MLP; those of equal sizes are measured once, on what the model feeds the first of them. Every form is replayed
from a CUDA graph: launches from Python are not timed. Outputs of the forms are compared first. Needs an
NVIDIA GPU. On a machine that is lent for a while, these are the lines that say all there is to say:

    make test-gpu
    make test-sanitizer
    python -m saccade.benchmarks.kernels --out benchmarks/results
    python -m saccade.benchmarks.kernel_models --out benchmarks/results
    python -m saccade.benchmarks.kernel_models --blocks --batch 8 --out benchmarks/results

Whether TensorRT for RTX runs there is said by
`saccade accept digits-stvit --precision fp32 --flavour tensorrt_rtx`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor, nn

import saccade.engines.kernels.torch_operators  # noqa: F401 - registers torch.ops.saccade
from saccade.benchmarks.kernels import time_us
from saccade.engines.tensorrt.gpu import require_gpu
from saccade.errors import EngineError, SaccadeError
from saccade.models import attention, create
from saccade.models.stvit import CrossBlock
from saccade.models.swin import SwinBlock

MODELS = ("stvit_r_swin_small", "stvit_r_swin_base", "swin_small", "swin_base")
BATCHES = (1, 8, 64, 256)
NEAR = 0.05  # of the largest value: what fp16 and another order of sums may change in a whole network
_LARGE_BATCH = 64  # from here on one call fills a graph


@dataclass(frozen=True, slots=True)
class Form:
    """How a model is run: with the kernels or in plain torch, eager or through torch.compile."""

    kernels: bool
    compiled: bool

    @property
    def name(self) -> str:
        return f"{'kernels' if self.kernels else 'plain'}, {'compiled' if self.compiled else 'eager'}"


FORMS = tuple(Form(kernels, compiled) for compiled in (False, True) for kernels in (False, True))


@dataclass(frozen=True, slots=True)
class Latency:
    """Median milliseconds of one batch in a CUDA-graph replay, by form.

    block: the kind, sizes and shift of one block of the model; "" for the whole model.
    error: what stopped a form, by its name; it then has no latency. fastest: the name of the quickest form.
    """

    model: str
    batch: int
    dtype: str
    latency_ms: Mapping[str, float]
    error: Mapping[str, str]
    block: str = ""

    @property
    def fastest(self) -> str:
        return min(self.latency_ms, key=lambda name: self.latency_ms[name], default="")


@contextlib.contextmanager
def attending(form: Form) -> Iterator[None]:
    """The block in which models run as `form` says."""
    with contextlib.nullcontext() if form.kernels else attention.without_kernels():
        yield


def runner(module: nn.Module, form: Form) -> Callable[..., Tensor]:
    """`module` as `form` runs it; call it within `attending(form)`."""
    if not form.compiled:
        return module
    torch._dynamo.reset()  # the choice of kernels is made while compiling
    compiled: Callable[..., Tensor] = torch.compile(module, dynamic=False)
    return compiled


def blocks(module: nn.Module, image: Tensor) -> dict[str, tuple[nn.Module, tuple[Tensor, ...]]]:
    """The blocks of a model that differ in kind, sizes or shift, each with what it is fed for `image`."""
    found: dict[str, tuple[nn.Module, tuple[Tensor, ...]]] = {}

    def keep(block: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        sizes = " and ".join("x".join(map(str, each.shape)) for each in inputs)
        shift = f" shift {block.attn.shift}" if isinstance(block, SwinBlock) else ""
        found.setdefault(f"{type(block).__name__} {sizes}{shift}", (block, inputs))

    kinds = SwinBlock, CrossBlock
    hooks = [each.register_forward_pre_hook(keep) for each in module.modules() if isinstance(each, kinds)]
    try:
        with attention.without_kernels():
            module(image)
    finally:
        for hook in hooks:
            hook.remove()
    return found


def measure(
    name: str, module: nn.Module, inputs: tuple[Tensor, ...], dtype: torch.dtype, block: str = ""
) -> Latency:
    """Every form of one model or block. A form that fails, or answers otherwise, has an error."""
    batch = len(inputs[0])
    with attention.without_kernels():
        expected = module(*inputs)
    found: dict[str, float] = {}
    errors: dict[str, str] = {}
    for form in FORMS:
        try:
            with attending(form):
                run = runner(module, form)
                apart = ((run(*inputs) - expected).abs().max() / expected.abs().max()).item()
                if not apart <= NEAR:
                    raise EngineError(f"differs by {apart:.2g} of the largest value from plain, eager")
                repeats = 1 if batch >= _LARGE_BATCH else 8
                found[form.name] = round(time_us(lambda run=run: run(*inputs), repeats) / 1e3, 4)  # type: ignore[misc]
        except (
            RuntimeError,
            SaccadeError,
        ) as error:  # memory, the compiler, a kernel that cannot be launched
            errors[form.name] = str(error).splitlines()[0]
            torch.cuda.empty_cache()
    return Latency(name, batch, str(dtype).removeprefix("torch."), found, errors, block)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and keep the record; 1 where a form failed or answered otherwise."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="*", default=list(MODELS), metavar="NAME")
    parser.add_argument("--batch", type=int, nargs="+", default=list(BATCHES))
    parser.add_argument("--dtype", default="float16", choices=["float32", "float16", "bfloat16"])
    parser.add_argument("--blocks", action="store_true", help="each kind of block instead of whole models")
    parser.add_argument("--out", type=Path, help="folder for the record")
    options = parser.parse_args(arguments)
    gpu = require_gpu()
    dtype = getattr(torch, options.dtype)
    rows = []
    with torch.inference_mode():
        for name in options.models:
            torch.manual_seed(0)
            module = create(name).eval().to("cuda", dtype)
            for batch in options.batch:
                image = torch.randn(batch, 3, 224, 224, device="cuda", dtype=dtype)
                parts = blocks(module, image) if options.blocks else {"": (module, (image,))}
                for block, (part, inputs) in parts.items():
                    rows.append(measure(name, part, inputs, dtype, block))
                    print(json.dumps(asdict(rows[-1])), flush=True)
    record = {
        **asdict(gpu),
        "versions": {each: version(each) for each in ("saccade", "torch", "triton")},
        "date": datetime.now(UTC).date().isoformat(),
        "rows": [{**asdict(row), "fastest": row.fastest} for row in rows],
    }
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        what = "blocks" if options.blocks else "models"
        path = options.out / f"kernel_{what}_{gpu.name.lower().replace(' ', '_')}.json"
        path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return 1 if any(row.error for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
