"""Commands of the server: serve."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from saccade.batching import Limits
from saccade.cli.app import AsJson, Device, EngineName, PrecisionName, Threads, app
from saccade.errors import MissingDependency, UsageError
from saccade.terminal import err

if TYPE_CHECKING:
    from saccade.serving.server import Server

_MIB = 2**20
_MOST_MIB = 2048  # gRPC takes no larger messages
_LEVELS = ("debug", "info", "warning", "error")


@app.command()
def serve(
    bundles: Annotated[
        list[str], typer.Argument(metavar="BUNDLE|NAME=BUNDLE...", help="Folders, .zip files or names.")
    ],
    host: Annotated[str, typer.Option(metavar="ADDRESS", help="0.0.0.0 is all addresses.")] = "127.0.0.1",
    http_port: Annotated[int, typer.Option(metavar="PORT", help="0 takes a free one.")] = 8000,
    grpc_port: Annotated[int, typer.Option(metavar="PORT", help="0 takes a free one.")] = 8001,
    grpc: Annotated[bool, typer.Option(help="Serve gRPC beside HTTP.")] = True,
    max_batch: Annotated[int, typer.Option(metavar="N", min=1, help="Rows per run.")] = 8,
    delay: Annotated[
        float, typer.Option(metavar="MS", min=0, help="How long a request waits for company.")
    ] = 0.0,
    max_queue: Annotated[int, typer.Option(metavar="N", min=1, help="Rows that may wait.")] = 256,
    timeout: Annotated[float, typer.Option(metavar="S", help="The longest that an answer takes.")] = 30.0,
    drain: Annotated[float, typer.Option(metavar="S", help="The longest that stopping takes.")] = 25.0,
    max_body: Annotated[float, typer.Option(metavar="MIB", help="The largest request.")] = 64.0,
    max_pixels: Annotated[int, typer.Option(metavar="N", help="The largest picture.")] = 50_000_000,
    token: Annotated[
        str | None,
        typer.Option(envvar="SACCADE_TOKEN", metavar="TEXT", help="Ask every request for this bearer token."),
    ] = None,
    tls_certificate: Annotated[Path | None, typer.Option(metavar="FILE.pem")] = None,
    tls_key: Annotated[Path | None, typer.Option(metavar="FILE.pem")] = None,
    shared_memory: Annotated[
        bool, typer.Option("--shared-memory", help="Take tensors in /dev/shm from clients on this machine.")
    ] = False,
    control: Annotated[bool, typer.Option(help="Let clients load and unload the bundles.")] = True,
    prove: Annotated[bool, typer.Option("--prove", help="Run every bundle's sample before serving.")] = False,
    trace: Annotated[
        bool, typer.Option("--trace", help="Send OpenTelemetry spans, by its environment variables.")
    ] = False,
    log_level: Annotated[str, typer.Option(metavar="LEVEL", help=", ".join(_LEVELS))] = "info",
    engine: EngineName = "auto",
    device: Device = "cpu",
    precision: PrecisionName = "fp32",
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Serve bundles over HTTP and gRPC (Open Inference Protocol), with a page at / and metrics at /metrics.

    SIGTERM and Ctrl-C answer what was accepted, then stop.

    Example: saccade serve digits-stvit --http-port 8000
    """
    try:
        from saccade.serving.logs import log_to_stderr
        from saccade.serving.repository import named
        from saccade.serving.server import run
        from saccade.serving.settings import ServerSettings
    except ImportError as error:
        raise MissingDependency(f"serving needs {error.name}: pip install 'saccade[serve]'") from error
    if log_level not in _LEVELS:
        raise UsageError(f"--log-level {log_level!r}: write {', '.join(_LEVELS)}")
    log_to_stderr(log_level)
    if trace:
        from saccade.serving.tracing import export_spans

        export_spans()
    settings = ServerSettings(
        host=host,
        http_port=http_port,
        grpc_port=grpc_port if grpc else None,
        engine=engine,
        device=device,
        precision=precision,
        threads=threads,
        prove=prove,
        batching=Limits(max_batch, delay, max_queue),
        request_timeout_ms=timeout * 1e3,
        drain_s=drain,
        max_body_bytes=_bytes(max_body),
        max_picture_pixels=max_pixels,
        token=token,
        tls_certificate=tls_certificate,
        tls_key=tls_key,
        shared_memory=shared_memory,
        control=control,
        tracing=trace,
    )
    run(settings, named(bundles), started=lambda server: _announce(server, as_json))


def _bytes(mebibytes: float) -> int:
    if not 0 < mebibytes < _MOST_MIB:  # so that it is neither infinite nor NaN
        raise UsageError(f"--max-body is {mebibytes}; it must be more than 0 and less than {_MOST_MIB} MiB")
    return int(mebibytes * _MIB)


def _announce(server: Server, as_json: bool) -> None:
    """Say once where the server answers."""
    if as_json:
        ports = {"http_port": server.http_port, "grpc_port": server.grpc_port or None}
        print(json.dumps({"ready": True, **ports, "models": list(server.repository.models)}), flush=True)
        return
    scheme = "https" if server.settings.tls_certificate else "http"
    lines = [f"{scheme}://{server.settings.host}:{server.http_port}  page, HTTP, /metrics, /openapi.json"]
    if server.grpc_port:
        lines.append(f"grpc://{server.settings.host}:{server.grpc_port}")
    lines.append(f"models: {', '.join(server.repository.models)}")
    for line in lines:
        err.print(escape(line), highlight=False)
