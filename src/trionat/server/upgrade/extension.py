"""Visitors whose connection is more than a socket: TLS ends here, or their requests are told apart. It stays with this process, and a pair of sockets extends it to the one that serves.

The pair is TCP, so that a reset comes through. When the visitor has gone, or the other process lets go of its end, the extension ends.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import attrs
import trio

from trionat.log import get_logger
from trionat.protocol.conversation import Side
from trionat.relay.liveness import SWEEP_INTERVAL
from trionat.relay.raw_tunnel import RawTunnel
from trionat.relay.stream import VisitorStream
from trionat.transport.endpoint import SocketEndpoint
from trionat.transport.isolation import isolated
from trionat.transport.tcp_pair import open_tcp_pair

if TYPE_CHECKING:
    import socket

    from trionat.server.visitors.visitor import Visitor

log = get_logger(__name__)

_LAST_WORDS: Final = 2.0
"""Seconds for connections of visitors that have their end on its way."""


@attrs.define(eq=False)
class Extensions:
    """Those of a process that is about to be followed by another one, by the numbers of their visitors."""

    _ends: dict[int, tuple[Visitor, socket.socket, socket.socket]] = attrs.field(
        init=False, factory=lambda: {}
    )

    def __len__(self) -> int:
        """How many there are."""
        return len(self._ends)

    def descriptor(self, visitor: Visitor) -> int | None:
        """Return by which descriptor another process goes on with a visitor; None where it is gone, or there is no room for an extension."""
        endpoint = visitor.endpoint
        if isinstance(endpoint, SocketEndpoint):
            return None if endpoint.fileno() < 0 else endpoint.fileno()
        if endpoint.is_lost():
            return None
        try:
            here, there = open_tcp_pair()
        except OSError as error:
            log.warning(
                "visitor cannot be handed over",
                visitor=visitor.number,
                reason=error.strerror or str(error),
            )
            return None
        self._ends[visitor.number] = visitor, here, there
        return there.fileno()

    @property
    def visitors(self) -> frozenset[int]:
        """The numbers of their visitors."""
        return frozenset(self._ends)

    def close(self) -> None:
        """The other process does not go on."""
        while self._ends:
            _, (_, here, there) = self._ends.popitem()
            here.close()
            there.close()

    async def keep(self, serving: trio.Nursery, stopping: trio.Event, grace: float) -> None:
        """The other process goes on: `run`, and then until nobody is left in `serving`, where their connections are; after `stopping` for the grace at most."""
        log.info("upgrade: visitors whose TLS ends here are kept", visitors=len(self))
        async with trio.open_nursery() as nursery:

            async def wait_stop() -> None:
                await stopping.wait()
                await trio.sleep(grace)
                nursery.cancel_scope.cancel("the server stops")

            nursery.start_soon(wait_stop, name="wait for the stop")
            await self.run()
            with trio.move_on_after(_LAST_WORDS):  # each has its end on its way  # noqa: ASYNC912 - where some are left
                while serving.child_tasks:  # noqa: ASYNC110 - nothing tells
                    await trio.sleep(0.05)
            nursery.cancel_scope.cancel("nobody is left")

    async def run(self) -> None:
        """The other process goes on: relay until all have ended. Cancelled, those that are left are reset."""
        tunnels: set[RawTunnel] = set()

        async def relay(tunnel: RawTunnel) -> None:
            with isolated(log, "visitor lost"):
                try:
                    await tunnel.run()
                finally:
                    tunnels.remove(tunnel)

        async with trio.open_nursery() as nursery:
            while self._ends:
                number, (visitor, here, there) = self._ends.popitem()
                there.close()
                stream = VisitorStream(number, visitor.endpoint)
                tunnel = RawTunnel(SocketEndpoint(here), stream, Side.SERVER)
                tunnels.add(tunnel)
                nursery.start_soon(relay, tunnel, name=f"visitor {number}")
            while tunnels:
                await trio.sleep(SWEEP_INTERVAL)
                for tunnel in list(tunnels):
                    tunnel.sweep()
