"""Both ports, the models behind them, and the way down: listen, load, be ready, drain."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import signal
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import uvicorn

from saccade.errors import DeadlineError, UsageError
from saccade.serving.certificates import check_pair
from saccade.serving.connections import BoundedConnection
from saccade.serving.heap import keep_freed, share_heaps
from saccade.serving.http import create_app
from saccade.serving.repository import Repository
from saccade.serving.settings import LAST_CALLS_S, ServerSettings
from saccade.serving.shared_memory import SharedMemory

if TYPE_CHECKING:
    from uvicorn.server import ServerState

    from saccade.serving.rpc import RpcServer

__all__ = ["Server", "run"]

logger = logging.getLogger("saccade.serving")

_TICK_S = 0.02
_BACKLOG = 2048
_KEEP_ALIVE_S = 75  # longer than load balancers keep theirs (60 s): they close first, and lose nothing


def run(
    settings: ServerSettings,
    bundles: Mapping[str, str | Path],
    *,
    started: Callable[[Server], None] = lambda server: None,
) -> None:
    """Serve until SIGTERM or SIGINT, then drain. started: called once everything is ready.

    Raises UsageError, before any model is loaded, where a port is taken or a file for TLS is bad; what
    loading a bundle raises; and DeadlineError where something was still at work after `settings.drain_s`.
    """
    import uvloop

    keep_freed()
    share_heaps()  # before any thread has one
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(settings, bundles, started))


async def _serve(
    settings: ServerSettings, bundles: Mapping[str, str | Path], started: Callable[[Server], None]
) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    server = Server(settings, bundles)
    await server.listen()
    stopping = asyncio.ensure_future(stop.wait())
    loading = asyncio.ensure_future(server.repository.load_all())
    try:
        await asyncio.wait([loading, stopping], return_when=asyncio.FIRST_COMPLETED)
        if loading.done():
            loading.result()
            gc.freeze()  # what is there now stays: no collection looks at it again
            started(server)
            await stopping
    finally:
        loading.cancel()
        stopping.cancel()
        await server.drain()


class Server:
    """One repository on two ports. `listen`, `repository.load_all`, and in the end `drain`."""

    def __init__(self, settings: ServerSettings, bundles: Mapping[str, str | Path]) -> None:
        self.settings = settings
        self.repository = Repository(bundles, settings)
        self.memory = SharedMemory(settings.shared_memory)
        self.http_port = self.grpc_port = 0
        self._listener: socket.socket | None = None
        self._http: _Uvicorn | None = None
        self._rpc: RpcServer | None = None
        self._serving: asyncio.Task[None] | None = None

    async def listen(self) -> None:
        """Bind both ports, then answer on them: alive, not ready. UsageError where one is taken, or where the
        files for TLS are not what they should be."""
        if self.settings.tls_certificate is not None and self.settings.tls_key is not None:
            check_pair(self.settings.tls_certificate, self.settings.tls_key)
        self._listener = listener = _listener(self.settings)
        self.http_port = listener.getsockname()[1]
        try:
            if self.settings.grpc_port is not None:
                from saccade.serving.rpc import RpcServer

                self._rpc = RpcServer(self.repository, self.settings, self.memory)
                self.grpc_port = self._rpc.port
        except BaseException:
            listener.close()
            raise
        self._http = _Uvicorn(_config(create_app(self.repository, self.settings, self.memory), self.settings))
        # uvloop closes what it listens on; with a copy the kernel's queue outlives that (`_adopt_backlog`).
        self._serving = asyncio.create_task(self._http.serve([listener.dup()]))
        while not self._http.started:
            if self._serving.done():
                self._serving.result()
            await asyncio.sleep(_TICK_S)
        if self._rpc is not None:
            await self._rpc.start()

    async def drain(self) -> None:
        """Accept nothing new, answer what was accepted, close. DeadlineError after `settings.drain_s`."""
        self.repository.draining = True
        try:
            async with asyncio.timeout(self.settings.drain_s):
                await asyncio.gather(self._drain_http(), self._drain_rpc())
                await self.repository.close()
        except TimeoutError:
            raise DeadlineError(f"requests were still at work after {self.settings.drain_s:g} s") from None
        finally:
            self.memory.close()

    async def _drain_http(self) -> None:
        """Close the listener; then, for a moment, answer on open connections with Connection: close, so that
        a request that is on its way on one of them is not cut off."""
        if self._http is None or self._serving is None:
            return
        for each in self._http.servers:
            each.close()
        await self._adopt_backlog(self._http)
        await self._last_calls(self._http.server_state)
        self._http.should_exit = True
        await self._serving

    async def _adopt_backlog(self, http: _Uvicorn) -> None:
        """Serve the connections that the kernel took but nobody accepted yet; closing would reset them."""
        connections = list[socket.socket]()
        while self._listener is not None:
            try:
                connections.append(self._listener.accept()[0])
            except OSError:  # no more
                break
        if self._listener is not None:
            self._listener.close()
        await asyncio.gather(*(self._adopt(http, each) for each in connections))

    async def _adopt(self, http: _Uvicorn, connection: socket.socket) -> None:
        """Serve one; who leaves, or speaks no TLS where it is wanted, holds up nobody else's answer."""
        connection.setblocking(False)
        with contextlib.suppress(OSError):
            await asyncio.get_running_loop().connect_accepted_socket(
                lambda: BoundedConnection(http.config, http.server_state, http.lifespan.state),
                connection,
                ssl=http.config.ssl,
                ssl_handshake_timeout=self.settings.drain_s / 4 if http.config.ssl else None,
            )

    async def _last_calls(self, state: ServerState) -> None:
        """Until no connection is open, or none has sent anything for a while; at most half of the time."""
        end = time.monotonic() + self.settings.drain_s / 2
        seen, quiet_since = state.total_requests, time.monotonic()
        while state.connections and time.monotonic() < min(end, quiet_since + LAST_CALLS_S):
            await asyncio.sleep(_TICK_S)
            if state.total_requests != seen:
                seen, quiet_since = state.total_requests, time.monotonic()

    async def _drain_rpc(self) -> None:
        if self._rpc is not None:
            await self._rpc.drain()


class _Uvicorn(uvicorn.Server):
    """Signals are ours."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _config(app: object, settings: ServerSettings) -> uvicorn.Config:
    return uvicorn.Config(
        app,  # type: ignore[arg-type]
        http=BoundedConnection,
        log_config=None,
        access_log=False,
        lifespan="off",
        ws="none",
        server_header=False,
        date_header=False,
        proxy_headers=False,
        limit_concurrency=settings.max_connections,
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=int(settings.drain_s) or 1,
        ssl_certfile=settings.tls_certificate,
        ssl_keyfile=settings.tls_key,
    )


def _listener(settings: ServerSettings) -> socket.socket:
    """A bound, listening socket for HTTP."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((settings.host, settings.http_port))
        listener.listen(_BACKLOG)
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        raise UsageError(
            f"HTTP cannot listen on {settings.host}:{settings.http_port} ({error.strerror}): give another "
            "--http-port or --host"
        ) from error
    return listener
