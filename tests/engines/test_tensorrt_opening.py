"""Which plans may be opened, where, and with how much device memory.

No GPU here: TensorRT, CUDA and the driver are stand-ins (fake_tensorrt.py).
"""

from __future__ import annotations

import ctypes
import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.engines.fake_tensorrt import IMAGE, VERSION, World, image

from saccade.engines.engine import EngineOptions, TensorSpec, open_engine
from saccade.engines.tensorrt import plans
from saccade.engines.tensorrt.runtime import TensorRtEngine
from saccade.errors import (
    BundleError,
    EngineError,
    EngineMismatch,
    UsageError,
)


def rewritten(folder: Path, **changes: Any) -> Path:
    """The plan in `folder` with another record."""
    record = json.loads((folder / plans.RECORD).read_text())
    (folder / plans.RECORD).write_text(json.dumps(record | changes))
    return folder


def test_without_a_driver_nothing_is_touched(plan: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(version=VERSION)
    world.enter(monkeypatch)
    monkeypatch.setattr(ctypes, "CDLL", lambda name: (_ for _ in ()).throw(OSError(name)))
    with pytest.raises(EngineError, match=r"no NVIDIA driver .*`nvidia-smi` must work"):
        TensorRtEngine(plan, EngineOptions())
    assert world.faults.calls == []


def test_a_device_that_is_not_there(plan: Path, world: World) -> None:
    with pytest.raises(UsageError, match="'cuda:3' does not exist: the driver has 1"):
        TensorRtEngine(plan, EngineOptions(device="cuda:3"))


def test_another_version_is_refused_with_the_command(plan: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    World(version="11.4.0.7").enter(monkeypatch)
    with pytest.raises(
        EngineMismatch, match=r"built by tensorrt 10\.16\.1\.11, here is 11\.4.*saccade build "
    ):
        TensorRtEngine(plan, EngineOptions())


def test_another_gpu_is_refused_with_the_command(plan: Path, world: World) -> None:
    world.driver.name = b"NVIDIA L4"
    with pytest.raises(EngineMismatch, match=r"for nvidia-h100-80gb-hbm3-sm90, here is NVIDIA L4 \(sm90\)"):
        TensorRtEngine(plan, EngineOptions())


def test_a_version_compatible_plan_runs_on_a_later_version(
    make: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make(version_compatible=True)
    World(version="10.20").enter(monkeypatch)
    with TensorRtEngine(folder, EngineOptions()) as engine:
        assert engine.run({"image": image(1)})["logits"].shape == (1, 10)
    World(version="10.15.9").enter(monkeypatch)
    with pytest.raises(EngineMismatch, match=r"10\.16\.1\.11 or a later 10\.x, here is 10\.15\.9"):
        TensorRtEngine(folder, EngineOptions())


def test_a_changed_plan_is_refused(make: Callable[..., Path], world: World) -> None:
    folder = make()
    (folder / plans.PLAN).write_bytes(b"something else")
    with pytest.raises(BundleError, match="has changed since it was built: saccade build"):
        TensorRtEngine(folder, EngineOptions())


def test_a_plan_from_elsewhere_needs_trust(
    plan: Path, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SACCADE_CACHE", str(tmp_path))
    with pytest.raises(EngineError, match=r"was not built on this machine.*, saccade trust "):
        TensorRtEngine(plan, EngineOptions())
    plans.trust(plan)
    TensorRtEngine(plan, EngineOptions()).close()


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"schema": 2}, BundleError, "has schema 2: pip install -U saccade"),
        ({"options": None}, BundleError, "cannot be read .*: build the plan again"),
        ({"outputs": []}, BundleError, "engine.json names .* the plan has .*: build it again"),
    ],
)
def test_a_record_that_does_not_fit(
    make: Callable[..., Path], world: World, changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        TensorRtEngine(rewritten(make(), **changes), EngineOptions())


def test_memory_limits(make: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(version=VERSION, streamable=100 << 20).enter(monkeypatch)
    plain, streamed = make(), make(weight_streaming=True)
    limit = EngineOptions(memory_limit_mib=30, contexts=64)
    with pytest.raises(EngineError, match="about 64 MiB of device memory, over memory_limit_mib=30"):
        open_engine({"source": plain, "tensorrt": plain}, "tensorrt", limit)
    assert world.engine is None  # it was refused before anything was loaded
    TensorRtEngine(streamed, dataclasses.replace(limit, contexts=10)).close()
    assert world.engine is not None
    assert world.engine.weight_streaming_budget_v2 == 20 << 20


def test_memory_is_said_before_loading(make: Callable[..., Path]) -> None:
    folder = make()
    record = plans.read(folder)
    assert record.device_bytes == 1 << 20
    tensors = 4 * 4 * (math.prod(IMAGE) + 10)  # of four pictures in float32
    assert plans.device_bytes(folder, record, 3) == record.plan_bytes + 3 * ((1 << 20) + tensors)
    stripped = dataclasses.replace(record, options=dataclasses.replace(record.options, stripped=True))
    assert plans.device_bytes(folder, stripped) == plans.device_bytes(folder, record) + len("FLOAT")  # type: ignore[operator]
    derived = dataclasses.replace(record, outputs=(TensorSpec("logits", "float32", ("batch", "cells")),))
    assert plans.device_bytes(folder, derived) is None


def test_memory_that_only_opening_tells(
    make: Callable[..., Path], world: World, caplog: pytest.LogCaptureFixture
) -> None:
    folder = rewritten(make(), device_bytes=None)  # as where it was built without a GPU
    with caplog.at_level("INFO", "saccade"):
        TensorRtEngine(folder, EngineOptions(contexts=2)).close()
    unknown, known = (record.getMessage().partition(" takes ")[2] for record in caplog.records)
    assert unknown == "an unknown amount of device memory until it is open"
    assert known == "about 2 MiB of device memory"
    with pytest.raises(EngineError, match="about 64 MiB of device memory, over memory_limit_mib=30"):
        TensorRtEngine(folder, EngineOptions(memory_limit_mib=30, contexts=64))


def test_a_stripped_plan_is_refitted_from_its_own_graph(make: Callable[..., Path], world: World) -> None:
    import hashlib

    folder = make(stripped=True)
    graph = folder.parent.parent / "graphs" / "model.onnx"
    with pytest.raises(BundleError, match=r"model\.onnx is not the file that .* was built from"):
        TensorRtEngine(folder, EngineOptions())
    digest = hashlib.sha256(graph.read_bytes()).hexdigest()
    TensorRtEngine(rewritten(folder, files={"graphs/model.onnx": digest}), EngineOptions()).close()
    assert world.refitted
