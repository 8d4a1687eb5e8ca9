"""What this machine can run, what is in the way, and the line that mends it.

Two pairs of wheels install the same import package over each other: onnxruntime with onnxruntime-gpu, and
opencv-python with its headless form. pip lets both in, and which one is imported then depends on the order
of installation. `examine` sees them by their distribution names, which survive the overwriting.
"""

from __future__ import annotations

import dataclasses
import importlib
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from saccade.errors import SaccadeError

Status = Literal["ready", "missing", "broken"]


@dataclass(frozen=True, slots=True)
class Part:
    """One engine or optional feature: `version` of its main library, `detail` of what it offers here.

    mend: the line that installs or repairs it; empty where nothing needs doing.
    """

    name: str
    status: Status
    version: str = ""
    detail: str = ""
    mend: str = ""


@dataclass(frozen=True, slots=True)
class Clash:
    """Distributions that overwrite each other's files, and the lines that leave one of them."""

    installed: tuple[str, ...]
    why: str
    mend: str


@dataclass(frozen=True, slots=True)
class Machine:
    """The hardware and the interpreter. Memory in MiB; `gpus` as the NVIDIA driver names them."""

    python: str
    system: str
    cpu: str
    instructions: tuple[str, ...]
    cores: int
    memory_mib: int
    gpus: tuple[str, ...]
    gpu_driver: str


@dataclass(frozen=True, slots=True)
class Report:
    """Everything `saccade doctor` prints.

    healthy: a production engine runs (the reference engine only checks others) and nothing clashes.
    """

    saccade: str
    machine: Machine
    engines: tuple[Part, ...]
    features: tuple[Part, ...]
    clashes: tuple[Clash, ...]

    @property
    def healthy(self) -> bool:
        return not self.clashes and any(p.status == "ready" and p.name != "reference" for p in self.engines)

    def to_json(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "healthy": self.healthy}


def examine() -> Report:
    """Look at this interpreter's packages, this machine and its NVIDIA driver. Takes about a second."""
    installed = installed_versions()
    return Report(
        saccade=installed.get("saccade", "source tree"),
        machine=_machine(),
        engines=_engines(installed),
        features=tuple(_feature(name, installed) for name in _FEATURES),
        clashes=find_clashes(installed),
    )


def installed_versions(path: Sequence[str] | None = None) -> dict[str, str]:
    """Version by normalised distribution name, of everything on `path` (default: this interpreter's)."""
    found = metadata.distributions(path=list(path)) if path is not None else metadata.distributions()
    # Damaged metadata (an interrupted uninstall) has no name; it is not ours to report.
    named = ((d.metadata["Name"], d.version) for d in found)
    return {_normalised(name): version for name, version in named if name}


_OVERWRITING: tuple[tuple[tuple[str, ...], str], ...] = (
    (("onnxruntime", "onnxruntime-gpu"), "both install the package `onnxruntime`"),
    (
        (
            "opencv-python",
            "opencv-python-headless",
            "opencv-contrib-python",
            "opencv-contrib-python-headless",
        ),
        "all install the package `cv2`",
    ),
)
_KEPT = {"onnxruntime": "onnxruntime-gpu", "opencv-python": "opencv-python-headless"}


def find_clashes(installed: Mapping[str, str]) -> tuple[Clash, ...]:
    """Groups that overwrite each other, among `installed` as `installed_versions` gives it."""
    clashes = []
    for group, why in _OVERWRITING:
        present = tuple(name for name in group if name in installed)
        if len(present) > 1:
            # The survivor must be installed again: removing the other took shared files with it.
            kept = _KEPT[group[0]] if _KEPT[group[0]] in present else present[0]
            mend = f"pip uninstall -y {' '.join(present)} && pip install {kept}=={installed[kept]}"
            clashes.append(Clash(tuple(f"{name} {installed[name]}" for name in present), why, mend))
    return tuple(clashes)


def _normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _engines(installed: Mapping[str, str]) -> tuple[Part, ...]:
    gpu = "onnxruntime-gpu" in installed
    return (
        _engine("onnxruntime", "gpu" if gpu else "cpu", _onnxruntime_detail),
        _engine("openvino", "openvino", _openvino_detail),
        _tensorrt(installed),
        _reference(installed),
    )


def _engine(module: str, extra: str, detail: Callable[[Any], str]) -> Part:
    """Import the runtime as the engine would: an installed wheel may still lack a system library."""
    install = f"pip install 'saccade[{extra}]'"
    try:
        library = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name == module:
            return Part(module, "missing", mend=install)
        return Part(module, "broken", detail=str(error), mend=install)
    except Exception as error:  # a native library may raise anything while it loads
        return Part(module, "broken", detail=_first_line(error), mend=f"{install} --force-reinstall")
    try:
        return Part(module, "ready", str(library.__version__).partition("-")[0], detail(library))
    except Exception as error:
        return Part(module, "broken", detail=_first_line(error), mend=f"{install} --force-reinstall")


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _onnxruntime_detail(library: Any) -> str:
    # The CPU wheel also lists Azure, which calls a remote service and runs nothing here.
    names = [name.removesuffix("ExecutionProvider") for name in library.get_available_providers()]
    return ", ".join(name for name in names if name != "Azure")


