"""Arrays, streams and CUDA contexts of applications, and what is copied and replayed for them.

No GPU here: device memory is the stand-in's (fake_cuda.py). DLPack's structures are real: NumPy and PyTorch
make the capsules.
"""

from __future__ import annotations

import ctypes
import gc
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.engines.fake_tensorrt import OnDevice, World, image, logits

from saccade.engines.arrays import locate
from saccade.engines.engine import EngineOptions
from saccade.engines.tensorrt.runtime import TensorRtEngine
from saccade.errors import InputError

STREAM = 77  # the handle of an application's stream


class Capsules:
    """An array on the device that speaks DLPack alone; `asked` are the streams it was asked for."""

    def __init__(self, on_device: OnDevice, array: Any, device: tuple[int, int] = (2, 0)) -> None:
        self._array, self._device = array, device
        self._memory = on_device  # kept while the capsule is
        self.asked: list[int] = []

    def __dlpack_device__(self) -> tuple[int, int]:
        return self._device

    def __dlpack__(self, *, stream: int) -> Any:
        self.asked.append(stream)
        return self._array.__dlpack__()


def viewed(on_device: OnDevice) -> np.ndarray[Any, Any]:
    """The stand-in's device memory as NumPy sees it."""
    facts = on_device.__cuda_array_interface__
    size = int(np.prod(facts["shape"]))
    buffer = (ctypes.c_float * size).from_address(facts["data"][0])
    return np.ctypeslib.as_array(buffer).reshape(facts["shape"])


def by_dlpack(world: World, array: np.ndarray[Any, Any], **options: Any) -> Capsules:
    placed = OnDevice(world, array)
    return Capsules(placed, viewed(placed), **options)


def test_host_arrays_by_dlpack(plan: Path, world: World) -> None:
    torch = pytest.importorskip("torch")
    pixels = image(2)
    with TensorRtEngine(plan, EngineOptions()) as engine:
        found = engine.run({"image": torch.from_numpy(pixels)})["logits"]
    np.testing.assert_array_equal(found, logits(pixels))


@pytest.mark.parametrize(("stream", "asked"), [(None, 1), (0, 1), (STREAM, STREAM)])
def test_device_arrays_by_dlpack(plan: Path, world: World, stream: int | None, asked: int) -> None:
    pixels = image(2)
    fed = by_dlpack(world, np.zeros_like(pixels))
    # The producer fills it on the stream that it is asked for.
    world.cuda.later(asked, lambda: np.copyto(viewed(fed._memory), pixels))
    with TensorRtEngine(plan, EngineOptions()) as engine:
        np.testing.assert_array_equal(engine.run({"image": fed}, stream=stream)["logits"], logits(pixels))
    assert fed.asked == [asked]
    assert "HostToDevice" not in world.cuda.copied


@pytest.mark.parametrize("dtype", ["float32", "float16", "int64", "uint8", "bool"])
def test_what_a_capsule_says(dtype: str) -> None:
    torch = pytest.importorskip("torch")
    whole = torch.zeros((2, 5), dtype=getattr(torch, dtype))
    part = whole[1]  # begins inside the memory
    feed = locate("x", Capsules(None, part))  # type: ignore[arg-type]
    assert (feed.address, feed.shape, feed.dtype.name) == (part.data_ptr(), (5,), dtype)
    assert feed.on_device


