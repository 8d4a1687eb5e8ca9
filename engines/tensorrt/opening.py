"""From a plan on disk to TensorRT's engine object: every check that must come before, and in which order."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
from pathlib import Path
from typing import Any

from saccade.engines.cuda import Context
from saccade.engines.engine import EngineOptions
from saccade.engines.tensorrt import plans
from saccade.engines.tensorrt.bindings import Bindings, ICudaEngine, IExecutionContext, Runtime
from saccade.engines.tensorrt.flavours import FLAVOURS, Flavour, flavour, is_installed, load
from saccade.engines.tensorrt.gpu import require_gpu
from saccade.engines.tensorrt.network import numpy_type
from saccade.engines.tensorrt.plans import Record
from saccade.engines.tensorrt.words import as_engine_error, parser_refusal, recorder
from saccade.engines.tensorrt.words import logger as log_of
from saccade.errors import BundleError, EngineError, EngineMismatch

logger = logging.getLogger("saccade")


class Opened:
    """TensorRT's objects for one plan, in the order in which they must go, and their CUDA context."""

    def __init__(
        self,
        name: str,
        trt: Bindings,
        log: Any,
        errors: Any,
        runtime: Runtime,
        engine: ICudaEngine,
        context: Context,
    ) -> None:
        self.context = context
        self._name = name
        self._trt = trt
        self._log = log
        self._errors = errors
        self._runtime: Runtime | None = runtime
        self.engine: ICudaEngine | None = engine

    @property
    def scratch_bytes(self) -> int:
        """Memory that an execution context needs while it runs."""
        assert self.engine is not None
        return self.engine.device_memory_size_v2

    def execution_context(self) -> Any:
        """A new one, without scratch memory; EngineError where there is no memory for it."""
        assert self.engine is not None
        trt = self._trt
        strategy = trt.ExecutionContextAllocationStrategy.USER_MANAGED
        found: IExecutionContext | None = self.engine.create_execution_context(strategy)
        if found is None:
            raise self.failure("cannot make an execution context: use fewer contexts, or free the GPU")
        return found

    def largest_inputs(self) -> dict[str, tuple[int, ...]]:
        """The greatest shape of every input."""
        assert self.engine is not None
        names = [self.engine.get_tensor_name(index) for index in range(self.engine.num_io_tensors)]
        inputs = [name for name in names if self.engine.get_tensor_mode(name).name == "INPUT"]
        return {name: tuple(self.engine.get_tensor_profile_shape(name, 0)[2]) for name in inputs}

    def refit(self, graph: Path) -> None:
        """Take the weights of the ONNX file `graph`; EngineError where it has not all of them."""
        assert self.engine is not None
        refitter = self._trt.Refitter(self.engine, self._log)
        parser = self._trt.OnnxParserRefitter(refitter, self._log)
        what = f"cannot be refitted from {graph.name}"
        if not parser.refit_from_file(str(graph)):
            words = [str(parser_refusal(parser.get_error(index))) for index in range(parser.num_errors)]
            raise self.failure(f"{what}: {'; '.join(words)}" if words else what)
        if not refitter.refit_cuda_engine():
            missing = ", ".join(refitter.get_missing_weights()[:5])
            raise self.failure(f"{what}: no weights for {missing}" if missing else what)

    def failure(self, what: str) -> EngineError:
        """An error that ends with what TensorRT recorded since the last one."""
        messages = list(dict.fromkeys([*self._errors.messages, *self._log.errors]))
        self._errors.clear()
        self._log.errors.clear()
        return EngineError(f"{self._name}: {what}" + "".join(f"\n  {message}" for message in messages[:5]))

    def close(self) -> None:
        self.engine = None
        self._runtime = None


