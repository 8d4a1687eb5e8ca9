"""From an ONNX file to TensorRT's network: parse, free dimensions, and which number types do the work."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from saccade.engines.tensorrt.bindings import (
    Bindings,
    Builder,
    INetworkDefinition,
    IOptimizationProfile,
    ITensor,
    OnnxParser,
)
from saccade.engines.tensorrt.options import BuildOptions
from saccade.engines.tensorrt.words import Refusal, parser_refusal
from saccade.errors import EngineError, UsageError

T = TypeVar("T")
# Layers whose operands decide the precision of a network; ATTENTION_INPUT is the native fused attention.
WORKING_LAYERS = ("CONVOLUTION", "DECONVOLUTION", "MATRIX_MULTIPLY", "EINSUM", "ATTENTION_INPUT")
OPERANDS: Mapping[str, str] = {
    "fp32": "FLOAT",
    "tf32": "FLOAT",
    "fp16": "HALF",
    "bf16": "BF16",
    "int8": "FLOAT",  # between Q/DQ nodes, which the builder fuses into the layers
}
# What a finished plan must show: where nothing is int8 in it, the Q/DQ nodes were computed and not fused.
PLAN_TYPES: Mapping[str, str] = {**OPERANDS, "int8": "INT8"}
NUMPY: Mapping[str, str] = {
    "FLOAT": "float32",
    "HALF": "float16",
    "INT8": "int8",
    "UINT8": "uint8",
    "INT32": "int32",
    "INT64": "int64",
    "BOOL": "bool",
}


class Parsed(NamedTuple):
    """A network and why the parser refused the graph. The network reads weights that the parser owns: keep
    both until the plan is built.
    """

    network: INetworkDefinition
    parser: OnnxParser
    refusals: tuple[Refusal, ...]


def made(value: T | None, call: str) -> T:
    """What the library's `call` gave; EngineError naming it where that is nothing."""
    if value is None:
        raise EngineError(f"{call} gave nothing")
    return value


def parse(trt: Bindings, builder: Builder, log: Any, graph: Path) -> Parsed:
    """The network of the ONNX file, which reads its external weights from beside it."""
    flags = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network = made(builder.create_network(flags), "create_network")
    parser = trt.OnnxParser(network, log)
    if parser.parse_from_file(str(graph)):
        return Parsed(network, parser, ())
    refusals = [parser_refusal(parser.get_error(index)) for index in range(parser.num_errors)]
    said = [Refusal("", message) for message in log.errors]
    return Parsed(network, parser, tuple(refusals or said or [_SILENT]))


_SILENT = Refusal("", "the parser failed and gave no reason")


def inputs(network: INetworkDefinition) -> list[ITensor]:
    return [network.get_input(index) for index in range(network.num_inputs)]


def numpy_type(name: str, dtype: Any) -> str:
    """NumPy's name of a DataType; EngineError where NumPy has no such type."""
    if dtype.name not in NUMPY:
        raise EngineError(
            f"{name!r} has type {dtype.name}, which NumPy lacks: cast graph inputs and outputs to float32"
        )
    return NUMPY[dtype.name]


def fill_profile(
    profile: IOptimizationProfile,
    network: INetworkDefinition,
    options: BuildOptions,
    shapes: Mapping[str, Sequence[Sequence[int]]],
) -> None:
    """Least, best and greatest shape of every input with free dimensions.

    A dimension is known by its ONNX name: batch, height or width. `shapes` of an input go before. UsageError
    where sizes are missing.
    """
    known = options.dimensions()
    used: set[str] = set()
    for tensor in inputs(network):
        shape = tuple(tensor.shape)
        if -1 not in shape:
            continue
        if tensor.name in shapes:
            profile.set_shape(tensor.name, *(tuple(each) for each in shapes[tensor.name]))
            used.update(known)
            continue
        names = [
            tensor.get_dimension_name(axis) or ("batch" if axis == 0 else "") for axis in range(len(shape))
        ]
        free = [name for name, size in zip(names, shape, strict=True) if size < 0]
        if not set(free) <= set(known):
            raise UsageError(_wanting(tensor.name, names, shape))
        used.update(free)
        profile.set_shape(
            tensor.name,
            *(
                tuple(
                    known[name][which] if size < 0 else size for name, size in zip(names, shape, strict=True)
                )
                for which in range(3)
            ),
        )
    if options.size is not None and "height" not in used:
        raise UsageError("this graph has a fixed picture size: build it without size (--size)")


def _wanting(name: str, names: Sequence[str], shape: Sequence[int]) -> str:
    dimensions = ", ".join(n or "?" if size < 0 else str(size) for n, size in zip(names, shape, strict=True))
    if {"height", "width"} & set(names):
        return (
            f"input {name!r} ({dimensions}) has free picture sizes: "
            "say which with size, as --size 224x224,640x640,1024x1024"
        )
    return f"input {name!r} ({dimensions}) has dynamic dimensions other than batch, height and width"


def working_types(trt: Bindings, network: INetworkDefinition) -> Counter[str]:
    """How many matrix products and convolutions take operands of each type."""
    working = {getattr(trt.LayerType, name) for name in WORKING_LAYERS}
    found: Counter[str] = Counter()
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        operand = layer.get_input(0) if layer.type in working else None
        if operand is not None:
            found[operand.dtype.name] += 1
    return found


def check_precision(options: BuildOptions, found: Mapping[str, int]) -> None:
    """EngineError unless the working layers run in the precision asked for, but for float32 islands."""
    wanted = OPERANDS[options.precision]
    strangers = set(found) - {wanted, "FLOAT"}
    if strangers or (found and wanted not in found):
        counts = ", ".join(f"{count} in {name}" for name, count in found.items())
        raise EngineError(
            f"precision {options.precision} was asked for, and the graph's matrix products and convolutions "
            f"run otherwise: {counts}. The graph decides the precision: build from one of that precision"
        )
