"""What the machine says of itself while something is measured: processor time, energy, memory, versions."""

from __future__ import annotations

import ctypes
import os
import platform
import re
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

from saccade import tuning

RAPL = Path("/sys/class/powercap")
LIBRARIES = (
    "saccade",
    "numpy",
    "onnxruntime",
    "onnxruntime-gpu",
    "openvino",
    "torch",
    "timm",
    "onnx",
    "tensorrt",
)


def describe() -> str:
    """The processor, as its maker calls it, and the kernel."""
    name = tuning.processor() or platform.processor()
    return f"{name}, {platform.machine()} {platform.system()} {platform.release()}".lstrip(", ")


def versions(names: Sequence[str] = LIBRARIES) -> dict[str, str]:
    """Of the distributions among `names` that are installed."""
    return tuning.versions(names)


def peak_rss_mib() -> float:
    """The most memory that this process has had resident.

    `getrusage` would count what the parent had when it started this process.
    """
    match = re.search(
        r"^VmHWM:\s*(\d+) kB$", Path("/proc/self/status").read_text(encoding="ascii"), re.MULTILINE
    )
    assert match is not None  # Linux always says
    return int(match.group(1)) / 1024


def machine_busy_s() -> float | None:
    """Processor seconds that all processes together have used since the start; None off Linux."""
    try:
        fields = Path("/proc/stat").read_text(encoding="ascii").split("\n", 1)[0].split()[1:]
    except OSError:
        return None
    user, nice, system, _, _, irq, softirq, steal = (int(field) for field in fields[:8])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def energy_meter(device: str) -> Callable[[], float] | None:
    """A function that reads joules used so far, of the GPU or of all processor packages; None without one."""
    return _nvml_joules(int(device.partition(":")[2] or 0)) if device != "cpu" else _rapl_joules()


def _rapl_joules() -> Callable[[], float] | None:
    """Of packages only: what lies inside of them is counted in them. A counter that wraps is unwrapped."""
    counters = [path / "energy_uj" for path in sorted(RAPL.glob("intel-rapl:*")) if path.name.count(":") == 1]
    try:
        last = {path: int(path.read_text()) for path in counters}
        limits = {path: int((path.parent / "max_energy_range_uj").read_text()) for path in counters}
    except (OSError, ValueError):  # since 2020 only root may read them
        return None
    if not counters:
        return None
    total = 0

    def read() -> float:
        nonlocal total
        for path in counters:
            now = int(path.read_text())
            total += now - last[path] if now >= last[path] else now + limits[path] - last[path]
            last[path] = now
        return total / 1e6

    return read


@cache
def _nvml() -> ctypes.CDLL | None:
    try:
        library = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return None
    return library if library.nvmlInit_v2() == 0 else None


def _nvml_device(index: int) -> tuple[ctypes.CDLL, ctypes.c_void_p] | None:
    library, handle = _nvml(), ctypes.c_void_p()
    if library is None or library.nvmlDeviceGetHandleByIndex_v2(index, ctypes.byref(handle)) != 0:
        return None
    return library, handle


def _nvml_joules(index: int) -> Callable[[], float] | None:
    device = _nvml_device(index)
    millijoules = ctypes.c_ulonglong()
    if device is None:
        return None
    library, handle = device
    if library.nvmlDeviceGetTotalEnergyConsumption(handle, ctypes.byref(millijoules)) != 0:
        return None

    def read() -> float:
        library.nvmlDeviceGetTotalEnergyConsumption(handle, ctypes.byref(millijoules))
        return millijoules.value / 1e3

    return read


class _NvmlMemory(ctypes.Structure):
    """nvmlMemory_t: bytes."""

    _fields_ = (("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong))


def device_used_mib(device: str) -> float | None:
    """Memory in use on the whole GPU; None for the CPU and without a driver."""
    found = _nvml_device(int(device.partition(":")[2] or 0)) if device != "cpu" else None
    memory = _NvmlMemory()
    if found is None or found[0].nvmlDeviceGetMemoryInfo(found[1], ctypes.byref(memory)) != 0:
        return None
    return memory.used / 2**20
