"""Every kernel to PTX with its launch record, ahead of time and without a GPU.

    python -m saccade.engines.kernels.compile            # into engines/data/ptx
    python -m saccade.engines.kernels.compile --check    # compile again and compare with what is there

Needs the Triton of the records to give the same bytes. Neither the wheel's users nor TensorRT need Triton.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from saccade.engines.kernels import lint, resize_frames
from saccade.engines.kernels.launch import DTYPES, HEAD_DIMS, Kernel
from saccade.engines.kernels.ptx import RECORDS, SCHEMA, LaunchRecord
from saccade.engines.kernels.registry import KERNELS
from saccade.errors import MissingDependency

ARCHITECTURES = (75, 80)  # Turing, and Ampere with everything after it; more only where measured to pay
PTX_VERSION = "8.0"  # CUDA 12.0's, so that every driver from 525 on takes it
ALIGNMENT = 16
FOLDER = Path(__file__).resolve().parents[1] / "data" / "ptx"

_TRITON_TYPES = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16", "uint8": "u8", "int32": "i32"}


@dataclass(frozen=True, slots=True)
class Variant:
    """One kernel to compile. parameters: (name, type) in order; constants follow them."""

    function: Any
    dtype: str
    arch: int
    parameters: tuple[tuple[str, str], ...]
    constants: Mapping[str, int]
    num_warps: int
    num_stages: int
    grid: tuple[str, ...]

    @property
    def name(self) -> str:
        """Of the file, without suffix."""
        constants = "".join(f".{key.lower()}{value}" for key, value in self.constants.items())
        return f"{self.function.__name__}.{self.dtype}{constants}.sm_{self.arch}"


def variants() -> Iterator[Variant]:
    """Everything that ships."""
    for arch in ARCHITECTURES:
        for dtype in DTYPES:
            if arch >= 80 or dtype != "bfloat16":  # Turing has no bfloat16
                for kernel in KERNELS.values():
                    for head_dim in HEAD_DIMS:
                        yield from (_attention(kernel, dtype, arch, head_dim, tile) for tile in kernel.tiles)
        yield from (_resize(dtype, arch) for dtype in ("float32", "float16"))


def _attention(kernel: Kernel, dtype: str, arch: int, head_dim: int, tile: int) -> Variant:
    schedule = kernel.schedule(tile, dtype, arch)
    kinds = {name: "int32" for name in kernel.scalars}
    return Variant(
        function=kernel.function,
        dtype=dtype,
        arch=arch,
        parameters=tuple((name, kinds.get(name, f"*{dtype}")) for name in kernel.parameters),
        constants={"D": head_dim, "TILE": tile, "KEYS": schedule.keys},
        num_warps=schedule.num_warps,
        num_stages=schedule.num_stages,
        grid=kernel.formula,
    )


def _resize(dtype: str, arch: int) -> Variant:
    return Variant(
        function=resize_frames.resize_frames,
        dtype=dtype,
        arch=arch,
        parameters=resize_frames.parameters(dtype),
        constants={"BLOCK": resize_frames.BLOCK},
        num_warps=resize_frames.NUM_WARPS,
        num_stages=1,
        grid=("ceil(height * width / BLOCK)", "frames", "1"),
    )


def compile_variant(variant: Variant) -> tuple[LaunchRecord, str]:
    """PTX and record of one kernel. Raises ValueError where Triton's output breaks a rule of `lint`."""
    triton, source, target = _triton_source(variant)
    options = {
        "num_warps": variant.num_warps,
        "num_stages": variant.num_stages,
        "ptx_version": int(PTX_VERSION.replace(".", "")),
        "enable_fp_fusion": True,
    }
    compiled = triton.compile(source, target=target, options=options)
    metadata = compiled.metadata
    scratch = metadata.global_scratch_size, metadata.profile_scratch_size
    if any(scratch):
        raise ValueError(f"{variant.name} wants scratch memory: {scratch} bytes")
    ptx = _without_comments(lint.strip_hidden(compiled.asm["ptx"], len(variant.parameters)))
    record = LaunchRecord(
        kernel=variant.function.__name__,
        file=f"{variant.name}.ptx.gz",
        sha256=hashlib.sha256(ptx.encode("ascii")).hexdigest(),
        arch=variant.arch,
        ptx_version=PTX_VERSION,
        triton=triton.__version__,
        dtype=variant.dtype,
        constants=variant.constants,
        num_warps=metadata.num_warps,
        shared_bytes=metadata.shared,
        parameters=variant.parameters,
        grid=variant.grid,
        alignment=ALIGNMENT,
    )
    if found := lint.problems(ptx, record):
        raise ValueError(f"{variant.name}: {'; '.join(found)}")
    return record, ptx


