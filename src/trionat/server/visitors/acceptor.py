"""Takes connections on visit ports: asks whether the visitor may come in, and gives it to the lease that holds the port."""

from __future__ import annotations

from functools import partial
from itertools import count
from typing import TYPE_CHECKING, Protocol, TypeAlias

import attrs
import trio

from trionat.address import TCPAddress
from trionat.config.values import HTTP_PORT, HTTPS_PORT
from trionat.log import get_logger
from trionat.networks import plain_host
from trionat.protocol.messages import PublishKind
from trionat.server.refusals import Bound, RefusalCounters
from trionat.server.visitors.access import AccessPolicy
from trionat.server.visitors.visitor import Visitor
from trionat.transport.endpoint import SocketEndpoint

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator, Mapping

    from trionat.config.server import ServerConfig
    from trionat.server.listeners import Listeners
    from trionat.server.tally import Tally
    from trionat.server.visitors.ports import PointId, VisitPoint, VisitPort
    from trionat.transport.descriptors import Descriptors
    from trionat.transport.endpoint import Endpoint

log = get_logger(__name__)

Refusal: TypeAlias = tuple[Bound, str]
"""By which bound a visitor is not let in, and why, for the log."""


class Elsewhere(Protocol):
    """Who brings visitors to ports that are held elsewhere."""

    def takes(self, point: int | str) -> bool:
        """Tell whether visitors of this port, or name, are to be given to `forward`."""
        ...

    def forward(self, visitor: Visitor) -> None:
        """Take over a visitor."""
        ...


class Named(Protocol):
    """Who finds out which name a connection is for; owns what it takes."""

    def accept_https(
        self,
        connection: socket.socket,
        address: TCPAddress,
        visited: TCPAddress,
        point: VisitPoint | None = None,
    ) -> None:
        """Take over a connection that begins with TLS; with `point`, all of it is for that."""
        ...

    def accept_http(
        self, connection: socket.socket, address: TCPAddress, visited: TCPAddress
    ) -> None:
        """Take over a connection without TLS."""
        ...


