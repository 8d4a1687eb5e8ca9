"""TensorRT's run time: an engine over a plan, for all three flavours."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from saccade.engines.arrays import DeviceArray, Feed, located
from saccade.engines.cuda import DEFAULT_STREAM
from saccade.engines.engine import EngineOptions
from saccade.engines.lifetime import Closing, Owned
from saccade.engines.tensorrt import plans
from saccade.engines.tensorrt.lanes import ALIGNMENT, Lane, Lanes, Prepared
from saccade.engines.tensorrt.opening import open_plan
from saccade.engines.tensorrt.words import as_engine_error
from saccade.errors import InputError, UsageError


class TensorRtEngine(Closing):
    """One plan on one GPU. `path`: its folder in a bundle, or the plan in it.

    options.device: "cuda:N"; "cpu", the default of everything else, means the first GPU here. contexts: how
    many runs go on at once; further ones wait. cuda_graphs: a run of shapes and addresses that ran before
    replays its launches. memory_limit_mib: of weights, scratch memory, inputs and outputs.

    It lives in the CUDA context that is current where it is opened, if that is one of the device, else in the
    device's primary context; it may be used from any thread, and leaves each thread's context as it was.
    """

    def __init__(self, path: Path, options: EngineOptions) -> None:
        folder = path if path.is_dir() else path.parent
        self._record = plans.read(folder)
        self._device = options.device_index
        self._name = f"the TensorRT engine of {self._record.bundle} ({self._record.key})"
        opened = open_plan(folder, self._record, options)
        self.inputs = {spec.name: spec for spec in self._record.inputs}
        self.outputs = {spec.name: spec for spec in self._record.outputs}
        with as_engine_error(f"{self._name} cannot be set up"), opened.context:
            self._loaded = Owned(Lanes(opened, self._record, options), self._name)

    def run(self, feeds: Mapping[str, Any], *, stream: int | None = None) -> dict[str, NDArray[Any]]:
        """All outputs by name, as NumPy arrays, finished. Thread-safe.

        feeds: NumPy arrays, or any that speak `__cuda_array_interface__` or DLPack. One on the device never
        passes through the host; at an address that 256 divides it is not copied at all. stream: the handle of
        an application's CUDA stream, which makes the arrays: what is enqueued there so far comes first.
        """
        return self._run(feeds, stream, Lane.fetch)

    def run_on_device(self, feeds: Mapping[str, Any], *, stream: int | None = None) -> dict[str, DeviceArray]:
        """As `run`; the outputs stay on the GPU. They are the caller's, and finished."""
        return self._run(feeds, stream, Lane.keep)

    def refit(self, graph: Path) -> None:
        """Replace the weights by those of an ONNX file with the same nodes and names. Waits for runs.

        UsageError unless the plan was built refittable. EngineError where the file does not fit; the engine
        is then closed, as some weights may be new and some old.
        """
        if not self._record.options.refittable:
            raise UsageError(
                f"{self._name} keeps its weights: saccade build {self._record.bundle} --refittable"
            )
        lanes = self._loaded.get()
        try:
            with (
                as_engine_error(f"{self._name} cannot be refitted"),
                lanes.opened.context,
                lanes.idle() as opened,
            ):
                opened.refit(graph)
        except BaseException:
            self.close()
            raise

    def _run(
        self,
        feeds: Mapping[str, Any],
        stream: int | None,
        collect: Callable[[Lane, Prepared], dict[str, Any]],
    ) -> dict[str, Any]:
        lanes = self._loaded.get()
        after = DEFAULT_STREAM if stream == 0 else stream
        with as_engine_error(f"{self._name} failed"), lanes.opened.context:
            given = located(feeds, self.inputs, self._device, after)
            self._check_profile(given)
            layout = tuple((given[name].shape, _in_place(given[name])) for name in self.inputs)
            with lanes.lane(layout) as lane:
                return lane.run(given, layout, after, collect)

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


def _in_place(feed: Feed) -> int | None:
    """The address of an array that TensorRT can read where it is."""
    return feed.address if feed.on_device and feed.address % ALIGNMENT == 0 else None
