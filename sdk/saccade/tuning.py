"""Which engine `auto` takes for a bundle here: what `saccade tune` measured, kept in the cache.

A choice is good for the graphs, the machine and the versions that it was measured with; where any of them
has changed it is ignored. Reading one costs nothing where none was made: `load` never measures.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from saccade.bundle import Bundle
from saccade.engines.engine import ENGINES, EngineOptions

logger = logging.getLogger("saccade")

_LIBRARIES = ("onnxruntime", "onnxruntime-gpu", "openvino", "tensorrt", "saccade")


@dataclass(frozen=True, slots=True)
class Choice:
    """engine: the fastest. milliseconds: the median time of each engine that was measured, by batch.

    machine, versions: where that was.
    """

    engine: str
    milliseconds: Mapping[str, Mapping[str, float]]
    machine: str
    versions: Mapping[str, str]


def choice(bundle: Bundle, precision: str, options: EngineOptions) -> Choice | None:
    """What was recorded for this bundle, precision, device and number of threads, and still holds here."""
    path = _path(bundle, precision, options)
    try:
        text = path.read_text(encoding="utf-8")
    except OSError:
        return None
    try:
        recorded = Choice(**json.loads(text))
    except (ValueError, TypeError) as error:
        logger.warning("%s is ignored, it cannot be read: %s", path, error)
        return None
    here = {"machine": machine(), "versions": versions()}
    stale = [name for name, value in here.items() if getattr(recorded, name) != value]
    if stale or recorded.engine not in ENGINES:
        logger.info(
            "the engine tuned for %s is ignored, it was measured with other %s: saccade tune %s",
            bundle.name,
            " and ".join(stale) or "engines",
            bundle.path,
        )
        return None
    return recorded


def record(
    bundle: Bundle,
    precision: str,
    options: EngineOptions,
    engine: str,
    milliseconds: Mapping[str, Mapping[str, float]],
) -> Path:
    """Keep `engine` as the choice; returns the file, which is written whole or not at all."""
    path = _path(bundle, precision, options)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}-{secrets.token_hex(4)}")
    made = Choice(engine, milliseconds, machine(), versions())
    temporary.write_text(json.dumps(asdict(made), indent=1) + "\n", encoding="utf-8")
    temporary.rename(path)
    return path


def machine() -> str:
    """The processor and how many of its cores this process may use."""
    return f"{len(os.sched_getaffinity(0))} cores of {processor() or platform.machine()}"


def processor() -> str:
    """As its maker calls it; "" where the kernel does not say."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    model = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return model.group(1).strip() if model else ""


def versions(names: Sequence[str] = _LIBRARIES) -> dict[str, str]:
    """Of the distributions among `names` that are installed; by default what could change the choice."""
    from importlib import metadata

    found = {}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _path(bundle: Bundle, precision: str, options: EngineOptions) -> Path:
    """A file for the content of the graphs, the precision, the device and the number of threads."""
    from saccade.engines.tensorrt.plans import cache

    graphs = {
        name: sorted(_sum(bundle, file) for file in graph.files.values())
        for name, graph in bundle.graphs.items()
    }
    key = json.dumps([graphs, precision, options.device, options.threads], sort_keys=True)
    return cache() / "tuned" / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.json"


def _sum(bundle: Bundle, file: Path) -> str:
    recorded: str = bundle.files[file.relative_to(bundle.path).as_posix()]["sha256"]
    return recorded