@attrs.define(eq=False)
class VisitorAcceptor:
    """What the listeners of all visit ports call. A visitor that may not come in is closed before one byte of it is read.

    `numbers` are those of the visitors to come; with a `tally` they are counted there. `is_handed_over` says that another process of this server serves, and takes who comes.
    """

    config: ServerConfig
    refusals: RefusalCounters = attrs.field(factory=RefusalCounters)
    numbers: Iterator[int] = attrs.field(factory=lambda: count(1))
    elsewhere: Elsewhere | None = None
    named: Named | None = None
    tally: Tally | None = None
    is_handed_over: bool = attrs.field(init=False, default=False)
    _resting: trio.Event | None = attrs.field(init=False, default=None)
    _policy: AccessPolicy = attrs.field(init=False)
    _https_ports: set[int] = attrs.field(init=False)
    _http_ports: set[int] = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        config = self.config
        self._policy = AccessPolicy(config)
        # Proxies listen where browsers look, or at the same ports as we do.
        self._https_ports = {HTTPS_PORT, *_port_of(config.effective_https_addr)}
        self._http_ports = {HTTP_PORT, *_port_of(config.effective_http_addr)} - self._https_ports

    def take_config(self, config: ServerConfig) -> None:
        """This one counts from now on."""
        self.config = config
        self._policy.take_config(config)

    def rest(self) -> None:
        """Let nobody in until `go_on`: another process may take over."""
        self._resting = trio.Event()

    def go_on(self, *, handed_over: bool) -> None:
        """Another process has taken over, or it has not."""
        self.is_handed_over = handed_over
        resting, self._resting = self._resting, None
        if resting is not None:
            resting.set()

    async def may_admit(self) -> bool:
        """Wait until it is known who serves; False: it is another process by now, and nobody may be let in here. For those who have come before, and are heard only now."""
        while self._resting is not None:
            await self._resting.wait()
        return not self.is_handed_over

    def accept(
        self,
        port: VisitPort,
        listening: TCPAddress,
        connection: socket.socket,
        address: TCPAddress,
    ) -> None:
        """Take over a connection from `address` that was accepted on a port, which listens there."""
        self._take(port, connection, address, _dialled(connection, listening))

    def _take(
        self,
        port: VisitPort,
        connection: socket.socket,
        address: TCPAddress,
        visited: TCPAddress,
    ) -> None:
        if port.publish is None or self.named is None:
            self.take(port, SocketEndpoint(connection), address, visited)
        else:
            self.named.accept_https(connection, address, visited, port)

    def accept_https(
        self, listening: TCPAddress, connection: socket.socket, address: TCPAddress
    ) -> None:
        """Take over a connection from `address` that was accepted where visitors of names come with TLS."""
        assert self.named is not None, "nobody listens there else"  # noqa: S101 - for type checkers
        self.named.accept_https(connection, address, _dialled(connection, listening))

    def accept_http(
        self, listening: TCPAddress, connection: socket.socket, address: TCPAddress
    ) -> None:
        """The same, without TLS."""
        assert self.named is not None, "nobody listens there else"  # noqa: S101 - as above
        self.named.accept_http(connection, address, _dialled(connection, listening))

    def accept_behind_proxy(
        self,
        ports: Mapping[int, VisitPort],
        connection: socket.socket,
        source: TCPAddress,
        destination: TCPAddress,
    ) -> None:
        """Take over a connection from `source` that dialled `destination`, as a trusted proxy says; its port is the visit port."""
        port = ports.get(destination.port)
        if port is None and self.named is not None and destination.port in self._https_ports:
            self.named.accept_https(connection, source, destination)
        elif port is None and self.named is not None and destination.port in self._http_ports:
            self.named.accept_http(connection, source, destination)
        elif port is None:
            connection.close()
            reason = "this server has no such visit port (VisitPort)"
            self._refuse(source, destination.port, Bound.NO_CLIENT, reason)
        else:
            self._take(port, connection, source, destination)

    def take(
        self, point: VisitPoint, endpoint: Endpoint, address: TCPAddress, visited: TCPAddress
    ) -> None:
        """Take over a visitor from `address`, which has dialled `visited`."""
        if (refusal := self.refusal(point, address)) is None:
            self.admit(point, endpoint, address, visited)
        else:
            endpoint.close()
            self.tell_refused(point, address, refusal)

    def refusal(self, point: VisitPoint, address: TCPAddress) -> Refusal | None:
        """Return why a visitor may not come in there, None where it may: that counts for its rate, so it is to be let in then."""
        queue = point.queue
        user_limits = None if queue is None else queue.user_limits
        refusal = self._policy.refusal(address.host, user_limits)
        if refusal is None and queue is None and not self._forwards(point):
            return Bound.NO_CLIENT, "no client holds this port"
        return refusal

    def list_refusal(self, point: VisitPoint, address: TCPAddress) -> Refusal | None:
        """Return why a visitor that has waited here for whoever would hold that may not visit him."""
        user_limits = None if point.queue is None else point.queue.user_limits
        return self._policy.list_refusal(address.host, user_limits)

    def _forwards(self, point: VisitPoint) -> bool:
        return self.elsewhere is not None and self.elsewhere.takes(point.id)

    def admit(
        self, point: VisitPoint, endpoint: Endpoint, address: TCPAddress, visited: TCPAddress
    ) -> None:
        """Take over a visitor that `refusal` lets in; its endpoint may be closed at once, where the client has too many."""
        visitor = Visitor(
            number=next(self.numbers),
            endpoint=endpoint,
            address=address,
            service=point.service,
            visited=visited,
            name=point.id if isinstance(point.id, str) else None,
            with_tls=point.publish is not None and point.publish.kind is PublishKind.TLS,
            gone=self._policy.enter(address.host),
            tally=self.tally,
        )
        if (queue := point.queue) is not None:
            queue.put(visitor)
        elif self.elsewhere is not None and isinstance(endpoint, SocketEndpoint):
            self.elsewhere.forward(visitor)
        else:  # its client has gone, and of what was read on the way here nobody else knows
            endpoint.close()
            visitor.gone()

    def is_elsewhere(self, point: PointId) -> bool:
        """Tell whether another server has a name, or a port, by now, so that a connection of its own leads there."""
        return self.elsewhere is not None and self.elsewhere.takes(point)

    def forward_named(
        self,
        name: str,
        connection: socket.socket,
        address: TCPAddress,
        visited: TCPAddress,
        *,
        is_tls: bool,
    ) -> None:
        """Bring a connection, of which nothing was taken, to the server that has a name."""
        assert self.elsewhere is not None, "asked before"  # noqa: S101 - for type checkers
        if (refusal := self._policy.refusal(address.host, None)) is not None:
            connection.close()
            self._refuse(address, name, *refusal)
            return
        visitor = Visitor(
            number=next(self.numbers),
            endpoint=SocketEndpoint(connection),
            address=address,
            service=0,
            visited=visited,
            name=name,
            with_tls=is_tls,
            gone=self._policy.enter(address.host),
        )
        self.elsewhere.forward(visitor)

    def restore(self, visitor: Visitor) -> None:
        """Count a visitor that another process of this server has let in, and that goes on here."""
        visitor.gone, visitor.tally = self._policy.enter(visitor.address.host), self.tally

    def pass_on(self, visitor: Visitor) -> None:
        """Bring a visitor that has waited here to the node that has its client by now. One that has come from another node as a stream in memory is reset: one hop is all."""
        if self.elsewhere is not None and isinstance(visitor.endpoint, SocketEndpoint):
            self.elsewhere.forward(visitor)
        else:
            visitor.endpoint.reset()
            visitor.gone()

    def take_back(
        self, connection: socket.socket, address: TCPAddress, visited: TCPAddress
    ) -> None:
        """Pass on a visitor that another process of this server has let in, and handed back: its port is held elsewhere by now."""
        visitor = Visitor(
            number=next(self.numbers),
            endpoint=SocketEndpoint(connection),
            address=address,
            service=0,
            visited=visited,
            gone=self._policy.enter(address.host),
        )
        self.pass_on(visitor)

    def tell_refused(self, point: VisitPoint, address: TCPAddress, refusal: Refusal) -> None:
        """Count a visitor that was not let in, and log it."""
        user = "" if point.queue is None else point.queue.user_limits.user
        self._refuse(address, point.id, *refusal, user)

    def _refuse(
        self, address: TCPAddress, port: int | str, bound: Bound, reason: str, user: str = ""
    ) -> None:
        self.refusals.count(
            bound,
            lambda count: log.info(
                "visitor refused", address=str(address), port=port, reason=reason, refused=count
            ),
            user=user,
        )


def listen_for_names(
    nursery: trio.Nursery,
    listeners: Listeners,
    acceptor: VisitorAcceptor,
    descriptors: Descriptors,
) -> None:
    """Accept on the ports of names, where there are any, in `nursery`."""
    for listener, take in (
        (listeners.http, acceptor.accept_http),
        (listeners.https, acceptor.accept_https),
    ):
        if listener is not None:
            accept = partial(take, listener.address)
            serve = partial(listener.serve, accept, descriptors, most=descriptors.for_visitors)
            nursery.start_soon(serve, name=f"listener {listener.address}")


def _port_of(address: TCPAddress | None) -> tuple[int, ...]:
    return () if address is None else (address.port,)


def _dialled(connection: socket.socket, listening: TCPAddress) -> TCPAddress:
    """Return which of our addresses a visitor has dialled; a port often listens on all of them."""
    try:
        host, port = connection.getsockname()[:2]
    except OSError:  # gone already, on some systems
        return listening
    return TCPAddress(plain_host(host), port)
