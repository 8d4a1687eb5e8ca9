"""What runs concurrently: a lane, with its own stream, its own memory for the largest shapes of the plan, and
a few execution contexts.

A CUDA graph is valid while the execution context that it was recorded from stays as it was: another shape or
address, and it is not. So each combination of shapes and addresses has a context of its own. The contexts of
a lane never run at once, and share one scratch memory.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from saccade.engines.arrays import DeviceArray, Feed
from saccade.engines.cuda import Graph, Memory, Stream
from saccade.engines.engine import EngineOptions
from saccade.engines.nvtx import span
from saccade.engines.tensorrt.opening import Opened
from saccade.engines.tensorrt.plans import Record
from saccade.errors import EngineError, InputError

logger = logging.getLogger("saccade")

Shape: TypeAlias = tuple[int, ...]
# For each input its shape, and its address where it is bound in place: None where it is copied into the lane.
Layout: TypeAlias = tuple[tuple[Shape, int | None], ...]

CONTEXTS = 4  # in a lane; each is one CUDA graph, and some memory of TensorRT's own
ALIGNMENT = 256  # bytes; of addresses that TensorRT takes


class Lanes:
    """An opened plan and its lanes, freed together when the last call in flight lets go.

    Made and used inside the plan's CUDA context.
    """

    def __init__(self, opened: Opened, record: Record, options: EngineOptions) -> None:
        self.opened = opened
        self._lanes: list[Lane] = []
        try:
            for _ in range(options.contexts):
                self._lanes.append(Lane(opened, record, options.cuda_graphs))
        except BaseException:
            self.free()
            raise
        self._free = list(self._lanes)
        self._returned = threading.Condition()

    @contextlib.contextmanager
    def lane(self, layout: Layout) -> Iterator[Lane]:
        """A lane for one run, preferably one that is prepared for it. Waits while all are busy."""
        with self._returned:
            while not self._free:
                self._returned.wait()
            chosen = next((lane for lane in self._free if layout in lane.prepared), self._free[0])
            self._free.remove(chosen)
        try:
            yield chosen
        finally:
            with self._returned:
                self._free.append(chosen)
                self._returned.notify_all()

    @contextlib.contextmanager
    def idle(self) -> Iterator[Opened]:
        """The plan while no run goes on, which waits for those that do. What lanes prepared is forgotten."""
        with self._returned:
            while len(self._free) < len(self._lanes):
                self._returned.wait()
            for lane in self._lanes:
                lane.prepared.clear()
            yield self.opened

    def free(self) -> None:
        """Contexts before the engine, the engine before the run time, these before what records errors."""
        with contextlib.ExitStack() as inside:
            with contextlib.suppress(EngineError):  # an application has destroyed its context, and all in it
                inside.enter_context(self.opened.context)
            while self._lanes:
                self._lanes.pop().close()
            self._free = []
            self.opened.close()

    def __del__(self) -> None:
        self.free()


class Lane:
    """Used by one thread at a time. `prepared`: its contexts, the one used last at the end."""

    def __init__(self, opened: Opened, record: Record, cuda_graphs: bool) -> None:
        self._opened = opened
        self._record = record
        self._graphs_wanted = cuda_graphs
        self._most = CONTEXTS if cuda_graphs else 1
        self.prepared: dict[Layout, Prepared] = {}
        self._memory: dict[str, Memory] = {}
        self._stream = Stream()
        self._scratch = Memory(opened.scratch_bytes)
        self._allocate()

    def _allocate(self) -> None:
        """Memory for inputs and outputs of the largest shapes, and a context that is prepared for them."""
        shapes = self._opened.largest_inputs()
        largest = Prepared(self._opened, self._scratch)
        largest.set_shapes(shapes)
        for spec in (*self._record.inputs, *self._record.outputs):
            size = int(np.prod(largest.shape(spec.name), dtype=np.int64)) * np.dtype(spec.dtype).itemsize
            self._memory[spec.name] = Memory(size)
        largest.bind({name: memory.address for name, memory in self._memory.items()})
        self.prepared[tuple((shapes[spec.name], None) for spec in self._record.inputs)] = largest

    def run(
        self,
        feeds: Mapping[str, Feed],
        layout: Layout,
        stream: int | None,
        collect: Callable[[Lane, Prepared], dict[str, Any]],
    ) -> dict[str, Any]:
        """Copy in, execute, and give what `collect` makes of the outputs, once all is done.

        stream: the application's; what is enqueued there so far comes first.
        """
        try:
            for other in {stream, *(feed.after for feed in feeds.values())} - {None}:
                self._stream.follow(other)  # type: ignore[arg-type]  # None is out
            prepared = self._prepare(layout)
            with span("copy"):
                self._copy_in(feeds, layout)
            self._execute(prepared)
            with span("copy"):
                outputs = collect(self, prepared)
            self._stream.wait()
        except BaseException:
            self.prepared.pop(layout, None)  # what its context holds now is unknown
            with contextlib.suppress(EngineError):
                self._stream.wait()  # the arrays are the caller's again
            raise
        return outputs

    def _prepare(self, layout: Layout) -> Prepared:
        """A context with these shapes and addresses: the one that has them, a new one, or the oldest."""
        found = self.prepared.pop(layout, None)
        if found is None:
            found = (
                self.prepared.pop(next(iter(self.prepared)))
                if len(self.prepared) >= self._most
                else Prepared(self._opened, self._scratch)
            )
            specs = self._record.inputs
            found.set_shapes({spec.name: shape for spec, (shape, _) in zip(specs, layout, strict=True)})
            own = {name: memory.address for name, memory in self._memory.items()}
            bound = {spec.name: at for spec, (_, at) in zip(specs, layout, strict=True) if at is not None}
            found.bind({**own, **bound})
        self.prepared[layout] = found
        return found

    def _copy_in(self, feeds: Mapping[str, Feed], layout: Layout) -> None:
        for spec, (_, bound) in zip(self._record.inputs, layout, strict=True):
            if bound is None:
                feed = feeds[spec.name]
                kind = "DeviceToDevice" if feed.on_device else "HostToDevice"
                self._stream.copy(self._memory[spec.name].address, feed.address, feed.size, kind)

    def _execute(self, prepared: Prepared) -> None:
        """The first run launches kernels one by one, the second records them, the rest replay."""
        if prepared.graph is None and prepared.runs > 0 and self._graphs_wanted:
            prepared.graph = self._captured(prepared)
        if prepared.graph is not None:
            prepared.graph.launch(self._stream)
        else:
            prepared.enqueue(self._stream)
        prepared.runs += 1

    def _captured(self, prepared: Prepared) -> Graph | None:
        """A CUDA graph of one execution; None, once and for all, where the plan cannot be captured."""
        try:
            return prepared.capture(self._stream)
        except Exception as error:  # also what the bindings raise; a plain execution tells whether it matters
            self._graphs_wanted = False
            logger.info("%s runs without CUDA graphs: %s", self._record.key, error)
            return None

    def fetch(self, prepared: Prepared) -> dict[str, NDArray[Any]]:
        """The outputs as host arrays, once the stream is done."""
        found: dict[str, NDArray[Any]] = {}
        for spec in self._record.outputs:
            array = np.empty(prepared.shape(spec.name), spec.dtype)
            self._stream.copy(
                array.ctypes.data, self._memory[spec.name].address, array.nbytes, "DeviceToHost"
            )
            found[spec.name] = array
        return found

    def keep(self, prepared: Prepared) -> dict[str, DeviceArray]:
        """The outputs in memory of their own on the device, once the stream is done."""
        found = {}
        for spec in self._record.outputs:
            shape, dtype = prepared.shape(spec.name), np.dtype(spec.dtype)
            memory = Memory(int(np.prod(shape, dtype=np.int64)) * dtype.itemsize)
            self._stream.copy(memory.address, self._memory[spec.name].address, memory.size, "DeviceToDevice")
            found[spec.name] = DeviceArray(memory, memory.address, shape, dtype)
        return found

    def close(self) -> None:
        self.prepared.clear()
        for memory in (*self._memory.values(), self._scratch):
            memory.close()
        self._stream.close()


class Prepared:
    """An execution context with shapes and addresses, how often it ran so, and the CUDA graph of a run."""

    def __init__(self, opened: Opened, scratch: Memory) -> None:
        self._opened = opened
        self._context = opened.execution_context()
        self._context.set_device_memory(scratch.address, scratch.size)
        self._shapes: dict[str, Shape] = {}
        self.runs = 0
        self.graph: Graph | None = None

    def set_shapes(self, shapes: Mapping[str, Shape]) -> None:
        """Forget what was recorded, and take inputs of these shapes from now on."""
        self.runs, self.graph = 0, None
        for name, shape in shapes.items() - self._shapes.items():
            if not self._context.set_input_shape(name, shape):
                raise InputError(str(self._opened.failure(f"input {name!r} cannot have shape {shape}")))
        self._shapes = dict(shapes)

    def bind(self, addresses: Mapping[str, int]) -> None:
        for name, address in addresses.items():
            if not self._context.set_tensor_address(name, address):
                raise self._opened.failure(f"cannot bind {name!r}")

    def shape(self, name: str) -> Shape:
        shape = tuple(self._context.get_tensor_shape(name))
        if any(size < 0 for size in shape):
            raise self._opened.failure(f"the shape of {name!r} depends on data: {shape}")
        return shape

    def enqueue(self, stream: Stream) -> None:
        if not self._context.execute_async_v3(stream.address):
            raise self._opened.failure("execution failed")

    def capture(self, stream: Stream) -> Graph | None:
        """A graph of one execution; None where the context says that it cannot be captured."""
        capturable = getattr(self._context, "is_stream_capturable", None)  # of TensorRT for RTX
        if capturable is not None and not capturable(stream.address):
            return None
        return stream.capture(lambda: self.enqueue(stream))
