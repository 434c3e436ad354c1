"""A web server: an application for all who connect at a listener. Whatever goes wrong with one of them ends nothing but its connection.

Imported only by what serves pages: it brings anycorn, which is not installed everywhere.
"""

from __future__ import annotations

import socket
from contextlib import suppress
from functools import partial
from operator import itemgetter
from typing import TYPE_CHECKING, Final

import attrs
import trio

from trionat.log import get_logger
from trionat.transport.isolation import isolated
from trionat.transport.web_connection import WebConnection

if TYPE_CHECKING:
    import ssl

    from starlette.types import ASGIApp

    from trionat.address import TCPAddress
    from trionat.transport.descriptors import Descriptors
    from trionat.transport.listener import Listener

log = get_logger(__name__)

_UNHEARD: Final = 20
"""Seconds after which the kernel gives a connection up whose peer has not acknowledged what was sent (Linux). What still fits into its buffers waits for nobody here, and while something is on the way it does not look whether the peer is alive."""


@attrs.define(eq=False, kw_only=True)
class WebServer:
    """Serves `app` at a listener, which stays the caller's. Without `tls` it is plain HTTP. There are at most `most` connections at once; `name` is what the log calls the server."""

    name: str
    app: ASGIApp
    listener: Listener
    descriptors: Descriptors
    most: int
    tls: ssl.SSLContext | None = None
    _connections: dict[WebConnection, None] = attrs.field(init=False, factory=lambda: {})

    async def serve(self) -> None:
        """Serve until cancelled, which ends all connections at once, also those whose peers read nothing."""
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            with suppress(OSError):  # its connections inherit it
                self.listener.sock.setsockopt(
                    socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _UNHEARD * 1000
                )
        async with trio.open_nursery() as nursery:
            await self.listener.serve(
                partial(self._accept, nursery),
                self.descriptors,
                most=self.descriptors.for_visitors,
            )

    def _accept(self, nursery: trio.Nursery, sock: socket.socket, peer: TCPAddress) -> None:
        """Serve a connection in a task of its own. Where there are too many, the one that has been idle for the longest time makes room."""
        if len(self._connections) >= self.most:
            idle = [
                (since, each)
                for each in self._connections
                if (since := each.idle_since) is not None
            ]
            if not idle:
                sock.close()
                return
            _, longest = min(idle, key=itemgetter(0))
            del self._connections[longest]
            longest.give_up()
        connection = WebConnection(sock, peer, self.app, self.tls)
        self._connections[connection] = None
        nursery.start_soon(self._attend, connection, name=f"{self.name} {peer}")

    async def _attend(self, connection: WebConnection) -> None:
        try:
            event = f"a connection to the {self.name} has ended"
            with isolated(log, event, peer=connection.peer):
                await connection.run()
        finally:
            self._connections.pop(connection, None)
