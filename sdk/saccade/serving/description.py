"""What the server says of itself and its models: the same facts for HTTP (as JSON) and gRPC (as messages)."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

from saccade.batching import Statistics
from saccade.engines.engine import TensorSpec
from saccade.serving.counters import Counters
from saccade.serving.repository import VERSION, Repository
from saccade.serving.settings import ServerSettings
from saccade.serving.tensors import datatype_of, metadata

__all__ = ["index", "model_config", "model_metadata", "model_statistics", "server_metadata"]

_PLATFORMS = {"onnxruntime": "onnxruntime_onnx", "tensorrt": "tensorrt_plan", "openvino": "openvino"}


def server_metadata(settings: ServerSettings) -> dict[str, Any]:
    """Name, version, and the extensions of the protocol that are on."""
    optional = {"model_repository": settings.control, "system_shared_memory": settings.shared_memory}
    extensions = ["binary_tensor_data", "model_configuration", "statistics"]
    extensions += [name for name, on in optional.items() if on]
    return {"name": "saccade", "version": version("saccade"), "extensions": extensions}


def model_metadata(repository: Repository, name: str, wanted: str = "") -> dict[str, Any]:
    """Inputs and outputs with their whole shapes; -1 is free."""
    model, loaded = repository.model(name, wanted)
    engine = loaded.engines[model.graph]
    return {
        "name": name,
        "versions": [VERSION],
        "platform": platform(loaded.predictor.engine_name),
        "inputs": metadata(list(engine.inputs.values())),
        "outputs": metadata(list(engine.outputs.values())),
    }


def model_config(repository: Repository, name: str, wanted: str = "") -> dict[str, Any]:
    """The part of Triton's configuration that clients use to shape their requests."""
    model, loaded = repository.model(name, wanted)
    engine = loaded.engines[model.graph]
    specs = [*engine.inputs.values(), *engine.outputs.values()]
    batched = all(spec.shape and isinstance(spec.shape[0], str) for spec in specs)
    limits = engine.batcher.limits
    return {
        "name": name,
        "platform": platform(loaded.predictor.engine_name),
        "backend": loaded.predictor.engine_name,
        "max_batch_size": limits.max_rows if batched else 0,
        "input": _config_tensors(list(engine.inputs.values()), batched),
        "output": _config_tensors(list(engine.outputs.values()), batched),
        "dynamic_batching": {"max_queue_delay_microseconds": int(limits.max_delay_ms * 1e3)},
    }


def model_statistics(repository: Repository, name: str = "", wanted: str = "") -> list[dict[str, Any]]:
    """Sums since the server began, of one model or of all."""
    if name:
        repository.model(name, wanted)
    names = [name] if name else list(repository.models)
    return [
        _statistics(each, repository.models[each].counters, repository.statistics(each)) for each in names
    ]


def index(repository: Repository, ready: bool = False) -> list[dict[str, str]]:
    """Every model with its state; only those that are ready, where `ready`."""
    return [each for each in repository.index() if not ready or each["state"] == "READY"]


def platform(engine_name: str) -> str:
    """What Triton calls models of an engine."""
    return _PLATFORMS.get(engine_name, engine_name)


def _config_tensors(specs: Sequence[TensorSpec], batched: bool) -> list[dict[str, Any]]:
    """Shapes less the batch, where the model has one."""
    return [
        {
            "name": spec.name,
            "data_type": f"TYPE_{datatype_of(spec.dtype)}",
            "dims": [size if isinstance(size, int) else -1 for size in spec.shape[batched:]],
        }
        for spec in specs
    ]


def _statistics(name: str, counters: Counters, sums: Statistics) -> dict[str, Any]:
    failed = sum(counters.failures.values())
    runs = [
        {"batch_size": rows, "compute_infer": _duration(count, 0)}
        for rows, count in sorted(sums.rows_by_run.items())
    ]
    return {
        "name": name,
        "version": VERSION,
        "last_inference": counters.last_inference_ms,
        "inference_count": sums.rows,
        "execution_count": sums.runs,
        "inference_stats": {
            "success": _duration(counters.successes, counters.success_ns),
            "fail": _duration(failed, counters.failure_ns),
            "queue": _duration(sums.requests, sums.queue_ns),
            "compute_input": _duration(0, 0),
            "compute_infer": _duration(sums.runs, sums.compute_ns),
            "compute_output": _duration(0, 0),
        },
        "batch_stats": runs,
    }


def _duration(count: int, nanoseconds: int) -> dict[str, int]:
    return {"count": count, "ns": nanoseconds}
