"""The kernels as TensorRT plugins: ahead-of-time ones, whose PTX is baked into the plan.

`register` makes TensorRT 10.15 and newer put a kernel in the place of every `saccade` node that it parses.
The plan then needs neither this package nor Python. What is registered is derived from the operator's
contract and the kernel's launch arithmetic; the PTX comes from the wheel, so neither Triton nor torch is
needed here. Status: API-checked; no TensorRT builder has run this in the project's own tests.
"""

# No `from __future__ import annotations`: TensorRT inspects annotations and takes no strings.

import importlib
import inspect
import warnings
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np

from saccade.engines.kernels import ptx
from saccade.engines.kernels.launch import Kernel
from saccade.engines.kernels.registry import KERNELS
from saccade.errors import EngineError, MissingDependency
from saccade.models.operators import DOMAIN

# TensorRT's names, as members of DataType and as autotuning spells them.
DATA_TYPES = {"FLOAT": "float32", "HALF": "float16", "BF16": "bfloat16"}
_AUTOTUNE_TYPES = {"float32": "FP32", "float16": "FP16", "bfloat16": "BF16"}
_target = SimpleNamespace(compute_capability=0)
_registered: list[str] = []


def register(compute_capability: int) -> tuple[str, ...]:
    """Register a plugin for every operator; what is built from now on is for one kind of GPU.

    compute_capability: 89 for 8.9. Returns the operators' names. A process registers once; later calls change
    the compute capability only. Raises MissingDependency without TensorRT, where it is older than its
    ahead-of-time plugins, and where it does not get along with the NumPy at hand.
    """
    _target.compute_capability = compute_capability
    if not _registered:
        trt, trtp = _tensorrt()
        for kernel in KERNELS.values():
            _define(kernel, trt, trtp)
            _registered.append(kernel.operator.name)
    return tuple(_registered)


def _tensorrt() -> tuple[Any, Any]:
    try:
        trt = importlib.import_module("tensorrt")
        trtp = importlib.import_module("tensorrt.plugin")
    except ImportError as error:
        raise MissingDependency("TensorRT is not installed: pip install 'saccade[tensorrt]'") from error
    if not hasattr(trtp, "aot_impl"):
        raise MissingDependency(
            f"TensorRT {trt.__version__} has no ahead-of-time plugins: "
            "pip install --upgrade 'saccade[tensorrt]'"
        )
    if int(trt.__version__.split(".")[0]) < 11 and not _one_element_is_a_number():
        raise MissingDependency(
            f"the plugin module of TensorRT {trt.__version__} cannot read a node's attributes with NumPy "
            f"{np.__version__}: pip install 'numpy<2.4', or --upgrade 'saccade[tensorrt]'"
        )
    return trt, trtp


def _one_element_is_a_number() -> bool:
    try:
        with warnings.catch_warnings(action="ignore"):
            int(np.zeros(1))
    except TypeError:
        return False
    return True


def _define(kernel: Kernel, trt: Any, trtp: Any) -> None:
    """Declare, autotune and implement one plugin. TensorRT passes inputs, attributes, then what is named."""
    identifier = f"{DOMAIN}::{kernel.operator.name}"
    inputs, attributes = kernel.operator.inputs, kernel.operator.attributes
    types = {getattr(trt.DataType, name): dtype for name, dtype in DATA_TYPES.items()}

    def split(arguments: Sequence[Any]) -> tuple[Sequence[Any], dict[str, int]]:
        values = arguments[len(inputs) : len(inputs) + len(attributes)]
        return arguments[: len(inputs)], dict(zip(attributes, map(int, values), strict=True))

    def describe(*tensors: Any, **_: int) -> Any:
        shapes = [tuple(tensor.shape_expr) for tensor in tensors[: len(inputs)]]
        output = trtp.ShapeExprs.from_tuple(kernel.output_shape(shapes))
        return trtp.from_shape_expr(output, dtype=tensors[0].dtype)

    def combinations(*arguments: Any) -> Any:
        # Here the profile's largest sizes are first known; the shape function sees symbols only.
        tensors, values = split(arguments)
        largest = [tuple(t.shape.max if t.shape.is_dynamic else t.shape) for t in tensors]
        if reason := kernel.refusal(largest, values):
            raise EngineError(
                f"the plugin {identifier} of {largest}: {reason}; build with --binding function"
            )
        names = [name for dtype, name in _AUTOTUNE_TYPES.items() if _has_ptx(kernel, dtype)]
        positions = ", ".join(["|".join(names)] * (len(inputs) + 1))
        return [trtp.AutoTuneCombination(positions, "LINEAR", list(kernel.tiles))]

    def launch(*arguments: Any) -> Any:
        (tensors, values), tile = split(arguments), int(arguments[-1])
        head_dim = kernel.head_dim([tensor.shape for tensor in tensors], values)
        record = ptx.find(
            kernel.name, types[tensors[0].dtype], _target.compute_capability, D=head_dim, TILE=tile
        )
        shapes = [tuple(tensor.shape_expr) for tensor in tensors]
        x, y, z = kernel.grid(shapes, values, tile)
        parameters = trtp.KernelLaunchParams(
            grid_x=x, grid_y=y, grid_z=z, block_x=record.block_x, shared_mem=record.shared_bytes
        )
        scalars = tuple(trtp.SymInt32(value) for value in kernel.scalar_values(shapes, values))
        return record.kernel, ptx.load(record), parameters, trtp.SymIntExprs.from_tuple(scalars)

    tensor = trtp.TensorDesc
    given = [*((name, tensor) for name in inputs), *((name, int) for name in attributes)]
    several = tuple[trtp.TensorDesc]
    launched = tuple[str, str, trtp.KernelLaunchParams, trtp.SymIntExprs]
    trtp.register(identifier)(_signed(describe, given, tensor))
    trtp.autotune(identifier)(
        _signed(combinations, [*given, ("outputs", several)], list[trtp.AutoTuneCombination])
    )
    trtp.aot_impl(identifier)(_signed(launch, [*given, ("outputs", several), ("tactic", int)], launched))


def _has_ptx(kernel: Kernel, dtype: str) -> bool:
    capability = _target.compute_capability
    return any(r.kernel == kernel.name and r.dtype == dtype and r.arch <= capability for r in ptx.records())


def _signed(
    function: Callable[..., Any], parameters: Sequence[tuple[str, Any]], returns: Any
) -> Callable[..., Any]:
    """`function` with the signature that TensorRT reads names, order and types from."""
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    listed = [inspect.Parameter(name, kind, annotation=annotation) for name, annotation in parameters]
    function.__signature__ = inspect.Signature(listed, return_annotation=returns)  # type: ignore[attr-defined]
    return function
