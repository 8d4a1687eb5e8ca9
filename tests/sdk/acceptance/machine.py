"""A machine with a GPU and TensorRT that run any graph: the stand-ins of tests/engines, with ONNX Runtime
where NVIDIA's kernels would be. Plans are compiled in this process, so that every call can be made to fail.
"""

from __future__ import annotations

import base64
import ctypes
import enum
import functools
import json
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnx.inliner
import onnxruntime
import pytest
from numpy.typing import NDArray
from tests.engines.fake_tensorrt import (
    LayerType,
    Trt,
    World,
    _Builder,
    _Context,
    _Engine,
    _Inspector,
    _Layer,
    _Network,
    _Parser,
    _Plan,
    _Runtime,
    _Tensor,
)
from tests.engines.faults import Faults, call

from saccade.engines.kernels import plugins
from saccade.engines.tensorrt import child
from saccade.engines.tensorrt.compiler import Outcome, Request, compile_plan

VERSION = "11.4.0.106"


class DataType(enum.Enum):
    FLOAT = onnx.TensorProto.FLOAT
    HALF = onnx.TensorProto.FLOAT16
    BF16 = onnx.TensorProto.BFLOAT16
    INT32 = onnx.TensorProto.INT32
    INT64 = onnx.TensorProto.INT64
    INT8 = onnx.TensorProto.INT8


class Tensor(_Tensor):
    """An input or output of a graph."""

    def __init__(self, value: onnx.ValueInfoProto) -> None:
        kind = value.type.tensor_type
        self._names = [size.dim_param for size in kind.shape.dim]
        shape = tuple(-1 if size.dim_param else size.dim_value for size in kind.shape.dim)
        super().__init__(value.name, DataType(kind.elem_type), shape)  # type: ignore[arg-type]

    def get_dimension_name(self, axis: int) -> str:
        return self._names[axis]


class Network(_Network):
    model = onnx.ModelProto()

    @property
    def num_inputs(self) -> int:  # type: ignore[override]
        return len(self.model.graph.input)

    def get_input(self, index: int) -> Tensor:
        return Tensor(self.model.graph.input[index])


class Parser(_Parser):
    @call(False)
    def parse_from_file(self, path: str) -> bool:
        network: Any = self._network
        network.model = onnx.load(path)
        operands = [SimpleNamespace(dtype=DataType(kind)) for kind in _multiplied(network.model)]
        network.dtype = DataType.HALF if any(o.dtype is DataType.HALF for o in operands) else DataType.FLOAT
        network.layers = [
            _Layer("conv1_kernel", "conv1", LayerType.MATRIX_MULTIPLY, operand)  # type: ignore[arg-type]
            for operand in operands
        ]
        return True


def _multiplied(model: onnx.ModelProto) -> list[int]:
    """Types of what matrix products read, in the bodies of functions too."""
    whole = onnx.shape_inference.infer_shapes(onnx.inliner.inline_local_functions(model), data_prop=False)
    types = {value.name: value.type.tensor_type.elem_type for value in whole.graph.value_info}
    return [types.get(node.input[0], 1) for node in whole.graph.node if node.op_type == "MatMul"]


class Builder(_Builder):
    """A plan says which types it runs in and whether it has plugins, and holds the graph."""

    @call(None)
    def create_network(self, flags: int) -> Network:
        return Network(self._world)

    @call(None)
    def build_serialized_network(self, network: Any, config: Any) -> _Plan:
        world: Any = self._world
        nodes = network.model.graph.node
        quantized = any(node.op_type == "QuantizeLinear" for node in nodes) and world.fuses_quantization
        plan = {
            "types": [network.dtype.name, *(["INT8"] if quantized else [])],
            "plugins": [
                node.name for node in nodes if f"{node.domain}::{node.op_type}" in world.plugin.known
            ],
            "shapes": config.profiles[0].shapes,
            "model": base64.b64encode(world.miscompile(network.model).SerializeToString()).decode(),
        }
        return _Plan(json.dumps(plan).encode())


class Inspector(_Inspector):
    def get_engine_information(self, layout: Any) -> str:
        spelt = {"FLOAT": "Float", "HALF": "Half", "INT8": "Int8"}
        tensors = [{"Format": "Row major linear", "Datatype": spelt[each]} for each in self._type]
        return json.dumps({"Layers": [{"Name": "conv1", "Inputs": [], "Outputs": tensors}]})


@functools.lru_cache(maxsize=16)
def session(model: str) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(base64.b64decode(model), options, ["CPUExecutionProvider"])


class Engine(_Engine):
    def __init__(self, world: World, plan: dict[str, Any]) -> None:
        super().__init__(world, plan)
        graph = onnx.ModelProto.FromString(base64.b64decode(plan["model"])).graph
        self.given = {value.name: Tensor(value) for value in graph.input}
        self.made = {value.name: Tensor(value) for value in graph.output}

    @property
    def num_io_tensors(self) -> int:  # type: ignore[override]
        return len(self.given) + len(self.made)

    def get_tensor_name(self, index: int) -> str:
        return [*self.given, *self.made][index]

    def get_tensor_mode(self, name: str) -> Any:
        return SimpleNamespace(name="INPUT" if name in self.given else "OUTPUT")

    def get_tensor_dtype(self, name: str) -> Any:
        return {**self.given, **self.made}[name].dtype

    def get_tensor_profile_shape(self, name: str, profile: int) -> list[tuple[int, ...]]:
        return [tuple(shape) for shape in self.plan["shapes"].get(name, [self.given[name].shape] * 3)]

    @call(None)
    def create_execution_context(self, strategy: Any) -> Context:
        context = Context(self._world, self)
        context.error_recorder = self.error_recorder
        return context

    @call(None)
    def create_engine_inspector(self) -> Inspector:
        return Inspector(self._world, self.plan["types"])


