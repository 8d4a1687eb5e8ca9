"""Stand-in for TensorRT, and a machine with it, CUDA and a driver (fake_cuda.py).

They keep to NVIDIA's API (test_tensorrt_api.py holds the names to it), run one small network on the host, and
let any one call go wrong. The network: logits (batch, 10) float32 are three times the first ten numbers of
each image (batch, 3, 4, 4).
"""

from __future__ import annotations

import ctypes
import enum
import json
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.engines.fake_cuda import Cuda, Driver, DriverApi
from tests.engines.faults import Faults, call

IMAGE = (3, 4, 4)
VERSION = "10.16.1.11"


def image(batch: int, seed: int = 0) -> np.ndarray[Any, Any]:
    """Input for it."""
    return np.random.default_rng(seed).standard_normal((batch, *IMAGE)).astype(np.float32)


def logits(image: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """What the network computes."""
    return (image.reshape(len(image), -1)[:, :10] * 3).astype(np.float32)


class DataType(enum.Enum):
    FLOAT = 0
    HALF = 1
    INT32 = 3


class LayerType(enum.Enum):
    CONVOLUTION = 0
    DECONVOLUTION = 1
    MATRIX_MULTIPLY = 2
    EINSUM = 3
    ATTENTION_INPUT = 4
    SHUFFLE = 5


class Severity(enum.IntEnum):
    INTERNAL_ERROR = 0
    ERROR = 1
    WARNING = 2
    INFO = 3
    VERBOSE = 4


class OnDevice:
    """An array in the stand-in's device memory, as another library would hand it over."""

    def __init__(self, world: World, array: np.ndarray[Any, Any], **changes: Any) -> None:
        _, address = world.cuda.cudaMalloc(array.nbytes)
        ctypes.memmove(address, array.ctypes.data, array.nbytes)
        data = {"shape": array.shape, "typestr": array.dtype.str, "data": (address, False), "version": 3}
        self.__cuda_array_interface__ = {**data, "strides": None, "stream": None, **changes}


def _members(name: str, *members: str) -> Any:
    return enum.IntEnum(name, members, start=0)  # type: ignore[misc]


class ILogger:
    Severity = Severity


class IErrorRecorder:
    pass


class IProgressMonitor:
    pass


class _Object:
    """Base of the fakes: the faults, and the recorder that hears of failures."""

    is_binding = True

    def __init__(self, world: World) -> None:
        self._world = world
        self._faults = world.faults
        self.error_recorder: Any = None

    def _complain(self, words: str) -> None:
        if self.error_recorder is not None:
            self.error_recorder.report_error(1, f"[conv1_kernel] {words}")


class _Tensor:
    def __init__(self, name: str, dtype: DataType, shape: tuple[int, ...]) -> None:
        self.name, self.dtype, self.shape = name, dtype, shape

    def get_dimension_name(self, axis: int) -> str:
        return "batch" if axis == 0 else ""


class _Layer:
    num_inputs = 1

    def __init__(self, name: str, node: str, kind: LayerType, operand: _Tensor) -> None:
        self.name, self.metadata, self.type = name, f"[ONNX Layer: {node}]", kind
        self._operand = operand

    def get_input(self, index: int) -> _Tensor:
        return self._operand


class _Network(_Object):
    num_inputs = num_outputs = 1

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self.layers: list[_Layer] = []
        self.dtype = DataType.FLOAT

    @property
    def num_layers(self) -> int:
        return len(self.layers)

    def get_layer(self, index: int) -> _Layer:
        return self.layers[index]

    def get_input(self, index: int) -> _Tensor:
        return _Tensor("image", DataType.FLOAT, (-1, *IMAGE))

    def get_output(self, index: int) -> _Tensor:
        return _Tensor("logits", DataType.FLOAT, (-1, 10))


class _ParserError:
    def __init__(self, words: str) -> None:
        self._words = words

    def desc(self) -> str:
        return self._words

    def node(self) -> int:
        return 0

    def node_name(self) -> str:
        return "conv1"

    def node_operator(self) -> str:
        return "Conv"

    def local_function_stack(self) -> list[str]:
        return []


class _Parser(_Object):
    def __init__(self, world: World, network: _Network) -> None:
        super().__init__(world)
        self._network = network
        self._errors: list[_ParserError] = []

    def _complain(self, words: str) -> None:
        self._errors.append(_ParserError(words))

    @property
    def num_errors(self) -> int:
        return len(self._errors)

    def get_error(self, index: int) -> _ParserError:
        return self._errors[index]

    @call(False)
    def parse_from_file(self, path: str) -> bool:
        """The file's text is the type of the network's operands; a real graph is one in float32."""
        content = Path(path).read_bytes()
        self._network.dtype = DataType.HALF if content == b"HALF" else DataType.FLOAT
        operand = _Tensor("image", self._network.dtype, (-1, *IMAGE))
        self._network.layers = [
            _Layer("conv1_kernel", "conv1", LayerType.CONVOLUTION, operand),
            _Layer("flat", "flat", LayerType.SHUFFLE, operand),
        ]
        return True


class _TimingCache(_Object):
    def __init__(self, world: World, content: bytes) -> None:
        super().__init__(world)
        self.content = content

    @call(None)
    def serialize(self) -> bytes:
        return self.content + b"+"


class _Profile(_Object):
    def __init__(self, world: World) -> None:
        super().__init__(world)
        self.shapes: dict[str, list[tuple[int, ...]]] = {}

    def set_shape(self, name: str, *shapes: tuple[int, ...]) -> None:
        self.shapes[name] = list(shapes)


class _Config(_Object):
    builder_optimization_level = 3
    hardware_compatibility_level = 0
    profiling_verbosity = 0

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self.flags: set[str] = {"TF32"}
        self.profiles: list[_Profile] = []
        self.progress_monitor: Any = None
        self.pools: dict[str, int] = {}
        self._cache: _TimingCache | None = None

    def set_flag(self, flag: Any) -> None:
        self.flags.add(flag.name)

    def clear_flag(self, flag: Any) -> None:
        self.flags.discard(flag.name)

    def set_memory_pool_limit(self, pool: Any, size: int) -> None:
        self.pools[pool.name] = size

    @call(-1)
    def add_optimization_profile(self, profile: _Profile) -> int:
        self.profiles.append(profile)
        return len(self.profiles) - 1

    @call(None)
    def create_timing_cache(self, content: bytes) -> _TimingCache:
        return _TimingCache(self._world, content)

    @call(False)
    def set_timing_cache(self, cache: _TimingCache, ignore_mismatch: bool) -> bool:
        self._cache = cache
        return True

    @call(None)
    def get_timing_cache(self) -> _TimingCache | None:
        return self._cache


class _Plan(bytes):
    @property
    def nbytes(self) -> int:
        return len(self)


class _Builder(_Object):
    @call(None)
    def create_network(self, flags: int) -> _Network:
        return _Network(self._world)

    @call(None)
    def create_builder_config(self) -> _Config:
        self._world.config = _Config(self._world)
        return self._world.config

    @call(None)
    def create_optimization_profile(self) -> _Profile:
        return _Profile(self._world)

    @call(None)
    def build_serialized_network(self, network: _Network, config: _Config) -> _Plan | None:
        monitor = config.progress_monitor
        monitor.phase_start("Building engine", None, 4)
        for step in range(4):
            if not monitor.step_complete("Building engine", step):
                self._complain("cancelled")
                return None
        monitor.phase_finish("Building engine")
        shapes = config.profiles[0].shapes["image"]
        return _Plan(json.dumps({"type": network.dtype.name, "image": shapes}).encode())


class _Inspector(_Object):
    def __init__(self, world: World, dtype: str) -> None:
        super().__init__(world)
        self._type = dtype

    def get_engine_information(self, layout: Any) -> str:
        spelt = {"FLOAT": "FP32", "HALF": "FP16"}[self._type]
        if self._world.version.startswith("10"):
            tensor = {"Format/Datatype": f"Row major linear {spelt} format"}
        else:
            tensor = {"Format": "Row major linear", "Datatype": {"FP32": "Float", "FP16": "Half"}[spelt]}
        return json.dumps({"Layers": [{"Name": "conv1", "Inputs": [], "Outputs": [tensor]}], "Bindings": []})


class _Engine(_Object):
    num_io_tensors = 2
    device_memory_size_v2 = 1 << 20
    streamable_weights_size = 0
    weight_streaming_budget_v2 = -1

    def __init__(self, world: World, plan: dict[str, Any]) -> None:
        super().__init__(world)
        self.plan = plan
        self.factor = 1.0
        self.streamable_weights_size = world.streamable

    def get_tensor_name(self, index: int) -> str:
        return ("image", "logits")[index]

    def get_tensor_mode(self, name: str) -> Any:
        return _members("TensorIOMode", "NONE", "INPUT", "OUTPUT")[
            {"image": "INPUT", "logits": "OUTPUT"}[name]
        ]

    def get_tensor_dtype(self, name: str) -> DataType:
        return DataType.FLOAT

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return (-1, *IMAGE) if name == "image" else (-1, 10)

    def get_tensor_profile_shape(self, name: str, profile: int) -> list[tuple[int, ...]]:
        return [tuple(shape) for shape in self.plan["image"]]

    @call(None)
    def create_execution_context(self, strategy: Any) -> _Context:
        context = _Context(self._world, self)
        context.error_recorder = self.error_recorder
        return context

    @call(None)
    def create_engine_inspector(self) -> _Inspector:
        return _Inspector(self._world, self.plan["type"])


class _Context(_Object):
    """Made without device memory. A graph that was captured from it dies with the next change to it, and has
    the weights of that time. After a failure, but for one to be captured, it is of no use.
    """

    def __init__(self, world: World, engine: _Engine) -> None:
        super().__init__(world)
        self._engine = engine
        self._batch = -1
        self._addresses: dict[str, int] = {}
        self._scratch = 0
        self._changes = 0
        self._broken = False

    def _complain(self, words: str) -> None:
        self._broken |= not self._world.cuda.recording
        super()._complain(words)

    @call(None)
    def set_device_memory(self, memory: int, size: int) -> None:
        assert memory % 256 == 0
        assert size >= self._engine.device_memory_size_v2
        self._scratch = memory

    @call(False)
    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self._changes += 1
        self._batch = shape[0]
        return True

    @call((-1, 10))
    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return (self._batch, *IMAGE) if name == "image" else (self._batch, 10)

    @call(False)
    def set_tensor_address(self, name: str, address: int) -> bool:
        assert address % 256 == 0
        self._changes += 1
        self._addresses[name] = address
        return True

    @call(False)
    def execute_async_v3(self, stream: int) -> bool:
        batch, addresses, changes = self._batch, dict(self._addresses), self._changes
        factor = self._engine.factor
        if self._broken or not self._scratch:
            self._complain("the context is broken, or no device memory was set")
            return False

        def work() -> None:
            assert self._changes == changes, "a graph was replayed after its context had changed"
            image = _view(addresses["image"], (batch, *IMAGE))
            _view(addresses["logits"], (batch, 10))[:] = logits(image) * factor
            self._world.executions += 1

        self._world.cuda.enqueue(stream, work)
        return True


def _view(address: int, shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    size = int(np.prod(shape))
    return np.ctypeslib.as_array((ctypes.c_float * size).from_address(address)).reshape(shape)


class _Runtime(_Object):
    engine_host_code_allowed = False

    @call(None)
    def deserialize_cuda_engine(self, plan: bytes) -> _Engine:
        engine = _Engine(self._world, json.loads(plan))
        engine.error_recorder = self.error_recorder
        self._world.engine = engine
        return engine


class _Refitter(_Object):
    """Weights are the factor that a graph's text ends with, as in "FLOAT 2"."""

    def __init__(self, world: World, engine: _Engine) -> None:
        super().__init__(world)
        self._engine = engine
        self.factor = 1.0

    @call(False)
    def refit_cuda_engine(self) -> bool:
        self._world.refitted = True
        self._engine.factor = self.factor
        return True

    def get_missing_weights(self) -> list[str]:
        return ["conv1.weight"]


class _OnnxParserRefitter(_Parser):
    def __init__(self, world: World, refitter: _Refitter) -> None:
        super().__init__(world, _Network(world))
        self._refitter = refitter

    @call(False)
    def refit_from_file(self, path: str) -> bool:
        _, _, factor = Path(path).read_text().partition(" ")
        self._refitter.factor = float(factor or 1)
        return True


class World:
    """One machine with TensorRT of `version` and a GPU. `trt`, `cuda` and `driver` are what code imports."""

    def __init__(self, faults: Faults | None = None, version: str = VERSION, streamable: int = 0) -> None:
        self.faults = faults or Faults()
        self.version = version
        self.streamable = streamable
        self.executions = 0
        self.refitted = False
        self.config: _Config | None = None
        self.engine: _Engine | None = None
        self.contexts = DriverApi(self.faults)
        self.cuda = Cuda(self.faults, self.contexts)
        self.driver = Driver(self.faults)
        self.trt = Trt(self)

    def enter(self, patch: pytest.MonkeyPatch) -> World:
        """Make this the machine that the code finds itself on."""
        load = ctypes.CDLL
        patch.setitem(sys.modules, "tensorrt", self.trt)  # type: ignore[arg-type]
        patch.setitem(sys.modules, "cuda.bindings.runtime", self.cuda)  # type: ignore[arg-type]
        patch.setitem(sys.modules, "cuda.bindings.driver", self.contexts)  # type: ignore[arg-type]
        patch.setattr(
            ctypes,
            "CDLL",
            lambda name, *more, **options: (
                self.driver if "libcuda" in str(name) else load(name, *more, **options)
            ),
        )
        return self


# What a child process imports as `tensorrt` when this is the file's content and its folder on PYTHONPATH.
IN_A_CHILD = """
import sys
import pytest
from tests.engines.fake_tensorrt import World
World(version={version!r}).enter(pytest.MonkeyPatch())
"""


class Trt:
    """The module `tensorrt`."""

    DataType = DataType
    LayerType = LayerType
    ILogger = ILogger
    IErrorRecorder = IErrorRecorder
    IProgressMonitor = IProgressMonitor
    BuilderFlag = _members(
        "BuilderFlag",
        *("TF32", "VERSION_COMPATIBLE", "STRIP_PLAN", "REFIT_IDENTICAL", "REFIT", "WEIGHT_STREAMING"),
    )
    ExecutionContextAllocationStrategy = _members(
        "ExecutionContextAllocationStrategy", "STATIC", "ON_PROFILE_CHANGE", "USER_MANAGED"
    )
    HardwareCompatibilityLevel = _members(
        "HardwareCompatibilityLevel", "NONE", "AMPERE_PLUS", "SAME_COMPUTE_CAPABILITY"
    )
    LayerInformationFormat = _members("LayerInformationFormat", "ONELINE", "JSON")
    MemoryPoolType = _members("MemoryPoolType", "WORKSPACE")
    NetworkDefinitionCreationFlag = _members(
        "NetworkDefinitionCreationFlag", "EXPLICIT_BATCH", "STRONGLY_TYPED"
    )
    ProfilingVerbosity = _members("ProfilingVerbosity", "LAYER_NAMES_ONLY", "NONE", "DETAILED")

    def __init__(self, world: World) -> None:
        self._world = world
        self.__version__ = world.version
        self.__spec__ = ModuleSpec("tensorrt", None)

    def _made(self, name: str, made: Any) -> Any:
        if self._world.faults.strikes(name, bindings=True):
            raise TypeError("pybind11::init(): factory function returned nullptr")
        return made

    def Builder(self, log: Any) -> Any:
        return self._made("Builder", _Builder(self._world))

    def OnnxParser(self, network: Any, log: Any) -> Any:
        return self._made("OnnxParser", _Parser(self._world, network))

    def Runtime(self, log: Any) -> Any:
        return self._made("Runtime", _Runtime(self._world))

    def Refitter(self, engine: Any, log: Any) -> Any:
        return self._made("Refitter", _Refitter(self._world, engine))

    def OnnxParserRefitter(self, refitter: Any, log: Any) -> Any:
        return self._made("OnnxParserRefitter", _OnnxParserRefitter(self._world, refitter))
