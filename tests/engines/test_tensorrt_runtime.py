"""Plans run: what comes out, and what is refused.

No GPU here: TensorRT, CUDA and the driver are stand-ins (fake_tensorrt.py). What they cannot show is said in
docs/tensorrt_support.md.
"""

from __future__ import annotations

import ctypes
import gc
import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.engines.fake_tensorrt import IMAGE, OnDevice, World, image, logits

from saccade.engines.engine import EngineOptions, open_engine
from saccade.engines.tensorrt.runtime import TensorRtEngine
from saccade.errors import (
    ClosedError,
    InputError,
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
