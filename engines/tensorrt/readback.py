"""What a finished plan says of itself: the number types it runs in, and the memory it takes."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from saccade.engines.tensorrt.bindings import Bindings, ICudaEngine
from saccade.engines.tensorrt.network import PLAN_TYPES
from saccade.engines.tensorrt.options import BuildOptions
from saccade.errors import EngineError

# NVIDIA's spellings, of either form of the inspector's report.
_SPELLINGS = {
    "FLOAT": r"FP32|Float|FLOAT",
    "HALF": r"FP16|Half|HALF",
    "BF16": r"BF16|BFloat16|BFLOAT16",
    "INT8": r"Int8|INT8",
    "FP8": r"FP8|Float8|E4M3",
}


def read_back(trt: Bindings, log: Any, options: BuildOptions, plan: memoryview) -> dict[str, Any]:
    """`engine_types` and `device_bytes` of a plan, opened on the GPU at hand; {} where it does not serve it.

    Must not be called without a driver. EngineError where the plan does not run in the precision asked for.
    """
    engine = trt.Runtime(log).deserialize_cuda_engine(bytes(plan))
    if engine is None:
        return {}
    found = engine_types(trt, engine)
    wanted = PLAN_TYPES[options.precision]
    lower = {"HALF", "BF16"} - {wanted}
    if found and (wanted not in found or lower & set(found)):
        counts = ", ".join(f"{count} tensors in {name}" for name, count in found.items())
        raise EngineError(
            f"precision {options.precision} was asked for, and the plan runs otherwise: {counts}"
        )
    return {"engine_types": dict(found), "device_bytes": engine.device_memory_size_v2}


def engine_types(trt: Bindings, engine: ICudaEngine) -> Counter[str]:
    """How many tensors between the layers of a plan have each type; empty where the plan does not say."""
    inspector = engine.create_engine_inspector()
    if inspector is None:
        return Counter()
    text = inspector.get_engine_information(trt.LayerInformationFormat.JSON)
    return Counter(name for spelt in _types(json.loads(text)) if (name := _known(spelt)))


def _types(report: Any) -> Iterator[str]:
    """Every text that describes a tensor's type: TensorRT 10 has it beside the format, 11 in its own field.

    Layers are texts where the plan was built with little verbosity; they describe no types.
    """
    for layer in report.get("Layers", ()):
        if not isinstance(layer, Mapping):
            continue
        for tensor in (*layer.get("Inputs", ()), *layer.get("Outputs", ())):
            for key, value in tensor.items():
                if re.sub(r"[^a-z]", "", key.lower()) in ("formatdatatype", "datatype"):
                    yield str(value)


def _known(text: str) -> str:
    for name, spelling in _SPELLINGS.items():
        if re.search(rf"(?<![A-Za-z0-9])(?:{spelling})(?![A-Za-z0-9])", text):
            return name
    return ""
