"""Metrics for Prometheus, under Triton's names where Triton has them, so that its dashboards work.

Written here, in the text format 0.0.4: the official client library ends every counter's name in _total,
which Triton's do not.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from saccade.serving.repository import VERSION, Repository

__all__ = ["exposition", "metrics_routes"]

_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_REASONS = ("REJECTED", "CANCELED", "BACKEND", "OTHER")
_EDGES = (1, 2, 4, 8, 16, 32, 64, 128)  # rows of a run

_HELP: Mapping[str, tuple[str, str]] = {
    "nv_inference_request_success": ("counter", "Requests that were answered"),
    "nv_inference_request_failure": ("counter", "Requests that failed, by reason"),
    "nv_inference_count": ("counter", "Rows that were inferred"),
    "nv_inference_exec_count": ("counter", "Runs of the engine"),
    "nv_inference_request_duration_us": ("counter", "Microseconds of requests, from body to answer"),
    "nv_inference_queue_duration_us": ("counter", "Microseconds that requests waited for a run"),
    "nv_inference_compute_infer_duration_us": ("counter", "Microseconds that the engine ran"),
    "nv_inference_pending_request_count": ("gauge", "Requests that have no answer yet"),
    "saccade_batch_rows": ("histogram", "Rows of each run"),
    "saccade_model_ready": ("gauge", "1 while the model answers"),
    "saccade_model_info": ("gauge", "1; its labels say what runs the model"),
    "saccade_info": ("gauge", "1; its labels say what serves"),
    "process_resident_memory_bytes": ("gauge", "Resident memory"),
    "process_cpu_seconds_total": ("counter", "Processor time, user and system"),
    "process_open_fds": ("gauge", "Open file descriptors"),
    "process_start_time_seconds": ("gauge", "Start of the server since the epoch"),
}
_START = time.time()


@dataclass(frozen=True, slots=True)
class Sample:
    """One line. suffix: what a histogram adds to the family's name."""

    family: str
    labels: Mapping[str, str]
    value: float
    suffix: str = ""


def metrics_routes(repository: Repository) -> list[BaseRoute]:
    """GET /metrics."""

    async def metrics(request: Request) -> Response:
        return Response(exposition(repository), media_type=_TYPE)

    return [Route("/metrics", metrics, methods=["GET"])]


def exposition(repository: Repository) -> str:
    """Everything that is measured now, as Prometheus reads it."""
    by_family: dict[str, list[Sample]] = {}
    for sample in _samples(repository):
        by_family.setdefault(sample.family, []).append(sample)
    return "".join(_family(name, by_family[name]) for name in _HELP if name in by_family)


def _samples(repository: Repository) -> Iterator[Sample]:
    for name in repository.models:
        yield from _of_model(repository, name)
    yield Sample("saccade_info", {"version": version("saccade")}, 1)
    yield from _of_process()


def _of_model(repository: Repository, name: str) -> Iterator[Sample]:
    counters, sums = repository.models[name].counters, repository.statistics(name)
    labels = {"model": name, "version": VERSION}
    values = {
        "nv_inference_request_success": counters.successes,
        "nv_inference_count": sums.rows,
        "nv_inference_exec_count": sums.runs,
        "nv_inference_request_duration_us": (counters.success_ns + counters.failure_ns) // 1000,
        "nv_inference_queue_duration_us": sums.queue_ns // 1000,
        "nv_inference_compute_infer_duration_us": sums.compute_ns // 1000,
        "nv_inference_pending_request_count": counters.pending,
        "saccade_model_ready": int(repository.is_ready(name)),
    }
    yield from (Sample(family, labels, value) for family, value in values.items())
    for reason in _REASONS:
        failed = counters.failures.get(reason, 0)
        yield Sample("nv_inference_request_failure", {**labels, "reason": reason}, failed)
    for edge in (*_EDGES, float("inf")):
        runs = sum(count for rows, count in sums.rows_by_run.items() if rows <= edge)
        bound = {**labels, "le": "+Inf" if edge == float("inf") else str(edge)}
        yield Sample("saccade_batch_rows", bound, runs, "_bucket")
    yield Sample("saccade_batch_rows", labels, sums.rows, "_sum")
    yield Sample("saccade_batch_rows", labels, sum(sums.rows_by_run.values()), "_count")
    known = repository.card(name)
    if known is not None:
        yield Sample("saccade_model_info", {**labels, "engine": known[1], "task": known[0].task}, 1)


def _of_process() -> Iterator[Sample]:
    with open("/proc/self/statm", encoding="ascii") as file:
        pages = int(file.read().split()[1])
    yield Sample("process_resident_memory_bytes", {}, pages * os.sysconf("SC_PAGE_SIZE"))
    yield Sample("process_cpu_seconds_total", {}, time.process_time())
    yield Sample("process_open_fds", {}, len(os.listdir("/proc/self/fd")))
    yield Sample("process_start_time_seconds", {}, _START)


def _family(name: str, samples: Iterable[Sample]) -> str:
    kind, text = _HELP[name]
    return "".join([f"# HELP {name} {text}\n# TYPE {name} {kind}\n", *map(_line, samples)])


def _line(sample: Sample) -> str:
    """No label holds what would have to be escaped: model names, engines and tasks are plain words."""
    pairs = ",".join(f'{key}="{value}"' for key, value in sample.labels.items())
    return f"{sample.family}{sample.suffix}{{{pairs}}} {sample.value}\n".replace("{}", "")
