"""The web server on this machine: anycorn on Trio, which nobody who stops reading can hold up.

anycorn sends under a shield and without a deadline, so a browser that reads no more would hold its task even when all is cancelled, and the client could never end. So connections are accepted
here, and those that are open when the server is cancelled are shut down.
"""

from __future__ import annotations

import socket
from contextlib import suppress
from typing import TYPE_CHECKING, Final, cast

import anyio.abc
import attrs
import trio
from anycorn.app_wrappers import ASGIWrapper
from anycorn.config import Config
from anycorn.tcp_server import (
    tcp_server_handler,  # pyright: ignore[reportUnknownVariableType]
)
from anycorn.worker_context import WorkerContext

from trionat.log import get_logger
from trionat.transport.isolation import isolated
from trionat.transport.kernel import limit_silence

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from anycorn.typing import ASGIFramework, ConnectionState
    from starlette.types import ASGIApp

log = get_logger(__name__)

MOST_CONNECTIONS: Final = 256
_KEEP_ALIVE: Final = 30
"""Seconds for which a connection without a request stays open."""

_STUCK: Final = 20
"""Seconds after which the kernel gives a connection up on which nothing is taken (Linux)."""


@attrs.define(eq=False)
class WebServer:
    """Serves an application on a listening socket, which stays the caller's."""

    app: ASGIApp
    sock: socket.socket
    _open: set[socket.socket] = attrs.field(init=False, factory=lambda: set())

    async def serve(self) -> None:
        """Serve until cancelled."""
        config = Config()
        config.errorlog = None
        config.include_server_header = False
        config.keep_alive_timeout = _KEEP_ALIVE
        app = ASGIWrapper(cast("ASGIFramework", self.app))
        handle: Callable[[anyio.abc.SocketStream], Awaitable[None]]
        handle = tcp_server_handler(  # pyright: ignore[reportUnknownVariableType]
            app, config, WorkerContext(None), cast("ConnectionState", {})
        )

        async def serve_one(stream: anyio.abc.SocketStream) -> None:
            sock = stream.extra(anyio.abc.SocketAttribute.raw_socket)  # noqa: S610 - no Django
            if len(self._open) >= MOST_CONNECTIONS:
                await stream.aclose()
                return
            self._open.add(sock)
            try:
                with isolated(log, "inspector: connection lost"):
                    await handle(stream)
            finally:
                self._open.discard(sock)

        limit_silence(self.sock, _STUCK)  # its connections inherit it
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._cut_off, name="cut off")
            async with await anyio.abc.SocketListener.from_socket(self.sock.dup()) as listener:
                await listener.serve(serve_one)

    async def _cut_off(self) -> None:
        """When all is cancelled, shut down what is open: who waits for a browser to read is told that it is gone."""
        try:
            await trio.sleep_forever()
        finally:
            for sock in self._open:
                with suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)
