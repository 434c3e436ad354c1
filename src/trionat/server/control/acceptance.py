"""What the listeners of the control and tunnel ports call: whether a connection is heard at all, and for how long while nobody knows whose it is."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import attrs
import trio

from trionat.server.handshakes import PendingHandshakes
from trionat.server.proxies import ProxyListener
from trionat.server.refusals import Bound

if TYPE_CHECKING:
    import socket
    from collections.abc import Awaitable, Callable

    from trionat.address import TCPAddress
    from trionat.config.server import ServerConfig
    from trionat.server.admission.bans import Bans
    from trionat.server.listeners import Listeners
    from trionat.server.refusals import RefusalCounters
    from trionat.server.tally import Tally
    from trionat.transport.descriptors import Descriptors


@attrs.define(eq=False)
class Acceptance:
    """Connections of banned addresses are closed unheard; all others are served in tasks of their own.

    Each has a scope, which is cancelled to make room for others until it is removed from `handshakes`.
    """

    config: ServerConfig
    bans: Bans
    refusals: RefusalCounters
    tally: Tally | None = None
    handshakes: PendingHandshakes = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.handshakes = PendingHandshakes(
            self.config.max_handshakes,
            self.config.max_handshakes_per_address,
            self.refusals,
            self.bans.is_in_use,
            self.tally,
        )

    def take_config(self, config: ServerConfig) -> None:
        """This one counts from now on."""
        self.config = config
        self.handshakes.take_limits(config.max_handshakes, config.max_handshakes_per_address)

    def acceptor(
        self,
        nursery: trio.Nursery,
        serve: Callable[[socket.socket, TCPAddress, trio.CancelScope], Awaitable[None]],
    ) -> Callable[[socket.socket, TCPAddress], None]:
        """Return what a listener calls for each connection; `serve` runs in `nursery`, and owns the connection."""

        def accept(connection: socket.socket, address: TCPAddress) -> None:
            if self.bans.shuts_out(address.host):
                self.refusals.counts[Bound.BAN] += 1
                connection.close()
                return
            scope = trio.CancelScope()
            self.handshakes.add(scope, address.host)
            nursery.start_soon(serve, connection, address, scope, name=f"connection from {address}")

        return accept


def listen_for_clients(
    nursery: trio.Nursery,
    listeners: Listeners,
    accept: Callable[[socket.socket, TCPAddress], None],
    *,
    config: ServerConfig,
    refusals: RefusalCounters,
    descriptors: Descriptors,
) -> ProxyListener | None:
    """Accept connections on the control and tunnel ports, and on that for proxies if there is one, in `nursery`; `accept` owns each. Returns the one for proxies."""
    for listener in (listeners.control, listeners.tunnel):
        serve = partial(listener.serve, accept, descriptors)
        nursery.start_soon(serve, name=f"listener {listener.address}")
    if (proxies := listeners.proxy_control) is None:
        return None

    def take(connection: socket.socket, source: TCPAddress, _: TCPAddress) -> None:
        accept(connection, source)

    behind = ProxyListener.of(config, proxies, refusals)
    job = partial(behind.serve, take, descriptors)
    nursery.start_soon(job, name=f"proxies at {proxies.address}")
    return behind
