"""TensorRT's run time: an engine over a plan, for all three flavours.

What runs concurrently is a lane: an execution context with its own stream and device memory, which is
taken once, for the largest shapes of the plan. Inputs are copied into it, from host or device, so that
addresses never change and a CUDA graph can be replayed.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from saccade.engines.engine import Arrays, EngineOptions, check_feeds
from saccade.engines.lifetime import Closing, Owned
from saccade.engines.tensorrt import plans
from saccade.engines.tensorrt.device import DeviceArray, Feed, Graph, Memory, Stream, call
from saccade.engines.tensorrt.opening import Opened, open_plan
from saccade.engines.tensorrt.plans import Record
from saccade.engines.tensorrt.words import as_engine_error
from saccade.errors import InputError

logger = logging.getLogger("saccade")

Shape: TypeAlias = tuple[int, ...]
Shapes: TypeAlias = tuple[tuple[str, Shape], ...]


class TensorRtEngine(Closing):
    """One plan on one GPU. `path`: its folder in a bundle, or the plan in it.

    options.device: "cuda:N"; "cpu", the default of everything else, means the first GPU here. contexts: how
    many runs go on at once; further ones wait. cuda_graphs: from the second run of equal shapes on, replay
    the first one's launches. memory_limit_mib: of weights and scratch memory.
    """

    def __init__(self, path: Path, options: EngineOptions) -> None:
        folder = path if path.is_dir() else path.parent
        self._record = plans.read(folder)
        self._device = options.device_index
        self._name = f"the TensorRT engine of {self._record.bundle} ({self._record.key})"
        opened = open_plan(folder, self._record, options)
        self.inputs = {spec.name: spec for spec in self._record.inputs}
        self.outputs = {spec.name: spec for spec in self._record.outputs}
        with as_engine_error(f"{self._name} cannot be set up"):
            self._loaded = Owned(_Loaded(opened, self._record, options), self._name)

    def run(self, feeds: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
        """All outputs by name, as NumPy arrays. Thread-safe.

        feeds: NumPy arrays, or device arrays (`__cuda_array_interface__`), which never pass through the host.
        """
        return self._run(feeds, _Lane.fetch)

    def run_on_device(self, feeds: Mapping[str, Any]) -> dict[str, DeviceArray]:
        """As `run`; the outputs stay on the GPU. They are the caller's, and finished."""
        return self._run(feeds, _Lane.keep)

    def _run(self, feeds: Mapping[str, Any], collect: Callable[[_Lane], dict[str, Any]]) -> dict[str, Any]:
        loaded = self._loaded.get()
        call("cudaSetDevice", self._device)  # the current device is a matter of the thread
        given = {name: Feed(name, array) if _is_array(array) else array for name, array in feeds.items()}
        described: Arrays = {n: f.stand_in() if isinstance(f, Feed) else f for n, f in given.items()}
        check_feeds(described, self.inputs)
        self._check_profile(given)
        shapes = tuple((name, given[name].shape) for name in self.inputs)
        with as_engine_error(f"{self._name} failed"), loaded.lane(shapes) as lane:
            return lane.run(given, collect)

    def _check_profile(self, feeds: Mapping[str, Feed]) -> None:
        """InputError with the command for sizes that the plan was not built for."""
        ranges = self._record.options.dimensions()
        for name, spec in self.inputs.items():
            for size, dimension in zip(feeds[name].shape, spec.shape, strict=True):
                low, _, high = ranges.get(str(dimension), (size, size, size))
                if not low <= size <= high:
                    command = (
                        f"saccade build {self._record.bundle} --{'batch' if dimension == 'batch' else 'size'}"
                    )
                    raise InputError(
                        f"input {name!r} has {dimension} {size}, the plan was built for {low} to {high}: "
                        f"build one for more with {command}"
                    )

    def close(self) -> None:
        self._loaded.close()


def _is_array(value: Any) -> bool:
    return isinstance(value, np.ndarray) or hasattr(value, "__cuda_array_interface__")


class _Loaded:
    """An opened plan and its lanes, freed together when the last call in flight lets go."""

    def __init__(self, opened: Opened, record: Record, options: EngineOptions) -> None:
        self._opened = opened
        self._lanes: list[_Lane] = []
        try:
            for _ in range(options.contexts):
                self._lanes.append(_Lane(opened, record, options.cuda_graphs))
        except BaseException:
            self.free()
            raise
        self._free = list(self._lanes)
        self._returned = threading.Condition()

    @contextmanager
    def lane(self, shapes: Shapes) -> Iterator[_Lane]:
        """A lane for one run, preferably one that ran the same shapes last. Waits while all are busy."""
        with self._returned:
            while not self._free:
                self._returned.wait()
            chosen = next((lane for lane in self._free if lane.shapes == shapes), self._free[0])
            self._free.remove(chosen)
        try:
            yield chosen
        finally:
            with self._returned:
                self._free.append(chosen)
                self._returned.notify()

    def free(self) -> None:
        """Contexts before the engine, the engine before the run time, these before what records errors."""
        while self._lanes:
            self._lanes.pop().close()
        self._free = []
        self._opened.close()

    def __del__(self) -> None:
        self.free()


