"""A bundle's TensorRT plans as files of a Triton model: one for every kind of GPU that they serve."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from saccade.batching import Limits
from saccade.bundle import Bundle
from saccade.engines.engine import TensorSpec
from saccade.engines.tensorrt import plans
from saccade.engines.tensorrt.plans import Record
from saccade.errors import UsageError
from saccade.serving import triton_config as config

__all__ = ["Plan", "find_plans"]


@dataclass(frozen=True, slots=True)
class Plan:
    """Plans of one graph. files: their contents by name; capabilities: "8.6" -> name, {} for one plan."""

    files: Mapping[str, bytes]
    capabilities: Mapping[str, str]
    records: tuple[Record, ...]

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return self.records[0].inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return self.records[0].outputs

    def limits(self, wanted: Limits) -> Limits:
        """`wanted` within the batch sizes that all plans serve."""
        least = max(record.options.batch.min for record in self.records)
        most = min(record.options.batch.max for record in self.records)
        if least > 1:
            raise UsageError(
                f"the plan serves batches from {least} on, requests may have one row: build --batch 1,..."
            )
        return dataclasses.replace(wanted, max_rows=min(most, wanted.max_rows))

    def file_names(self) -> dict[str, Any]:
        """What config.pbtxt says of them, and which version of TensorRT the server must have."""
        return {
            "default_model_filename": next(iter(self.files)),
            "cc_model_filenames": [{"key": key, "value": name} for key, name in self.capabilities.items()],
            **config.parameters({"tensorrt_version": self.records[0].version}),
        }

    def fitting(self, sample: Mapping[str, NDArray[Any]]) -> Mapping[str, NDArray[Any]]:
        """`sample`, where its picture has a size that the plans serve; {} otherwise."""
        for spec in self.inputs:
            for wanted, size in zip(
                spec.shape[1:], sample[spec.name].shape[1:] if sample else (), strict=False
            ):
                if isinstance(wanted, str) and not all(_serves(each, wanted, size) for each in self.records):
                    return {}
        return sample


def _serves(record: Record, dimension: str, size: int) -> bool:
    low, _, high = record.options.dimensions().get(dimension, (1, 1, 0))
    return low <= size <= high


def find_plans(bundle: Bundle, precision: str) -> dict[str, Plan]:
    """The newest plans of every graph for Triton's TensorRT backend; {} where a graph has none.

    TensorRT for RTX is another library: its plans are left out, as are those of another version than the
    newest plan's, those without weights, and those of graphs that have changed.
    """
    sums = {path: entry["sha256"] for path, entry in bundle.files.items()}
    found: dict[str, Plan] = {}
    for graph in bundle.graphs:
        fitting = [
            (folder, record)
            for folder, record in plans.records(bundle.path)
            if (record.graph, record.options.precision, record.options.flavour)
            == (graph, precision, "tensorrt")
            and not record.options.stripped
            and all(sums.get(path) == digest for path, digest in record.files.items())
        ]
        chosen: dict[str, tuple[Path, Record]] = {}
        for folder, record in fitting:
            if record.version == fitting[0][1].version:
                chosen.setdefault(_capability(record), (folder, record))
        if not chosen:
            return {}
        names = {
            key: f"model.sm{key.replace('.', '')}.plan" if len(chosen) > 1 else plans.PLAN for key in chosen
        }
        found[graph] = Plan(
            {names[key]: plans.read_plan(*pair) for key, pair in chosen.items()},
            names if len(chosen) > 1 else {},
            tuple(record for _, record in chosen.values()),
        )
    return found


def _capability(record: Record) -> str:
    """As Triton writes it: "8.6"."""
    assert record.gpu is not None  # TensorRT itself builds on a GPU only
    return f"{record.gpu.capability[:-1]}.{record.gpu.capability[-1]}"