def _triton_source(variant: Variant) -> tuple[Any, Any, Any]:
    """(triton, source, target), with line information off: it holds paths of this machine."""
    if os.environ.get("TRITON_INTERPRET") == "1":
        raise MissingDependency("Triton interprets here: unset TRITON_INTERPRET and start again")
    try:
        import triton
        from triton.backends.compiler import GPUTarget
        from triton.compiler import ASTSource
    except ImportError as error:
        raise MissingDependency("compiling kernels needs Triton: pip install triton") from error
    triton.knobs.compilation.disable_line_info = True
    triton.knobs.compilation.always_compile = True
    constants: dict[str, int | bool] = dict(variant.constants)
    if "D" in constants:
        constants["WIDEN"] = False
    signature = {name: _triton_type(kind) for name, kind in variant.parameters}
    aligned = {
        (index,): [["tt.divisibility", ALIGNMENT]]
        for index, (_, kind) in enumerate(variant.parameters)
        if kind.startswith("*")
    }
    signature |= dict.fromkeys(constants, "constexpr")
    source = ASTSource(variant.function, signature, constants, aligned)
    return triton, source, GPUTarget("cuda", variant.arch, 32)


def _triton_type(kind: str) -> str:
    return f"*{_TRITON_TYPES[kind[1:]]}" if kind.startswith("*") else _TRITON_TYPES[kind]


def _without_comments(ptx: str) -> str:
    lines = (line.partition("//")[0].rstrip() for line in ptx.splitlines())
    return "\n" + "\n".join(line for line in lines if line) + "\n"


def write(folder: Path, kernels: Sequence[tuple[LaunchRecord, str]]) -> None:
    """Replace the contents of `folder`: PTX first, then the records, then what they no longer name."""
    folder.mkdir(parents=True, exist_ok=True)
    for record, ptx in kernels:
        _replace(folder / record.file, gzip.compress(ptx.encode("ascii"), 9, mtime=0))
    data = {"schema": SCHEMA, "kernels": [record.to_json() for record, _ in kernels]}
    _replace(folder / RECORDS, (json.dumps(data, indent=1) + "\n").encode())
    kept = {RECORDS, *(record.file for record, _ in kernels)}
    for path in folder.iterdir():
        if path.name not in kept:
            path.unlink()


def _replace(path: Path, content: bytes) -> None:
    temporary = path.with_name(f".{path.name}.new")
    temporary.write_bytes(content)
    temporary.replace(path)


def main(arguments: Sequence[str] | None = None) -> int:
    """Compile everything; 1 where --check finds a difference."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder to replace")
    parser.add_argument("--check", action="store_true", help="compare with the folder, write nothing")
    options = parser.parse_args(arguments)
    compiled = []
    for variant in variants():
        record, ptx = compile_variant(variant)
        print(
            f"{record.file}: {len(ptx)} bytes, {record.shared_bytes} shared, {record.sha256[:12]}", flush=True
        )
        compiled.append((record, ptx))
    if not options.check:
        write(options.out, compiled)
        return 0
    there = json.loads((options.out / RECORDS).read_text("utf-8"))["kernels"]
    here = json.loads(json.dumps([record.to_json() for record, _ in compiled]))
    changed = [new["file"] for new, old in zip(here, there, strict=False) if new != old]
    if changed or len(here) != len(there):
        print(f"{len(changed)} of {len(there)} records differ: {', '.join(changed[:5])}", file=sys.stderr)
        return 1
    print(f"{len(there)} records are what this Triton compiles")
    return 0


if __name__ == "__main__":
    sys.exit(main())
