"""Takes connections on visit ports: asks whether the visitor may come in, and gives it to the lease that holds the port."""

from __future__ import annotations

from itertools import count
from typing import TYPE_CHECKING, Protocol

import attrs

from trionat.address import TCPAddress
from trionat.log import get_logger
from trionat.networks import plain_host
from trionat.server.refusals import Bound, RefusalCounters
from trionat.server.visitors.access import AccessPolicy
from trionat.server.visitors.visitor import Visitor
from trionat.transport.endpoint import SocketEndpoint

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator, Mapping

    from trionat.config.server import ServerConfig
    from trionat.server.visitors.ports import VisitPort
    from trionat.transport.endpoint import Endpoint

log = get_logger(__name__)


class Elsewhere(Protocol):
    """Who brings visitors to ports that are held elsewhere."""

    def takes(self, port: int) -> bool:
        """Tell whether visitors of this port are to be given to `forward`."""
        ...

    def forward(self, visitor: Visitor) -> None:
        """Take over a visitor."""
        ...


@attrs.define(eq=False)
class VisitorAcceptor:
    """What the listeners of all visit ports call. A visitor that may not come in is closed before one byte of it is read.

    `numbers` are those of the visitors to come.
    """

    config: ServerConfig
    refusals: RefusalCounters = attrs.field(factory=RefusalCounters)
    numbers: Iterator[int] = attrs.field(factory=lambda: count(1))
    elsewhere: Elsewhere | None = None
    _policy: AccessPolicy = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self._policy = AccessPolicy(self.config)

    def accept(
        self,
        port: VisitPort,
        listening: TCPAddress,
        connection: socket.socket,
        address: TCPAddress,
    ) -> None:
        """Take over a connection from `address` that was accepted on a port, which listens there."""
        self.take(port, SocketEndpoint(connection), address, _dialled(connection, listening))

    def accept_behind_proxy(
        self,
        ports: Mapping[int, VisitPort],
        connection: socket.socket,
        source: TCPAddress,
        destination: TCPAddress,
    ) -> None:
        """Take over a connection from `source` that dialled `destination`, as a trusted proxy says; its port is the visit port."""
        port = ports.get(destination.port)
        if port is None:
            connection.close()
            reason = "this server has no such visit port (VisitPort)"
            self._refuse(source, destination.port, Bound.NO_CLIENT, reason)
        else:
            self.take(port, SocketEndpoint(connection), source, destination)

    def take(
        self, port: VisitPort, endpoint: Endpoint, address: TCPAddress, visited: TCPAddress
    ) -> None:
        """Take over a visitor from `address`, which has dialled `visited`."""
        queue = port.queue
        user_limits = None if queue is None else queue.user_limits
        refusal = self._policy.refusal(address.host, user_limits)
        forwards = (
            queue is None and self.elsewhere is not None and self.elsewhere.takes(port.number)
        )
        if refusal is not None or (queue is None and not forwards):
            endpoint.close()
            bound, reason = refusal or (Bound.NO_CLIENT, "no client holds this port")
            user = "" if user_limits is None else user_limits.user
            self._refuse(address, port.number, bound, reason, user)
            return
        visitor = Visitor(
            number=next(self.numbers),
            endpoint=endpoint,
            address=address,
            service=port.service,
            visited=visited,
            gone=self._policy.enter(address.host),
        )
        if queue is not None:
            queue.put(visitor)
        elif self.elsewhere is not None:
            self.elsewhere.forward(visitor)

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

    def _refuse(
        self, address: TCPAddress, port: int, bound: Bound, reason: str, user: str = ""
    ) -> None:
        self.refusals.count(
            bound,
            lambda count: log.info(
                "visitor refused", address=str(address), port=port, reason=reason, refused=count
            ),
            user=user,
        )


def _dialled(connection: socket.socket, listening: TCPAddress) -> TCPAddress:
    """Return which of our addresses a visitor has dialled; a port often listens on all of them."""
    try:
        host, port = connection.getsockname()[:2]
    except OSError:  # gone already, on some systems
        return listening
    return TCPAddress(plain_host(host), port)
