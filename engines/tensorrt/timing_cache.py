"""What the builder measured before, kept per version and GPU: a second build of alike layers is quick."""

from __future__ import annotations

import os
import re
import secrets
from pathlib import Path

from saccade.engines.tensorrt.bindings import IBuilderConfig
from saccade.engines.tensorrt.flavours import Flavour
from saccade.engines.tensorrt.gpu import Gpu


def attach(
    config: IBuilderConfig, chosen: Flavour, folder: Path | None, version: str, gpu: Gpu | None
) -> Path | None:
    """Give the builder its earlier timings. The file to keep them in; None where the flavour times nothing.

    A damaged or foreign file counts as none: it is only a matter of time.
    """
    if not chosen.timing_cache or folder is None or gpu is None:
        return None
    name = f"{chosen.name}-{version}-{gpu.name}-sm{gpu.capability}-driver{gpu.driver}"
    path = folder / f"{re.sub(r'[^A-Za-z0-9.]+', '-', name)}.timing"
    earlier = path.read_bytes() if path.is_file() else b""
    for content in (earlier, b""):
        cache = config.create_timing_cache(content)
        if cache is not None and config.set_timing_cache(cache, False):
            return path
    return None


def keep(config: IBuilderConfig, path: Path) -> None:
    """Write the timings, whole or not at all. Of two builds at once the later one's file stays."""
    cache = config.get_timing_cache()
    content = None if cache is None else cache.serialize()
    if content is None:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    staging = path.with_name(f".{path.name}-{secrets.token_hex(4)}")
    try:
        staging.write_bytes(memoryview(content))  # type: ignore[arg-type]  # the buffer protocol
        os.replace(staging, path)
    finally:
        staging.unlink(missing_ok=True)
