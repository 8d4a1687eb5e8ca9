"""OpenTelemetry, where it is wanted: one span for each request, under the caller's trace."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from saccade.errors import MissingDependency

__all__ = ["export_spans", "span"]

_NOTHING: AbstractContextManager[Any] = nullcontext()


def span(on: bool, scope: Mapping[str, Any]) -> AbstractContextManager[Any]:
    """A span around an HTTP request, a child of the one that its `traceparent` names."""
    if not on:
        return _NOTHING
    headers = {key.decode("latin-1"): value.decode("latin-1") for key, value in scope["headers"]}
    attributes = {"http.request.method": scope["method"], "url.path": scope["path"][:256]}
    return _started(f"{scope['method']} {scope['path'][:256]}", headers, attributes)


def call_span(on: bool, method: str, metadata: Mapping[str, str]) -> AbstractContextManager[Any]:
    """A span around a gRPC call."""
    return _started(method, metadata, {"rpc.system": "grpc", "rpc.method": method}) if on else _NOTHING


def export_spans() -> None:
    """Send spans where OpenTelemetry's environment variables say (OTEL_EXPORTER_OTLP_ENDPOINT and others)."""
    try:
        from opentelemetry import trace
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise MissingDependency("traces need OpenTelemetry: pip install 'saccade[otel]'") from error
    provider = TracerProvider(resource=Resource.create({"service.name": "saccade"}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)


def _started(
    name: str, carrier: Mapping[str, str], attributes: Mapping[str, str]
) -> AbstractContextManager[Any]:
    try:
        from opentelemetry import propagate, trace
    except ImportError as error:
        raise MissingDependency("traces need OpenTelemetry: pip install 'saccade[otel]'") from error
    started: AbstractContextManager[Any] = trace.get_tracer("saccade.serving").start_as_current_span(
        name,
        context=propagate.extract(dict(carrier)),
        kind=trace.SpanKind.SERVER,
        attributes=dict(attributes),
    )
    return started