class DLTensor(ctypes.Structure):
    """As dlpack.h has it."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device", ctypes.c_int32 * 2),
        ("ndim", ctypes.c_int32),
        ("dtype", ctypes.c_uint8 * 4),  # code, bits, and lanes in two bytes
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.c_void_p),
        ("byte_offset", ctypes.c_uint64),
    )


class ByHand:
    """A capsule of two float32 (times `lanes`), 24 bytes after the address 4096, without strides."""

    def __init__(self, lanes: int = 1) -> None:
        shape = (ctypes.c_int64 * 1)(2)
        dtype = (ctypes.c_uint8 * 4)(2, 32, lanes, 0)
        self._tensor = DLTensor(4096, (2, 0), 1, dtype, shape, None, 24)

    def __dlpack_device__(self) -> tuple[int, int]:
        return (2, 0)

    def __dlpack__(self, *, stream: int) -> Any:
        new = ctypes.pythonapi.PyCapsule_New
        new.restype, new.argtypes = ctypes.py_object, (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)
        return new(ctypes.addressof(self._tensor), b"dltensor", None)


def test_a_capsule_made_by_hand() -> None:
    feed = locate("x", ByHand())
    assert (feed.address, feed.shape, feed.dtype, feed.size) == (4120, (2,), np.float32, 8)
    with pytest.raises(InputError, match="DLPack type 2 of 32 bits"):
        locate("x", ByHand(lanes=4))


class WithGradient(ByHand):
    """As PyTorch's tensors on a GPU that ask for a gradient."""

    @property
    def __cuda_array_interface__(self) -> Any:
        raise RuntimeError("use tensor.detach()")


