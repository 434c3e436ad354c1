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
from trionat.protocol.legacy import HEADERS
from trionat.server.legacy.greeting import LegacyGreeting
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
    _told_of_legacy: bool = attrs.field(init=False, default=False)

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
        """Find out what the peer speaks; closes the connection where it may not."""
        try:
            dialect = await peek_dialect(connection)
            self._check(dialect, address)
        except BaseException:
            connection.close()
            raise
        if dialect is Dialect.NATIVE:
            endpoint = await accept_tls(connection, self.tls)
            return NativeGreeting(self.desk, endpoint, address, known)
        plain = SocketEndpoint(connection)
        if dialect is Dialect.PLAIN_TUNNEL:
            return PlainTunnelGreeting(self.desk, plain, address, known)
        return LegacyGreeting(self.desk, plain, address, known, dialect=dialect)

    def _check(self, dialect: Dialect, address: TCPAddress) -> None:
        """Send away whoever is not served here; what lets clients of NAT in is told once."""
        if dialect in HEADERS and not self.config.legacy_clients:
            if not self._told_of_legacy:
                self._told_of_legacy = True
                log.warning(
                    "a client of NAT was sent away: LegacyClients: true lets such clients in, but their traffic can be read on the way",
                    address=str(address),
                    dialect=dialect.value,
                )
            raise RemoteProtocolError(f"the peer spoke {dialect.value}, and LegacyClients is off")
        served = {Dialect.NATIVE, *HEADERS}
        if self.config.tunnel_encryption == UNENCRYPTED:
            served.add(Dialect.PLAIN_TUNNEL)
        if dialect not in served:
            raise RemoteProtocolError(f"this port speaks TLS, and the peer spoke {dialect.value}")
