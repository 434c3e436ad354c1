"""What happens to a new connection on the control or tunnel port: what does it speak, and who greets it?"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import attrs
import trio

from trionat.config.values import UNENCRYPTED
from trionat.errors import RemoteProtocolError
from trionat.log import get_logger
from trionat.protocol.dialect import Dialect
from trionat.server.native.greeting import NativeGreeting, PlainTunnelGreeting
from trionat.transport.deadline import deadline
from trionat.transport.endpoint import SocketEndpoint
from trionat.transport.isolation import isolated
from trionat.transport.tls import accept_tls, peek_dialect

if TYPE_CHECKING:
    import socket
    import ssl
    from collections.abc import Callable

    from trionat.address import TCPAddress
    from trionat.config.schema import ServerConfig
    from trionat.server.desk import Desk
    from trionat.server.greeting import Greeting

log = get_logger(__name__)

# Seconds between two log lines about the same shortage.
_COMPLAINT_INTERVAL = 1.0


@attrs.define(eq=False)
class Reception:
    """Serves every connection in a task of its own.

    At most `MaxHandshakes` connections may be there of which it is not known yet whose they are.
    """

    config: ServerConfig
    tls: ssl.SSLContext
    desk: Desk
    _strangers: dict[trio.CancelScope, TCPAddress] = attrs.field(init=False, factory=lambda: {})
    _complained: float = attrs.field(init=False, default=float("-inf"))

    def acceptor(self, nursery: trio.Nursery) -> Callable[[socket.socket, TCPAddress], None]:
        """Return what a listener calls for each connection; it is served in `nursery`."""

        def accept(connection: socket.socket, address: TCPAddress) -> None:
            if len(self._strangers) >= self.config.max_handshakes:
                self._send_oldest_stranger_away()
            scope = trio.CancelScope()
            self._strangers[scope] = address
            nursery.start_soon(
                self.receive, connection, address, scope, name=f"connection from {address}"
            )

        return accept

    def _send_oldest_stranger_away(self) -> None:
        """Make room, so that a crowd of silent peers cannot keep those out who have something to say."""
        scope = next(iter(self._strangers))
        address = self._strangers.pop(scope)
        scope.cancel("too many strangers")
        now = trio.current_time()
        if now - self._complained >= _COMPLAINT_INTERVAL:
            self._complained = now
            log.warning(
                "too many connections that have not said who they are: closing the oldest (MaxHandshakes)",
                address=str(address),
                limit=self.config.max_handshakes,
            )

    def _know(self, scope: trio.CancelScope) -> None:
        """Whoever is served in this scope is no stranger any more."""
        self._strangers.pop(scope, None)

    async def receive(
        self, connection: socket.socket, address: TCPAddress, scope: trio.CancelScope
    ) -> None:
        """Serve one connection from its first byte to its end. Whatever the peer does, only this connection suffers.

        `scope` is cancelled to make room for others, as long as it is not known whose connection it is.
        """
        with isolated(log, "connection closed", address=str(address)), scope:
            try:
                seconds = self.config.handshake_timeout
                with deadline(
                    seconds, f"the peer did not finish the TLS handshake within {seconds:g} s"
                ):
                    greeting = await self._meet(connection, address, partial(self._know, scope))
                await greeting.serve()
            finally:
                self._know(scope)

    async def _meet(
        self, connection: socket.socket, address: TCPAddress, known: Callable[[], None]
    ) -> Greeting:
        """Find out what the peer speaks; closes the connection where that is nothing of ours."""
        try:
            dialect = await peek_dialect(connection)
            plain = dialect is Dialect.PLAIN_TUNNEL and self.config.tunnel_encryption == UNENCRYPTED
            if dialect is not Dialect.NATIVE and not plain:
                raise RemoteProtocolError(
                    f"this port speaks TLS, and the peer spoke {dialect.value}"
                )
        except BaseException:
            connection.close()
            raise
        if plain:
            return PlainTunnelGreeting(self.desk, SocketEndpoint(connection), address, known)
        endpoint = await accept_tls(connection, self.tls)
        return NativeGreeting(self.desk, endpoint, address, known)
