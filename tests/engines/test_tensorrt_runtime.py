"""Plans run: what comes out, what is refused, and that every failure of NVIDIA's is ours and leaves nothing.

No GPU here: TensorRT, CUDA and the driver are stand-ins (fake_tensorrt.py). What they cannot show is said in
docs/tensorrt_support.md.
"""

from __future__ import annotations

import ctypes
import dataclasses
import gc
import json
import math
import os
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.engines.fake_tensorrt import IMAGE, VERSION, OnDevice, World, image, logits
from tests.engines.faults import Faults

from saccade.engines.engine import EngineOptions, TensorSpec, open_engine
from saccade.engines.tensorrt import plans
from saccade.engines.tensorrt.runtime import TensorRtEngine
from saccade.errors import (
    BundleError,
    ClosedError,
    EngineError,
    EngineMismatch,
    InputError,
    SaccadeError,
    UsageError,
)


def test_a_plan_gives_what_its_graph_computes(plan: Path, world: World) -> None:
    with open_engine({"source": plan, "tensorrt": plan}, "tensorrt") as engine:
        for batch in (1, 4, 2, 2):
            pixels = image(batch, seed=batch)
            np.testing.assert_array_equal(engine.run({"image": pixels})["logits"], logits(pixels))
        assert engine.inputs["image"].shape == ("batch", *IMAGE)
    del engine
    gc.collect()
    assert world.cuda.leaks == []


def test_results_belong_to_the_caller(plan: Path, world: World) -> None:
    with TensorRtEngine(plan, EngineOptions()) as engine:
        first = engine.run({"image": image(2)})["logits"]
        kept = first.copy()
        engine.run({"image": image(2, seed=1)})
        np.testing.assert_array_equal(first, kept)


def test_equal_shapes_are_replayed_from_their_third_run_on(plan: Path, world: World) -> None:
    with TensorRtEngine(plan, EngineOptions()) as engine:
        launches = []
        for batch in (2, 2, 2, 3, 3, 2):
            pixels = image(batch, seed=len(launches))
            np.testing.assert_array_equal(engine.run({"image": pixels})["logits"], logits(pixels))
            launches.append(world.cuda.launches)
    # A graph is recorded after one plain run of its shape, and serves that shape from then on.
    assert launches == [0, 1, 2, 2, 3, 4]


def test_without_cuda_graphs_every_run_is_enqueued(plan: Path, world: World) -> None:
    with TensorRtEngine(plan, EngineOptions(cuda_graphs=False)) as engine:
        for _ in range(3):
            engine.run({"image": image(2)})
    assert world.cuda.launches == 0


def test_device_arrays_go_in_and_come_out(plan: Path, world: World) -> None:
    pixels = image(3)
    with TensorRtEngine(plan, EngineOptions()) as engine:
        fed = OnDevice(world, pixels, stream=2)
        np.testing.assert_array_equal(engine.run({"image": fed})["logits"], logits(pixels))
        out = engine.run_on_device({"image": fed})["logits"].__cuda_array_interface__
    assert out["shape"] == (3, 10)
    assert out["typestr"] == "<f4"


def test_device_outputs_outlive_the_engine(plan: Path, world: World) -> None:
    pixels = image(3)
    with TensorRtEngine(plan, EngineOptions()) as engine:
        out = engine.run_on_device({"image": pixels})["logits"]
    address = out.__cuda_array_interface__["data"][0]
    read = np.frombuffer(ctypes.string_at(address, 3 * 10 * 4), np.float32).reshape(3, 10)
    np.testing.assert_array_equal(read, logits(pixels))
    del engine, out
    gc.collect()
    assert world.cuda.leaks == []


@pytest.mark.parametrize(
    ("feeds", "message"),
    [
        ({"image": [[0.0]]}, "is a list, not a NumPy array"),
        ({"pixels": image(1)}, r"missing \['image'\], unknown \['pixels'\]"),
        ({"image": image(1).astype(np.float64)}, "dtype float64, the graph takes float32"),
        ({"image": np.zeros((1, 3, 5, 4), np.float32)}, r"shape \(1, 3, 5, 4\)"),
        ({"image": image(5)}, r"batch 5, the plan was built for 1 to 4: .*saccade build tiny --batch"),
    ],
)
def test_feeds_that_do_not_fit(plan: Path, world: World, feeds: dict[str, Any], message: str) -> None:
    with TensorRtEngine(plan, EngineOptions()) as engine, pytest.raises(InputError, match=message):
        engine.run(feeds)


def test_device_arrays_with_gaps_are_refused(plan: Path, world: World) -> None:
    gaps = OnDevice(world, image(1), strides=(384, 128, 32, 8))
    with TensorRtEngine(plan, EngineOptions()) as engine, pytest.raises(InputError, match="not contiguous"):
        engine.run({"image": gaps})


def test_many_threads_share_few_contexts(plan: Path, world: World) -> None:
    wrong: list[int] = []

    def work(number: int) -> None:
        for turn in range(8):
            pixels = image(1 + (number + turn) % 4, seed=number * 8 + turn)
            if not np.array_equal(engine.run({"image": pixels})["logits"], logits(pixels)):
                wrong.append(number)

    with TensorRtEngine(plan, EngineOptions(contexts=2)) as engine:
        threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert wrong == []
    assert world.executions + world.cuda.launches >= 48


def test_use_after_close_and_closing_twice(plan: Path, world: World) -> None:
    engine = TensorRtEngine(plan, EngineOptions())
    engine.close()
    engine.close()
    with pytest.raises(ClosedError, match="is closed"):
        engine.run({"image": image(1)})
    assert world.cuda.leaks == []


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_forked_child_is_refused_and_frees_nothing(plan: Path, world: World) -> None:
    engine = TensorRtEngine(plan, EngineOptions())
    child = os.fork()
    if child == 0:
        try:
            engine.run({"image": image(1)})
        except ClosedError as error:
            engine.close()
            del engine
            gc.collect()
            os._exit(0 if "forked" in str(error) and world.cuda.leaks else 1)
        os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    engine.close()


# --- what may be opened, and where ---------------------------------------------------------------------


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


# --- every call fails once -----------------------------------------------------------------------------

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
