"""A web server: an application for all who connect at a listener. Whatever goes wrong with one of them ends nothing but its connection.

Imported only by what serves pages: it brings anycorn, which is not installed everywhere.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final

import attrs
import trio

from trionat.errors import PeerError
from trionat.log import get_logger
from trionat.networks import network_of
from trionat.transport.isolation import isolated, leaves
from trionat.transport.kernel import limit_silence
from trionat.transport.web_connection import WebConnection

if TYPE_CHECKING:
    import socket
    import ssl
    from collections.abc import Callable, Iterable

    from starlette.types import ASGIApp

    from trionat.address import TCPAddress
    from trionat.transport.descriptors import Descriptors
    from trionat.transport.listener import Listener

log = get_logger(__name__)

_UNHEARD: Final = 20
"""Seconds after which the kernel gives a connection up whose peer has not acknowledged what was sent (Linux). What still fits into its buffers waits for nobody here, and while something is on the way it does not look whether the peer is alive."""

MOST_UNKNOWN: Final = 64
"""Connections of one network (`network_of`) on which nobody has said who he is. A browser has up to six. Chosen: some of an office, and few of all."""


@attrs.define(eq=False, kw_only=True)
class WebServer:
    """Serves `app` at a listener, which stays the caller's. Without `tls` it is plain HTTP.

    There are at most `most` connections at once, and none of them takes a descriptor from visitors. `closed` is told of those whose
    peers are to blame for their end, with the reason; `name` is what the log calls the server.
    """

    name: str
    app: ASGIApp
    listener: Listener
    descriptors: Descriptors
    most: int
    closed: Callable[[TCPAddress, str], None]
    tls: ssl.SSLContext | None = None
    _connections: dict[WebConnection, None] = attrs.field(init=False, factory=lambda: {})

    async def serve(self) -> None:
        """Serve until cancelled, which ends all connections at once, also those whose peers read nothing."""
        limit_silence(self.listener.sock, _UNHEARD)  # its connections inherit it
        async with trio.open_nursery() as nursery:
            await self.listener.serve(partial(self._accept, nursery), self.descriptors)

    def _accept(self, nursery: trio.Nursery, sock: socket.socket, peer: TCPAddress) -> None:
        """Serve a connection in a task of its own, where there is room."""
        sock = self.descriptors.set_aside(sock)
        if not self._make_room(peer):
            sock.close()
            self.closed(peer, f"there are too many connections to the {self.name}")
            return
        connection = WebConnection(sock, peer, self.app, self.tls)
        self._connections[connection] = None
        nursery.start_soon(self._attend, connection, name=f"{self.name} {peer}")

    def _make_room(self, peer: TCPAddress) -> bool:
        """Tell whether there is room for another one from there, for which one that is there may have to go.

        Those go first on which nobody has said who he is, whatever they wait for: a body that does not come costs no more than a
        head. Among them it is the one that has been idle for the longest time, or the oldest. Somebody known goes only when idle.
        """
        network = network_of(peer.host)
        unknown = [each for each in self._connections if not each.is_known]
        of_network = [each for each in unknown if network_of(each.peer.host) == network]
        if len(of_network) >= MOST_UNKNOWN:
            leaver = _longest_idle(of_network) or of_network[0]
        elif len(self._connections) < self.descriptors.beside_visitors(self.most):
            return True
        elif unknown:
            leaver = _longest_idle(unknown) or unknown[0]
        elif (found := _longest_idle(self._connections)) is not None:
            leaver = found
        else:
            return False
        del self._connections[leaver]
        leaver.give_up()
        return True

    async def _attend(self, connection: WebConnection) -> None:
        try:
            with isolated(log, f"a connection to the {self.name} has ended", peer=connection.peer):
                try:
                    await connection.run()
                except* PeerError as group:
                    for error in leaves(group):
                        self.closed(connection.peer, f"{self.name}: {error}")
        finally:
            self._connections.pop(connection, None)


def _longest_idle(connections: Iterable[WebConnection]) -> WebConnection | None:
    idle = [(since, each) for each in connections if (since := each.idle_since) is not None]
    return min(idle, key=lambda pair: pair[0])[1] if idle else None