class Context(_Context):
    def __init__(self, world: World, engine: Engine) -> None:
        super().__init__(world, engine)
        self._plan = engine.plan
        self._given = engine.given
        self._made = engine.made
        self._shapes: dict[str, tuple[int, ...]] = {}

    @call(False)
    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self._changes += 1
        self._shapes[name] = tuple(shape)
        return True

    @call((-1,))
    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        if name in self._shapes:
            return self._shapes[name]
        zeros = {key: np.zeros(shape, _numpy(self._given[key])) for key, shape in self._shapes.items()}
        (found,) = session(self._plan["model"]).run([name], zeros)
        return tuple(found.shape)

    @call(False)
    def execute_async_v3(self, stream: int) -> bool:
        addresses, shapes, world = dict(self._addresses), dict(self._shapes), self._world
        assert isinstance(world, GraphWorld)

        def work() -> None:
            feeds = {
                name: _view(addresses[name], shape, _numpy(self._given[name]))
                for name, shape in shapes.items()
            }
            answers = session(self._plan["model"]).run(list(self._made), feeds)
            for name, values in zip(self._made, answers, strict=True):
                spoilt = world.spoil(self._plan, name, values)
                _view(addresses[name], values.shape, values.dtype)[...] = spoilt

        world.cuda.enqueue(stream, work)
        return True


def _numpy(tensor: Tensor) -> np.dtype[Any]:
    return onnx.helper.tensor_dtype_to_np_dtype(tensor.dtype.value)


def _view(address: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
    size = int(np.prod(shape)) * dtype.itemsize
    return np.frombuffer((ctypes.c_char * size).from_address(address), dtype).reshape(shape)


class Runtime(_Runtime):
    @call(None)
    def deserialize_cuda_engine(self, plan: bytes) -> Engine:
        engine = Engine(self._world, json.loads(plan))
        engine.error_recorder = self.error_recorder
        return engine


class GraphTrt(Trt):
    DataType = DataType  # type: ignore[assignment]

    def Builder(self, log: Any) -> Any:
        return self._made("Builder", Builder(self._world))

    def OnnxParser(self, network: Any, log: Any) -> Any:
        return self._made("OnnxParser", Parser(self._world, network))

    def Runtime(self, log: Any) -> Any:
        return self._made("Runtime", Runtime(self._world))


class PluginModule:
    """The module `tensorrt.plugin`. known: what was registered, as "saccade::TokenAttention"."""

    TensorDesc = AutoTuneCombination = KernelLaunchParams = SymIntExprs = object

    def __init__(self, faults: Faults) -> None:
        self._faults = faults
        self.known: set[str] = set()

    def _noted(self, name: str) -> Callable[[Any], Any]:
        if self._faults.strikes(name, bindings=True):
            raise AttributeError(f"injected into {name}")
        return lambda function: function

    def register(self, identifier: str) -> Callable[[Any], Any]:
        decorate = self._noted("register")
        self.known.add(identifier)
        return decorate

    def autotune(self, identifier: str) -> Callable[[Any], Any]:
        return self._noted("autotune")

    def aot_impl(self, identifier: str) -> Callable[[Any], Any]:
        return self._noted("aot_impl")


class GraphWorld(World):
    """spoil: what becomes of an output, given the plan, its name and its values. miscompile: what the builder
    makes of a graph.

    fuses_quantization: whether the builder makes int8 layers of Q/DQ nodes.
    """

    def __init__(self, faults: Faults | None = None) -> None:
        super().__init__(faults, VERSION)
        self.trt = GraphTrt(self)
        self.plugin = PluginModule(self.faults)
        self.fuses_quantization = True
        self.spoil: Callable[[dict[str, Any], str, NDArray[Any]], NDArray[Any]] = lambda plan, name, v: v
        self.miscompile: Callable[[onnx.ModelProto], onnx.ModelProto] = lambda model: model

    def enter(self, patch: pytest.MonkeyPatch) -> GraphWorld:
        super().enter(patch)
        patch.setitem(sys.modules, "tensorrt.plugin", self.plugin)  # type: ignore[arg-type]
        patch.setattr(child, "run", functools.partial(self._compile, patch))
        return self

    def _compile(self, patch: pytest.MonkeyPatch, request: Request, **_: Any) -> tuple[Outcome, int]:
        """As a child does it, which has registered nothing yet."""
        patch.setattr(plugins, "_registered", [])
        self.plugin.known.clear()
        trt: Any = self.trt
        return compile_plan(trt, Request.from_json(json.loads(json.dumps(request.to_json())))), 1
