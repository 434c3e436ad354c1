"""What happens to a new connection on the control or tunnel port: what does it speak, and who serves it?"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import attrs

from trionat.config.values import UNENCRYPTED
from trionat.errors import PeerError, RemoteProtocolError
from trionat.log import get_logger
from trionat.protocol.dialect import Dialect
from trionat.protocol.legacy import HEADERS
from trionat.server.connection_log import ConnectionLog
from trionat.server.control.acceptance import Acceptance
from trionat.server.control.native_login import NativeLogin, PlainTunnelLogin
from trionat.transport.deadline import deadline
from trionat.transport.endpoint import SocketEndpoint
from trionat.transport.isolation import isolated, leaves
from trionat.transport.peek import peek_dialect
from trionat.transport.tls import accept_tls

if TYPE_CHECKING:
    import socket
    import ssl
    from collections.abc import Callable

    import trio

    from trionat.address import TCPAddress
    from trionat.config.server import ServerConfig
    from trionat.server.control.context import ServerContext
    from trionat.server.control.legacy_login import LegacyLogin
    from trionat.server.control.login import Login

log = get_logger(__name__)


@attrs.define(eq=False)
class ConnectionHandler:
    """Serves every connection in a task of its own; those of banned addresses are closed unheard."""

    context: ServerContext
    tls: ssl.SSLContext
    _acceptance: Acceptance = attrs.field(init=False)
    _log: ConnectionLog = attrs.field(init=False)
    _legacy_login: type[LegacyLogin] | None = attrs.field(init=False, default=None)
    _told_of_legacy: bool = attrs.field(init=False, default=False)

    def __attrs_post_init__(self) -> None:
        context = self.context
        self._log = ConnectionLog(context.refusals)
        self._acceptance = Acceptance(context.config, context.bans, context.refusals, context.tally)
        if context.config.legacy_clients:
            # Now, and not for the first of them: there may be no descriptor left by then to read it with.
            from trionat.server.control.legacy_login import LegacyLogin  # noqa: PLC0415 - memory

            self._legacy_login = LegacyLogin

    def take_config(self, config: ServerConfig, tls: ssl.SSLContext) -> None:
        """These count from now on, for connections that come."""
        self.tls = tls
        self._acceptance.take_config(config)

    def acceptor(self, nursery: trio.Nursery) -> Callable[[socket.socket, TCPAddress], None]:
        """Return what a listener calls for each connection; it is served in `nursery`."""
        return self._acceptance.acceptor(nursery, self.receive)

    async def receive(
        self, connection: socket.socket, address: TCPAddress, scope: trio.CancelScope
    ) -> None:
        """Serve one connection from its first byte to its end. Whatever the peer does, only this connection suffers.

        `scope` is cancelled to make room for others, as long as nobody knows whose connection it is.
        """
        handshakes = self._acceptance.handshakes
        with isolated(log, "connection closed", address=str(address)), scope:
            try:
                seconds = self.context.config.handshake_timeout
                with deadline(
                    seconds, f"the peer did not finish the TLS handshake within {seconds:g} s"
                ):
                    login = await self._meet(connection, address, scope)
                await login.serve()
                handshakes.finish(scope)  # of a tunnel, which a session has by now
            except* PeerError as group:
                for error in leaves(group):
                    self._log.closed(address, str(error))
            finally:
                handshakes.fail(scope)

    async def _meet(
        self, connection: socket.socket, address: TCPAddress, scope: trio.CancelScope
    ) -> Login:
        """Find out what the peer speaks; closes the connection where it may not."""
        try:
            dialect = await peek_dialect(connection)
            log.debug("connection accepted", address=str(address), dialect=dialect.value)
            self._check(dialect, address)
        except BaseException:
            connection.close()
            raise
        identified = partial(self._acceptance.handshakes.finish, scope)
        if dialect is Dialect.NATIVE:
            endpoint = await accept_tls(connection, self.tls)
            return NativeLogin(self.context, endpoint, address, identified, scope)
        plain = SocketEndpoint(connection)
        if dialect is Dialect.PLAIN_TUNNEL:
            return PlainTunnelLogin(self.context, plain, address, identified, scope)
        assert self._legacy_login is not None, "else it was sent away"  # noqa: S101 - for type checkers
        return self._legacy_login(self.context, plain, address, identified, scope, dialect=dialect)

    def _check(self, dialect: Dialect, address: TCPAddress) -> None:
        """Send away whoever is not served here; what lets clients of NAT in is told once."""
        if dialect in HEADERS and not self.context.config.legacy_clients:
            if not self._told_of_legacy:
                self._told_of_legacy = True
                log.warning(
                    "a client of NAT was sent away: LegacyClients: true lets such clients in, but their traffic can be read on the way",
                    address=str(address),
                    dialect=dialect.value,
                )
            raise RemoteProtocolError(f"the peer spoke {dialect.value}, and LegacyClients is off")
        served = {Dialect.NATIVE, *HEADERS}
        if self.context.config.tunnel_encryption == UNENCRYPTED:
            served.add(Dialect.PLAIN_TUNNEL)
        if dialect not in served:
            raise RemoteProtocolError(f"this port speaks TLS, and the peer spoke {dialect.value}")