class _Lane:
    """One execution context. Used by one thread at a time."""

    def __init__(self, opened: Opened, record: Record, cuda_graphs: bool) -> None:
        self._opened = opened
        self._record = record
        self._graphs_wanted = cuda_graphs
        self._graph: Graph | None = None
        self._runs = 0
        self.shapes: Shapes | None = None
        self._memory: dict[str, Memory] = {}
        self._context = opened.context()
        self._stream = Stream()
        self._allocate()

    def _allocate(self) -> None:
        """Memory for the largest shapes, at addresses that stay."""
        self._set_shapes(self._opened.largest_inputs())
        for spec in (*self._record.inputs, *self._record.outputs):
            shape = self._shape(spec.name)
            memory = Memory(int(np.prod(shape, dtype=np.int64)) * np.dtype(spec.dtype).itemsize)
            self._memory[spec.name] = memory
            if not self._context.set_tensor_address(spec.name, memory.address):
                raise self._opened.failure(f"cannot bind {spec.name!r}")
        self.shapes = None

    def run(self, feeds: Mapping[str, Feed], collect: Callable[[_Lane], dict[str, Any]]) -> dict[str, Any]:
        """Copy in, execute, and give what `collect` makes of the outputs."""
        shapes = tuple((spec.name, feeds[spec.name].shape) for spec in self._record.inputs)
        try:
            if shapes != self.shapes:
                self._set_shapes(dict(shapes))
                self.shapes = shapes
            for name, feed in feeds.items():
                kind = "DeviceToDevice" if feed.on_device else "HostToDevice"
                self._stream.copy(self._memory[name].address, feed.address, feed.size, kind)
            self._execute()
            outputs = collect(self)
            self._stream.wait()
        except BaseException:
            self._forget()  # what the context holds now is unknown
            raise
        return outputs

    def fetch(self) -> dict[str, NDArray[Any]]:
        """The outputs as host arrays, once the stream is done."""
        found: dict[str, NDArray[Any]] = {}
        for spec in self._record.outputs:
            array = np.empty(self._shape(spec.name), spec.dtype)
            self._stream.copy(
                array.ctypes.data, self._memory[spec.name].address, array.nbytes, "DeviceToHost"
            )
            found[spec.name] = array
        return found

    def keep(self) -> dict[str, DeviceArray]:
        """The outputs in memory of their own on the device, once the stream is done."""
        found = {}
        for spec in self._record.outputs:
            shape, dtype = self._shape(spec.name), np.dtype(spec.dtype)
            memory = Memory(int(np.prod(shape, dtype=np.int64)) * dtype.itemsize)
            self._stream.copy(memory.address, self._memory[spec.name].address, memory.size, "DeviceToDevice")
            found[spec.name] = DeviceArray(memory, shape, dtype)
        return found

    def close(self) -> None:
        self._forget()
        for memory in self._memory.values():
            memory.close()
        self._context = None
        self._stream.close()

    def _execute(self) -> None:
        """The first run of a shape launches kernels one by one, a later one records them, the rest replay."""
        if self._graph is None and self._runs > 0 and self._graphs_wanted:
            self._graph = self._captured()
        if self._graph is not None:
            self._graph.launch(self._stream)
        else:
            self._enqueue()
        self._runs += 1

    def _captured(self) -> Graph | None:
        """A CUDA graph of one execution; None, once and for all, where the plan cannot be captured."""
        capturable = getattr(self._context, "is_stream_capturable", None)  # of TensorRT for RTX
        try:
            if capturable is not None and not capturable(self._stream.address):
                return None
            return self._stream.capture(self._enqueue)
        except Exception as error:  # also what the bindings raise; a plain execution tells whether it matters
            self._graphs_wanted = False
            logger.info("%s runs without CUDA graphs: %s", self._record.key, error)
            return None

    def _enqueue(self) -> None:
        if not self._context.execute_async_v3(self._stream.address):
            raise self._opened.failure("execution failed")

    def _set_shapes(self, shapes: Mapping[str, Shape]) -> None:
        self._forget()
        for name, shape in shapes.items():
            if not self._context.set_input_shape(name, shape):
                raise InputError(str(self._opened.failure(f"input {name!r} cannot have shape {shape}")))

    def _shape(self, name: str) -> Shape:
        shape = tuple(self._context.get_tensor_shape(name))
        if any(size < 0 for size in shape):
            raise self._opened.failure(f"the shape of {name!r} depends on data: {shape}")
        return shape

    def _forget(self) -> None:
        self.shapes, self._runs = None, 0
        graph, self._graph = self._graph, None
        if graph is not None:
            graph.close()
