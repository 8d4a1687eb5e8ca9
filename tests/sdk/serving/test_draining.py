"""How a server stops."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import uvloop

from saccade.serving.server import Server
from saccade.serving.settings import ServerSettings


def test_connections_without_tls_do_not_stop_a_server_from_stopping(
    tls: ServerSettings, own_bundle: Path
) -> None:
    """Those that the kernel has taken and nobody has accepted yet: one is silent, one gone, one lost."""

    async def main() -> None:
        server = Server(tls.replace(grpc_port=None, drain_s=2), {"own": own_bundle})
        await server.listen()
        assert server._http is not None
        for each in server._http.servers:
            each.close()  # as the drain does first: from here on nobody accepts
        silent, gone, lost = (socket.create_connection(("127.0.0.1", server.http_port)) for _ in range(3))
        gone.close()
        with silent, lost:
            lost.sendall(b"GET / HTTP/1.1\r\n\r\n")
            await server.drain()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())
