"""Everything that can be set about a server, in one frozen place."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from saccade.batching import Limits
from saccade.engines.engine import EngineOptions
from saccade.errors import UsageError
from saccade.ranges import DAY_S, Range

__all__ = ["LAST_CALLS_S", "TEXTS", "ServerSettings"]

LAST_CALLS_S = 0.5  # how long an open connection or stream must be silent before a draining server ends it
TEXTS = frozenset({"host", "engine", "device", "precision", "token"})  # the fields that are text
_MIB = 2**20
_HIGHEST_PORT = 65535


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """How a server listens, what it accepts, and how its models run. UsageError for what cannot be.

    host: the address of both ports; "0.0.0.0" is all of them. http_port, grpc_port: 0 takes a free one, None
    for grpc_port leaves gRPC out. engine, device, precision, threads: as in `saccade.load`. prove: run every
    bundle's sample before it serves.

    batching: how requests share runs, and how many may wait. request_timeout_ms: the longest that a request
    may take, from its last byte to its answer; a client may ask for less. upload_timeout_ms: from a request's
    first byte to its last. drain_s: how long a server that was told to stop may take for what it accepted.
    Each is a day at most.

    max_body_bytes, max_picture_pixels, max_waiting_pictures, max_connections: more is refused.

    token: what "Authorization: Bearer ..." must hold; health checks and the page are open without it.
    tls_certificate, tls_key: PEM files, both or none. shared_memory: clients on this machine may pass tensors
    in /dev/shm. control: clients may load and unload the models.
    """

    host: str = "127.0.0.1"
    http_port: int = 8000
    grpc_port: int | None = 8001
    engine: str = "auto"
    device: str = "cpu"
    precision: str = "fp32"
    threads: int | None = None
    prove: bool = False
    batching: Limits = field(default_factory=Limits)
    request_timeout_ms: float = 30_000.0
    upload_timeout_ms: float = 60_000.0
    drain_s: float = 25.0
    max_body_bytes: int = 64 * _MIB
    max_picture_pixels: int = 50_000_000
    max_waiting_pictures: int = 64
    max_connections: int = 4096
    token: str | None = field(default=None, repr=False)
    tls_certificate: Path | None = None
    tls_key: Path | None = None
    shared_memory: bool = False
    control: bool = True
    tracing: bool = False

    def __post_init__(self) -> None:
        for name, numbers in _NUMBERS.items():
            if getattr(self, name) is not None or name not in _OPTIONAL:
                numbers.check(name, getattr(self, name))
        for name in sorted(TEXTS - _OPTIONAL):
            if not isinstance(getattr(self, name), str):
                raise UsageError(f"{name} is {getattr(self, name)!r}; it must be text")
        for name in _SWITCHES:
            if not isinstance(getattr(self, name), bool):
                raise UsageError(f"{name} is {getattr(self, name)!r}; it must be true or false")
        EngineOptions(self.device, self.threads)  # refuses what cannot be
        if self.http_port and self.http_port == self.grpc_port:
            raise UsageError(f"http_port and grpc_port are both {self.http_port}: give two ports")
        if self.token is not None and not _is_token(self.token):
            raise UsageError("the token must be text of printable ASCII, at least one character")
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise UsageError("TLS takes a certificate and its key: give both files, or none")
        for file in (self.tls_certificate, self.tls_key):
            if file is not None and not file.is_file():
                raise UsageError(f"the TLS file {file} does not exist")

    def replace(self, **changes: object) -> ServerSettings:
        """A copy with other values."""
        return dataclasses.replace(self, **changes)  # type: ignore[arg-type]


def _is_token(value: object) -> bool:
    return isinstance(value, str) and value.isascii() and value.isprintable() and value != ""


_MOST = 2**31 - 1  # what gRPC takes as the size of a message
_NUMBERS: Mapping[str, Range] = {
    "http_port": Range(0, _HIGHEST_PORT, whole=True),
    "grpc_port": Range(0, _HIGHEST_PORT, whole=True),
    "threads": Range(1, 1024, whole=True),
    "request_timeout_ms": Range(1, 1000 * DAY_S),
    "upload_timeout_ms": Range(1, 1000 * DAY_S),
    "drain_s": Range(0.1, DAY_S),
    "max_body_bytes": Range(1, _MOST, whole=True),
    "max_picture_pixels": Range(1, _MOST, whole=True),
    "max_waiting_pictures": Range(1, 2**20, whole=True),
    "max_connections": Range(1, 2**20, whole=True),
}
_SWITCHES = ("prove", "shared_memory", "control", "tracing")
_OPTIONAL = frozenset({"grpc_port", "threads", "token"})