def refused(kind: str) -> Any:
    if kind == "gradient":
        return WithGradient()
    torch = pytest.importorskip("torch")
    arrays = {"gaps": torch.zeros(4, 6)[:, ::2], "bfloat16": torch.zeros(3, dtype=torch.bfloat16)}
    return Capsules(None, arrays.get(kind))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("gaps", "not contiguous"),
        ("bfloat16", "DLPack type 4 of 16 bits"),
        ("broken", "input 'x', a Capsules, cannot be read: 'NoneType'"),
        ("gradient", r"input 'x', a WithGradient, cannot be read: use tensor.detach\(\)"),
    ],
)
def test_capsules_that_are_refused(kind: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        locate("x", refused(kind))


def test_the_step_of_a_single_element_means_nothing(plan: Path, world: World) -> None:
    pixels = image(1)
    fed = OnDevice(world, pixels, strides=(400, 64, 16, 4))
    with TensorRtEngine(plan, EngineOptions()) as engine:
        np.testing.assert_array_equal(engine.run({"image": fed})["logits"], logits(pixels))


def test_arrays_of_another_device_are_refused(plan: Path, world: World) -> None:
    there, nowhere = OnDevice(world, image(1)), OnDevice(world, image(1), data=(4096, False))
    world.cuda.placed[there.__cuda_array_interface__["data"][0]] = (0, 1)
    with TensorRtEngine(plan, EngineOptions()) as engine:
        with pytest.raises(InputError, match="'image' lies on 'cuda:1', the engine runs on 'cuda:0'"):
            engine.run({"image": there})
        with pytest.raises(InputError, match="'image' lies in no memory of a GPU"):
            engine.run({"image": nowhere})


@pytest.mark.parametrize("named", ["by the call", "by the array"])
def test_work_of_an_application_comes_first(plan: Path, world: World, named: str) -> None:
    pixels = image(3)
    by_array = named == "by the array"
    fed = OnDevice(world, np.zeros_like(pixels), **({"stream": STREAM} if by_array else {}))
    world.cuda.later(STREAM, lambda: np.copyto(viewed(fed), pixels))
    with TensorRtEngine(plan, EngineOptions()) as engine:
        found = engine.run({"image": fed}, stream=None if by_array else STREAM)["logits"]
    np.testing.assert_array_equal(found, logits(pixels))


def test_the_context_of_an_application_is_used_and_stays(plan: Path, world: World) -> None:
    own = 5
    world.contexts.stack.append(own)
    with TensorRtEngine(plan, EngineOptions()) as engine:
        thread = threading.Thread(target=engine.run, args=({"image": image(1)},))
        thread.start()
        thread.join()
        kept = [engine.run_on_device({"image": image(1)})]
    assert world.contexts.stack == [own]
    assert {context for context, _ in world.cuda.placed.values()} == {own}
    thread = threading.Thread(target=kept.clear)  # which has no context
    thread.start()
    thread.join()
    del engine
    gc.collect()
    assert world.cuda.leaks == world.cuda.freed_elsewhere == []


@pytest.mark.parametrize("elsewhere", [[], [9]], ids=["none", "of another device"])
def test_without_one_it_is_the_primary_context(plan: Path, world: World, elsewhere: list[int]) -> None:
    world.contexts.stack.extend(elsewhere)
    world.contexts.devices[9] = 1
    with TensorRtEngine(plan, EngineOptions()) as engine:
        engine.run({"image": image(1)})
        assert world.contexts.retained == 1
    assert world.contexts.stack == elsewhere
    assert {context for context, _ in world.cuda.placed.values()} == {world.contexts.PRIMARY}


# --- what is copied, and what is replayed ---------------------------------------------------------------


def off_by(world: World, pixels: np.ndarray[Any, Any], step: int) -> OnDevice:
    """`pixels` on the device, `step` bytes after an address that 256 divides."""
    placed = OnDevice(world, np.concatenate([np.zeros(step // 4, np.float32), pixels.ravel()]))
    address = placed.__cuda_array_interface__["data"][0] + step
    facts = {"shape": pixels.shape, "data": (address, False)}
    placed.__cuda_array_interface__ = {**placed.__cuda_array_interface__, **facts}
    return placed


@pytest.mark.parametrize(
    ("make_feed", "copies"),
    [
        (lambda world, pixels: pixels, ["HostToDevice", "DeviceToHost"]),
        (lambda world, pixels: off_by(world, pixels, 0), ["DeviceToHost"]),
        (lambda world, pixels: off_by(world, pixels, 16), ["DeviceToDevice", "DeviceToHost"]),
    ],
    ids=["host", "device", "device, unaligned"],
)
def test_what_is_copied(plan: Path, world: World, make_feed: Callable[..., Any], copies: list[str]) -> None:
    pixels = image(2)
    feed = make_feed(world, pixels)
    with TensorRtEngine(plan, EngineOptions()) as engine:
        for _ in range(3):  # plain, recorded, replayed
            world.cuda.copied.clear()
            np.testing.assert_array_equal(engine.run({"image": feed})["logits"], logits(pixels))
            assert world.cuda.copied == copies
    assert world.cuda.launches == 2


def launches(world: World, engine: TensorRtEngine, feeds: list[Any]) -> list[int]:
    """How many graphs each run replayed."""
    found = []
    for feed in feeds:
        before = world.cuda.launches
        given = viewed(feed) if isinstance(feed, OnDevice) else feed
        np.testing.assert_array_equal(engine.run({"image": feed})["logits"], logits(given))
        found.append(world.cuda.launches - before)
    return found


def test_shapes_in_turn_keep_their_graphs(plan: Path, world: World) -> None:
    with TensorRtEngine(plan, EngineOptions()) as engine:
        turns = [image(batch) for _ in range(3) for batch in (1, 2, 3)]
        assert launches(world, engine, turns) == [0] * 3 + [1] * 6


def test_each_address_has_its_graph_and_the_oldest_goes(plan: Path, world: World) -> None:
    arrays = [OnDevice(world, image(2, seed)) for seed in range(5)]
    with TensorRtEngine(plan, EngineOptions()) as engine:
        assert launches(world, engine, [*arrays[:3], *arrays[:3]]) == [0, 0, 0, 1, 1, 1]
        # Two more: the first of four has to go.
        assert launches(world, engine, [arrays[3], arrays[4], arrays[2], arrays[0]]) == [0, 0, 1, 0]


def test_a_lane_that_has_the_shape_is_taken(plan: Path, world: World) -> None:
    with TensorRtEngine(plan, EngineOptions(contexts=3)) as engine:
        assert launches(world, engine, [image(2)] * 3 + [image(1)] * 3) == [0, 1, 1, 0, 1, 1]
