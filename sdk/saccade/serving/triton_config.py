"""What NVIDIA Triton is told of a model: config.pbtxt, as protobuf text of its public `ModelConfig` message.

https://github.com/triton-inference-server/common/blob/main/protobuf/model_config.proto
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from saccade.batching import Limits
from saccade.engines.engine import TensorSpec
from saccade.errors import UsageError

__all__ = ["Message", "Word", "batching", "instances", "parameters", "tensors", "text", "warm_up"]

# Fields by name; a repeated one is a list, a map a list of {"key": ..., "value": ...}.
Message: TypeAlias = Mapping[str, Any]

TYPES: Mapping[str, str] = {
    "bool": "BOOL",
    "uint8": "UINT8",
    "uint16": "UINT16",
    "int32": "INT32",
    "int64": "INT64",
    "float16": "FP16",
    "bfloat16": "BF16",
    "float32": "FP32",
    "float64": "FP64",
    "bytes": "STRING",
}


class Word(str):
    """The name of an enum's value: written without quotes."""


def text(message: Message, indent: str = "") -> str:
    """`message` in the text format of protocol buffers.

    >>> print(text({"name": "a", "input": [{"dims": [3, -1]}], "kind": Word("KIND_CPU")}), end="")
    name: "a"
    input {
      dims: 3
      dims: -1
    }
    kind: KIND_CPU
    """
    lines = []
    for key, value in message.items():
        for each in value if isinstance(value, list) else [value]:
            if isinstance(each, Mapping):
                lines.append(f"{indent}{key} {{\n{text(each, indent + '  ')}{indent}}}\n")
            else:
                lines.append(f"{indent}{key}: {_literal(each)}\n")
    return "".join(lines)


def _literal(value: str | bool | int) -> str:
    if isinstance(value, Word):
        return value
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        # Bytes beyond ASCII as octal escapes, which every parser of the format reads.
        escaped = "".join(
            chr(b) if 32 <= b < 127 and chr(b) not in '"\\' else f"\\{b:03o}" for b in value.encode()
        )
        return f'"{escaped}"'
    return str(value)


def tensors(specs: Iterable[TensorSpec]) -> list[Message]:
    """Inputs or outputs, whose first dimension is the batch, which Triton leaves out. Free dimensions are -1.

    A tensor of the batch alone, (N,), is (N, 1) to clients: Triton has no tensors of rank 0.
    """
    found: list[Message] = []
    for spec in specs:
        shape: Message = {"dims": dims(spec.shape[1:])}
        if len(spec.shape) == 1:
            shape = {"dims": [1], "reshape": {}}
        found.append({"name": spec.name, "data_type": data_type(spec.dtype), **shape})
    return found


def data_type(dtype: str) -> Word:
    """Triton's name of a type that NumPy calls `dtype`."""
    if dtype not in TYPES:
        raise UsageError(f"Triton has no tensors of type {dtype}; it has {', '.join(TYPES)}")
    return Word(f"TYPE_{TYPES[dtype]}")


def dims(shape: Sequence[int | str]) -> list[int]:
    """Sizes with -1 for the free ones, which have names."""
    return [size if isinstance(size, int) else -1 for size in shape]


def batching(limits: Limits) -> Message:
    """Requests that wait are joined; beyond the limit of the queue they are refused."""
    return {
        "max_batch_size": limits.max_rows,
        "dynamic_batching": {
            "max_queue_delay_microseconds": round(limits.max_delay_ms * 1000),
            "default_queue_policy": {"max_queue_size": limits.max_queue_rows},
        },
    }


def instances(count: int, device: str) -> Message:
    """`count` copies of the model: on the CPU, or with "cuda" on each GPU that the server has."""
    kind = "KIND_CPU" if device == "cpu" else "KIND_GPU"
    return {"instance_group": [{"count": count, "kind": Word(kind)}]}


def parameters(values: Mapping[str, object | None]) -> Message:
    """What a backend is told by name; None leaves it to the backend."""
    given = {key: str(value) for key, value in values.items() if value is not None}
    return {"parameters": [{"key": key, "value": {"string_value": value}} for key, value in given.items()]}


def warm_up(sample: Mapping[str, NDArray[np.generic]]) -> Message:
    """One request of one row, made from `sample` arrays; their bytes lie in files of their names."""
    inputs = [
        {
            "key": name,
            "value": {
                "data_type": data_type(array.dtype.name),
                "dims": list(array.shape[1:]) or [1],
                "input_data_file": name,
            },
        }
        for name, array in sample.items()
    ]
    return {"model_warmup": [{"name": "conformance sample", "batch_size": 1, "inputs": inputs}]}
