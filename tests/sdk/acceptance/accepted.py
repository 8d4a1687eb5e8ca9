"""A record of acceptance, for tests of what reads them."""

from __future__ import annotations

from typing import Any

from saccade.acceptance.records import AcceptanceRecord, Step

SUMS = {"graphs/model.onnx": "b" * 64, "graphs/weights.bin": "c" * 64}


def record(**changes: Any) -> AcceptanceRecord:
    fields: dict[str, Any] = {
        "model": "tiny",
        "graph_sha256": dict(SUMS),
        "precision": "fp16",
        "gpu": "NVIDIA L4",
        "compute_capability": "89",
        "driver": "13.1",
        "flavour": "tensorrt",
        "version": "10.16.1.11",
        "versions": {"saccade": "0.1.0"},
        "date": "2026-11-21T12:00:00+00:00",
        "batch": (1, 8, 16),
        "size": None,
        "data": "imagenet",
        "random": False,
        "plan_sha256": {"function/model": "a" * 64},
        "engine_types": {"function/model": {"HALF": 3}},
        "latency_ms": {"function": 1.5, "plugin": 1.2},
        "plugin_speedup": 1.25,
        "accuracy": {"top1": 81.2},
        "verdict": "accepted",
        "failed_call": "",
        "steps": (Step("build function", "passed", 2.0),),
        "log": ("a warning",),
    }
    return AcceptanceRecord(**{**fields, **changes})