def open_plan(folder: Path, record: Record, options: EngineOptions) -> Opened:
    """Open the plan in `folder` on the GPU that `options` name.

    EngineError where there is no driver (touching a run time without one crashes the process), no memory, or
    the plan is from elsewhere; EngineMismatch where it does not run here; BundleError where it has changed.
    """
    gpu = require_gpu(options.device_index)
    chosen = _runner(record)
    trt = load(chosen)
    obstacle = plans.obstacle(record, trt.__version__, gpu)
    if obstacle is not None:
        command = plans.build_command(folder.parent.parent, record.options.flavour, record.options.precision)
        raise EngineMismatch(
            f"the plan {folder} does not run here: {obstacle}. Build one that does: {command}"
        )
    content = plans.read_plan(folder, record)
    _check_memory(folder, record, options)
    context = Context(options.device_index)
    with as_engine_error(f"{chosen.name} {trt.__version__} failed on {folder}"), context:
        opened = _opened(trt, folder, record, content, context)
        if record.device_bytes is None:  # it was built without a GPU
            _check_memory(folder, dataclasses.replace(record, device_bytes=opened.scratch_bytes), options)
        _set_weight_budget(opened, options)
    return opened


def _opened(trt: Bindings, folder: Path, record: Record, content: bytes, context: Context) -> Opened:
    log, errors = log_of(trt), recorder(trt)
    runtime = trt.Runtime(log)
    runtime.error_recorder = errors
    if record.options.version_compatible:
        runtime.engine_host_code_allowed = True  # such a plan holds code for the host; it is trusted by now
    engine = runtime.deserialize_cuda_engine(content)
    if engine is None:
        words = "".join(f"\n  {message}" for message in dict.fromkeys([*errors.messages, *log.errors]))
        raise EngineError(f"TensorRT {trt.__version__} cannot open {folder}:{words or ' it gave no reason'}")
    opened = Opened(f"{record.bundle} ({record.key})", trt, log, errors, runtime, engine, context)
    if record.options.stripped:
        opened.refit(_own_graph(folder, record))
    _check_tensors(opened, record)
    return opened


def _runner(record: Record) -> Flavour:
    """The library that opens the plan: the one that built it, or the lean one where only that is here."""
    built_by = flavour(record.options.flavour)
    lean = FLAVOURS["tensorrt_lean"]
    if record.options.version_compatible and not is_installed(built_by) and is_installed(lean):
        return lean
    return built_by


def _check_memory(folder: Path, record: Record, options: EngineOptions) -> None:
    """Say how much device memory the plan takes; EngineError where that is over the limit."""
    needed = plans.device_bytes(folder, record, options.contexts)
    if needed is None:
        logger.info("%s takes an unknown amount of device memory until it is open", record.key)
        return
    logger.info("%s takes about %d MiB of device memory", record.key, needed >> 20)
    limit = options.memory_limit_mib
    if limit is not None and needed > limit * 2**20 and not record.options.weight_streaming:
        raise EngineError(
            f"{record.key} takes about {needed >> 20} MiB of device memory, over memory_limit_mib={limit}: "
            "allow more, use fewer contexts, or build with --weight-streaming"
        )


def _check_tensors(opened: Opened, record: Record) -> None:
    """BundleError unless the plan has the inputs and outputs that its record names, in their types."""
    engine = opened.engine
    assert engine is not None
    names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
    found = {name: numpy_type(name, engine.get_tensor_dtype(name)) for name in names}
    said = {spec.name: spec.dtype for spec in (*record.inputs, *record.outputs)}
    if found != said:
        raise BundleError(f"{record.key}: engine.json names {said}, the plan has {found}: build it again")


def _own_graph(folder: Path, record: Record) -> Path:
    """The graph that a stripped plan was built from; BundleError where it or its weights are others now."""
    bundle = folder.parent.parent
    for name, digest in record.files.items():
        path = bundle / name
        if not path.is_file() or _sha256(path) != digest:
            raise BundleError(f"{path} is not the file that {record.key} was built from: build again")
    return bundle / next(name for name in record.files if name.endswith(".onnx"))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _set_weight_budget(opened: Opened, options: EngineOptions) -> None:
    """Device memory for weights that may stay on the host: all of them, or what the limit leaves."""
    engine = opened.engine
    assert engine is not None
    streamable = engine.streamable_weights_size
    if streamable == 0:
        return
    budget = streamable
    if options.memory_limit_mib is not None:
        left = options.memory_limit_mib * 2**20 - options.contexts * opened.scratch_bytes
        budget = min(max(left, 0), streamable)
    engine.weight_streaming_budget_v2 = budget
