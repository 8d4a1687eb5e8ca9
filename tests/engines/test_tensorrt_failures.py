"""Every failure of NVIDIA's is ours and leaves nothing; weights are replaced wholly or not at all.

No GPU here: TensorRT, CUDA and the driver are stand-ins (fake_tensorrt.py).
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.engines.fake_tensorrt import VERSION, World, image, logits
from tests.engines.faults import Faults

from saccade.engines.engine import EngineOptions
from saccade.engines.tensorrt.runtime import TensorRtEngine
from saccade.errors import (
    ClosedError,
    EngineError,
    InputError,
    SaccadeError,
    UsageError,
)

# A graph that cannot be recorded is done without: these, and the one execution that is recorded. Where the
# CUDA context is gone when something is freed, that has gone with it: the plan, or any of seven memories.
HARMLESS = {
    "cudaGraphInstantiate": 1,
    "cudaStreamBeginCapture": 1,
    "cudaStreamEndCapture": 1,
    "execute_async_v3": 1,
    "cuCtxPushCurrent": 8,
}


def use(folder: Path) -> list[np.ndarray[Any, Any]]:
    """Open, run both ways with a graph, run on the device after a stream, take weights, close."""
    with TensorRtEngine(folder, EngineOptions(contexts=2)) as engine:
        found = [engine.run({"image": image(2)})["logits"] for _ in range(3)]
        engine.run_on_device({"image": image(1)}, stream=77)
        engine.refit(folder.parent.parent / "graphs" / "model.onnx")
    return found


@pytest.mark.parametrize("raises", [False, True], ids=["by its sign", "by raising"])
def test_every_failing_call_is_our_error_and_leaves_nothing(
    make: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, raises: bool
) -> None:
    plan = make(refittable=True)
    whole = World(version=VERSION).enter(monkeypatch)
    use(plan)
    calls = list(whole.faults.calls)
    assert {"cuInit", "Runtime", "execute_async_v3", "cudaGraphLaunch", "cudaStreamWaitEvent"} <= set(calls)
    assert "refit_cuda_engine" in calls
    harmless = []
    for at, name in enumerate(calls):
        world = World(Faults(at, raises), VERSION).enter(monkeypatch)
        try:
            found = use(plan)
        except SaccadeError:
            pass
        else:
            harmless.append(name)
            assert all(np.array_equal(each, logits(image(2))) for each in found), name
        assert world.faults.struck == name
        assert world.cuda.leaks == [], name
    # By its sign set_device_memory cannot fail; the contexts of the largest shapes never run here.
    assert Counter(name for name in harmless if raises or name != "set_device_memory") == HARMLESS


def strike(world: World, name: str) -> None:
    """Let the next call of `name` fail."""
    struck = world.faults.strikes

    def strikes(called: str, **more: bool) -> bool:
        if called == name:
            world.faults.at = len(world.faults.calls)
            world.faults.strikes = struck  # type: ignore[method-assign]
        return struck(called, **more)

    world.faults.strikes = strikes  # type: ignore[method-assign]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("execute_async_v3", r"execution failed\n  \[conv1_kernel\] injected into execute_async_v3"),
        ("cudaMemcpyAsync", "cudaMemcpyAsync failed: out of memory: build with a smaller --batch or --size"),
        ("set_input_shape", r"input 'image' cannot have shape \(2, 3, 4, 4\)"),
        ("cudaStreamSynchronize", "cudaStreamSynchronize failed"),
    ],
)
def test_a_failed_run_quotes_nvidia_and_the_next_one_works(
    plan: Path, world: World, name: str, message: str
) -> None:
    with TensorRtEngine(plan, EngineOptions()) as engine:
        engine.run({"image": image(1)})
        strike(world, name)
        with pytest.raises((EngineError, InputError), match=message):
            engine.run({"image": image(2)})
        for _ in range(3):
            np.testing.assert_array_equal(engine.run({"image": image(2)})["logits"], logits(image(2)))


# --- weights that are replaced -------------------------------------------------------------------------


def test_a_refittable_plan_takes_other_weights(
    make: Callable[..., Path], world: World, tmp_path: Path
) -> None:
    doubled = tmp_path / "doubled.onnx"
    doubled.write_text("FLOAT 2")
    with TensorRtEngine(make(refittable=True), EngineOptions(contexts=2)) as engine:
        for _ in range(3):
            np.testing.assert_array_equal(engine.run({"image": image(2)})["logits"], logits(image(2)))
        engine.refit(doubled)
        for _ in range(3):
            np.testing.assert_array_equal(engine.run({"image": image(2)})["logits"], logits(image(2)) * 2)


def test_other_weights_wait_for_runs(make: Callable[..., Path], world: World, tmp_path: Path) -> None:
    doubled = tmp_path / "doubled.onnx"
    doubled.write_text("FLOAT 2")
    running, finish = threading.Event(), threading.Event()
    enqueue = world.cuda.enqueue

    def slowly(stream: int, work: Callable[[], None]) -> None:
        running.set()
        assert finish.wait(20)
        enqueue(stream, work)

    world.cuda.enqueue = slowly  # type: ignore[method-assign]
    found: list[np.ndarray[Any, Any]] = []
    with TensorRtEngine(make(refittable=True), EngineOptions(contexts=2)) as engine:
        run = threading.Thread(target=lambda: found.append(engine.run({"image": image(1)})["logits"]))
        run.start()
        assert running.wait(20)
        refit = threading.Thread(target=lambda: engine.refit(doubled))
        refit.start()
        refit.join(0.2)
        assert not world.refitted
        finish.set()
        run.join()
        refit.join()
        np.testing.assert_array_equal(found[0], logits(image(1)))
        np.testing.assert_array_equal(engine.run({"image": image(1)})["logits"], logits(image(1)) * 2)


@pytest.mark.parametrize("name", ["refit_from_file", "refit_cuda_engine", "OnnxParserRefitter"])
def test_weights_that_do_not_fit_end_the_engine(make: Callable[..., Path], world: World, name: str) -> None:
    folder = make(refittable=True)
    graph = folder.parent.parent / "graphs" / "model.onnx"
    with TensorRtEngine(folder, EngineOptions()) as engine:
        strike(world, name)
        with pytest.raises(EngineError, match="cannot be refitted"):
            engine.refit(graph)
        with pytest.raises(ClosedError, match="is closed: load it again"):
            engine.run({"image": image(1)})


def test_other_plans_keep_their_weights(plan: Path, world: World) -> None:
    with TensorRtEngine(plan, EngineOptions()) as engine:
        with pytest.raises(UsageError, match="keeps its weights: saccade build tiny --refittable"):
            engine.refit(plan.parent.parent / "graphs" / "model.onnx")
        engine.run({"image": image(1)})
