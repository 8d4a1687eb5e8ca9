"""Cold start: a whole process from `python` to the first answer, beside the same model in torch.

    python -m saccade.benchmarks.cold_start stvit_r_swin_small --runs 5 --out benchmarks/results

Exports the model with random weights to a temporary folder, then runs both processes in turn: ours imports
saccade, loads the bundle with its sha256 checked, and classifies one JPEG; theirs imports torch and timm,
builds the model, loads the same weights and classifies the same JPEG after timm's preprocessing. The file
cache is warm for both.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

PREPARE = """
import sys, numpy, torch
from pathlib import Path
from PIL import Image
from safetensors.torch import save_file
from saccade.export import export_bundle
from saccade.models import create
folder, model = Path(sys.argv[1]), sys.argv[2]
torch.manual_seed(0)
save_file(create(model).state_dict(), folder / "weights.safetensors")
export_bundle(model, folder / "weights.safetensors", folder / "bundle")
pixels = numpy.random.default_rng(0).integers(0, 256, (480, 640, 3), dtype=numpy.uint8)
Image.fromarray(pixels).save(folder / "picture.jpg", quality=90)
"""

OURS = """
import sys, saccade
with saccade.load(sys.argv[1]) as classify:
    print(classify(sys.argv[3]).top(1))
"""

THEIRS = """
import sys, torch
from PIL import Image
from timm.data import create_transform
from saccade.models import create
model = create(sys.argv[4], checkpoint=sys.argv[2])
transform = create_transform(224, interpolation="bicubic", crop_pct=0.875)
with torch.inference_mode():
    image = transform(Image.open(sys.argv[3]).convert("RGB"))
    print(model(image[None]).softmax(1).max(1))
"""


@dataclass(frozen=True, slots=True)
class Process:
    """Whole-process figures of several runs: wall seconds and peak resident memory in MiB."""

    name: str
    runs: int
    median_s: float
    fastest_s: float
    slowest_s: float
    peak_rss_mib: float


@dataclass(frozen=True, slots=True)
class ColdStart:
    """Both processes in one run, and the ratios that count: medians, ours over theirs."""

    model: str
    ours: Process
    theirs: Process
    time_ratio: float
    memory_ratio: float
    date: str
    machine: str
    cpus: int
    versions: dict[str, str]


def measure(model: str, runs: int) -> ColdStart:
    """Export `model` with random weights and time both processes, alternating, after one warm-up each."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        # In a process of its own: the kernel counts the parent's memory into a child's peak.
        subprocess.run([sys.executable, "-c", PREPARE, scratch, model], check=True)
        arguments = [str(folder / "bundle"), str(folder / "weights.safetensors"), str(folder / "picture.jpg")]
        samples: dict[str, list[tuple[float, float]]] = {"saccade": [], "torch": []}
        for round_ in range(runs + 1):
            for name, program in (("saccade", OURS), ("torch", THEIRS)):
                sample = _run([sys.executable, "-c", program, *arguments, model])
                if round_:
                    samples[name].append(sample)
    ours, theirs = (_summary(name, figures) for name, figures in samples.items())
    return ColdStart(
        model=model,
        ours=ours,
        theirs=theirs,
        time_ratio=round(ours.median_s / theirs.median_s, 3),
        memory_ratio=round(ours.peak_rss_mib / theirs.peak_rss_mib, 3),
        date=datetime.now(UTC).date().isoformat(),
        machine=f"{platform.machine()} {platform.system()} {platform.release()}",
        cpus=os.cpu_count() or 1,
        versions={
            name: version(name) for name in ("saccade", "onnxruntime", "numpy", "pillow", "torch", "timm")
        },
    )


def _run(command: Sequence[str]) -> tuple[float, float]:
    """(wall seconds, peak MiB) of one process, from the kernel's accounting of it."""
    start = time.perf_counter()
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=errors)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            errors.seek(0)
            raise RuntimeError(f"{command[2]} failed:\n{errors.read().decode()}")
    return seconds, usage.ru_maxrss / 1024


def _summary(name: str, samples: Sequence[tuple[float, float]]) -> Process:
    seconds = [sample[0] for sample in samples]
    return Process(
        name=name,
        runs=len(samples),
        median_s=round(statistics.median(seconds), 3),
        fastest_s=round(min(seconds), 3),
        slowest_s=round(max(seconds), 3),
        peak_rss_mib=round(statistics.median(sample[1] for sample in samples), 1),
    )


def main() -> None:
    """Measure from the command line, print the record, and keep it where asked."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", nargs="?", default="stvit_r_swin_small")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--out", type=Path, help="folder for the record")
    arguments = parser.parse_args()
    record = json.dumps(asdict(measure(arguments.model, arguments.runs)), indent=1)
    print(record)
    if arguments.out:
        arguments.out.mkdir(parents=True, exist_ok=True)
        (arguments.out / f"cold_start_{arguments.model}.json").write_text(record + "\n")


if __name__ == "__main__":
    main()
