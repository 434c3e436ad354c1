"""Ports behind nginx or HAProxy: a PROXY header, which only trusted proxies may send, says whose connection each is.

Without it a proxy's address would stand for everybody behind it: in lists of addresses, in limits and bans, and in logs.
"""

from __future__ import annotations

import math
import socket
from functools import partial
from typing import TYPE_CHECKING, Final, Self

import attrs
import trio

from trionat.errors import ConnectionLostError, PeerError
from trionat.log import get_logger
from trionat.networks import Networks
from trionat.protocol.proxy import MOST_PROXY_BYTES, read_proxy_header
from trionat.server.refusals import Bound
from trionat.transport.deadline import deadline
from trionat.transport.endpoint import lost
from trionat.transport.isolation import isolated

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeAlias

    from trionat.address import TCPAddress
    from trionat.config.server import ServerConfig
    from trionat.protocol.proxy import ProxyHeader
    from trionat.server.refusals import RefusalCounters
    from trionat.transport.descriptors import Descriptors
    from trionat.transport.listener import Listener

    Take: TypeAlias = Callable[[socket.socket, TCPAddress, TCPAddress], None]
    """Takes a connection over, without its header: with the address that it comes from, and the one that was dialled."""

log = get_logger(__name__)

HEADER_WAIT: Final = 5.0
"""Seconds for the header. Proxies send it at once; the specification wants three at least, for a segment that was lost."""


_WARN_INTERVAL: Final = 60.0
"""Seconds between two warnings of the same stranger."""

_MOST_WARNED: Final = 256
"""Strangers that are remembered for that."""


@attrs.define(eq=False)
class ProxyListener:
    """A listener behind `trusted` proxies. Of at most `most_waiting` connections the header is waited for; the oldest makes room."""

    listener: Listener
    trusted: Networks
    most_waiting: int
    refusals: RefusalCounters
    _waiting: dict[trio.CancelScope, None] = attrs.field(init=False, factory=lambda: {})
    _warned: dict[str, float] = attrs.field(init=False, factory=lambda: {})

    @classmethod
    def of(cls, config: ServerConfig, listener: Listener, refusals: RefusalCounters) -> Self:
        """Return a listener for the proxies that the configuration trusts."""
        return cls(
            listener,
            trusted=Networks(config.trusted_proxies),
            most_waiting=config.max_handshakes,
            refusals=refusals,
        )

    def take_config(self, config: ServerConfig) -> None:
        """This one counts from now on, for connections that come."""
        self.trusted = Networks(config.trusted_proxies)
        self.most_waiting = config.max_handshakes

    async def serve(self, take: Take, descriptors: Descriptors, *, most: int | None = None) -> None:
        """Accept until cancelled, and give every connection with a header to `take`. Closes the listener when it ends.

        `take` must return at once and must not raise. `descriptors` and `most` are as for `Listener.serve`.
        """
        try:
            async with trio.open_nursery() as nursery:
                accept = partial(self._accept, nursery, take)
                await self.listener.serve(accept, descriptors, most=most)
        finally:
            self.listener.close()

    def _accept(
        self, nursery: trio.Nursery, take: Take, connection: socket.socket, proxy: TCPAddress
    ) -> None:
        if proxy.host not in self.trusted:
            connection.close()
            self._refuse(
                Bound.PROXIES, proxy, "its address may not send PROXY headers (TrustedProxies)"
            )
            return
        if len(self._waiting) >= self.most_waiting:
            oldest = next(iter(self._waiting))
            del self._waiting[oldest]
            oldest.cancel("too many connections without a PROXY header")
        scope = trio.CancelScope()
        self._waiting[scope] = None
        nursery.start_soon(
            self._receive, take, connection, proxy, scope, name=f"PROXY header from {proxy}"
        )

    async def _receive(
        self, take: Take, connection: socket.socket, proxy: TCPAddress, scope: trio.CancelScope
    ) -> None:
        """Hand one connection on, or close it: quietly where the proxy speaks for itself, as in its health checks."""
        taken = False
        with isolated(log, "connection closed", address=str(proxy)):
            try:
                header = await self._wait_for_header(connection, proxy, scope)
                if header is None or header.source == proxy:
                    return
                if header.source is not None and header.destination is not None:
                    take(connection, header.source, header.destination)
                    taken = True
            finally:
                if not taken:
                    connection.close()

    async def _wait_for_header(
        self, connection: socket.socket, proxy: TCPAddress, scope: trio.CancelScope
    ) -> ProxyHeader | None:
        """Return the header; None where none comes, which is counted unless the proxy has gone without a word."""
        header = None
        try:
            with scope, deadline(HEADER_WAIT, f"no PROXY header came within {HEADER_WAIT:g} s"):
                header = await _take_header(connection)
        except PeerError as error:
            self._refuse(Bound.PROXY_HEADER, proxy, str(error))
        finally:
            self._waiting.pop(scope, None)
        if scope.cancelled_caught:
            reason = "it had no PROXY header yet, and others needed the room (MaxHandshakes)"
            self._refuse(Bound.PROXY_HEADER, proxy, reason)
        return header

    def _refuse(self, bound: Bound, proxy: TCPAddress, reason: str) -> None:
        """What a proxy does wrong is for the operator to mend. A stranger may be a proxy that was forgotten, or anybody at all: it is warned of now and then."""

        def tell(count: int) -> None:
            warns = bound is not Bound.PROXIES or self._warns_of(proxy.host)
            (log.warning if warns else log.info)(
                "connection refused",
                address=str(proxy),
                port=self.listener.address.port,
                reason=reason,
                refused=count,
            )

        self.refusals.count(bound, tell)

    def _warns_of(self, stranger: str) -> bool:
        now = trio.current_time()
        if now - self._warned.get(stranger, -math.inf) < _WARN_INTERVAL:
            return False
        self._warned.pop(stranger, None)
        if len(self._warned) >= _MOST_WARNED:
            del self._warned[next(iter(self._warned))]
        self._warned[stranger] = now
        return True


async def _take_header(sock: socket.socket) -> ProxyHeader | None:
    """Take the header off a connection, and leave what is behind it; None where it ends before its first byte.

    The caller sets the deadline and closes the socket.

    Raises:
        ConnectionLostError: It ends within the header.
        RemoteProtocolError: There is no header, or a broken one.
    """
    seen = b""
    while True:
        await trio.lowlevel.wait_readable(sock)
        try:
            ahead = sock.recv(MOST_PROXY_BYTES - len(seen), socket.MSG_PEEK)
        except BlockingIOError:
            continue
        except OSError as error:
            if not seen:
                return None
            raise lost(error) from error
        if not ahead:
            if not seen:
                return None
            raise ConnectionLostError("the connection ended within its PROXY header")
        header = read_proxy_header(seen + ahead)
        seen += sock.recv(len(ahead) if header is None else header.size - len(seen))
        if header is not None and len(seen) == header.size:
            return header