def _openvino_detail(library: Any) -> str:
    return ", ".join(library.Core().available_devices)


def _reference(installed: Mapping[str, str]) -> Part:
    if "onnx" in installed:
        return Part("reference", "ready", installed["onnx"], "NumPy, slow, for checking the others")
    return Part("reference", "missing", mend="pip install 'saccade[export]'")


def _tensorrt(installed: Mapping[str, str]) -> Part:
    """Flavours by their files alone: some crash where they find no driver."""
    from saccade.engines.tensorrt.flavours import FLAVOURS, is_installed
    from saccade.engines.tensorrt.gpu import require_gpu

    here = [name for name, chosen in FLAVOURS.items() if is_installed(chosen)]
    if not here:
        return Part("tensorrt", "missing", mend=FLAVOURS["tensorrt"].install)
    versions = [f"{name} {_version_like(name, installed)}".strip() for name in here]
    try:
        gpu = require_gpu()
    except SaccadeError as error:
        reason = re.split(r" \(|:", str(error))[0]
        makers = [name for name in here if FLAVOURS[name].capabilities]
        builds = f"; {makers[0]} still builds plans for other machines" if makers else ""
        return Part("tensorrt", "missing", detail=f"{', '.join(versions)}: {reason}{builds}")
    if "cuda-python" not in installed and "cuda-bindings" not in installed:
        return Part("tensorrt", "missing", detail=", ".join(versions), mend="pip install cuda-python")
    return Part("tensorrt", "ready", detail=f"{', '.join(versions)} on {gpu.name}, sm{gpu.capability}")


def _version_like(flavour: str, installed: Mapping[str, str]) -> str:
    """The version of the first distribution named after `flavour`, with or without CUDA's version in it."""
    name = re.escape(flavour.replace("_", "-"))
    return next((v for d, v in installed.items() if re.fullmatch(rf"{name}(-cu\d+)?(-bindings)?", d)), "")


_FEATURES: Mapping[str, tuple[str, tuple[str, ...], str]] = {
    "export": (
        "export",
        ("torch", "torchvision", "timm", "onnx", "onnxscript", "safetensors", "open-clip-torch"),
        "checkpoints to bundles",
    ),
    "tensorrt-rtx": (
        "tensorrt-rtx",
        ("tensorrt-rtx-cu13-bindings",),
        "builds TensorRT plans without a GPU, judges exported graphs",
    ),
    "video": ("video", ("opencv-python-headless", "opencv-python"), "video files"),
    "plots": ("bench", ("matplotlib",), "benchmark reports"),
}
_ANY_OF = frozenset({"video"})


def _feature(name: str, installed: Mapping[str, str]) -> Part:
    extra, needed, purpose = _FEATURES[name]
    missing = [package for package in needed if package not in installed]
    enough = len(missing) < len(needed) if name in _ANY_OF else not missing
    if enough:
        first = next(package for package in needed if package in installed)
        return Part(name, "ready", f"{first} {installed[first]}", purpose)
    lacking = "" if len(missing) == len(needed) else f"; {', '.join(missing)} not installed"
    return Part(name, "missing", detail=purpose + lacking, mend=f"pip install 'saccade[{extra}]'")


def _machine() -> Machine:
    cpu, instructions = _cpu()
    gpus, driver = _nvidia()
    return Machine(
        python=f"{platform.python_version()} ({sys.executable})",
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        cpu=cpu,
        instructions=instructions,
        cores=len(os.sched_getaffinity(0)),
        memory_mib=os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2**20,
        gpus=gpus,
        gpu_driver=driver,
    )


# The extensions that decide which CPU kernels the engines take, slowest first.
_INSTRUCTIONS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16", "asimd", "sve")


def _cpu() -> tuple[str, tuple[str, ...]]:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return platform.machine(), ()
    model = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    flags = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", text, re.MULTILINE)
    present = set(flags.group(1).split()) if flags else set()
    name = model.group(1).strip() if model else platform.machine()
    return name, tuple(name for name in _INSTRUCTIONS if name in present)


def _nvidia() -> tuple[tuple[str, ...], str]:
    """(one line per GPU, driver version); empty without a driver that answers."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return (), ""
    query = [program, "--query-gpu=driver_version,name,memory.total", "--format=csv,noheader"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return (), "nvidia-smi is installed but does not answer"
    rows = [line.split(", ", 1) for line in answer.splitlines() if ", " in line]
    return tuple(gpu for _, gpu in rows), rows[0][0] if rows else ""
