"""The tunnels of a native session: two tasks each, which serve one visitor after another."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs
import trio

from trionat.errors import PeerError
from trionat.log import get_logger
from trionat.protocol.tunnel_frames import Open
from trionat.relay.liveness import ACKNOWLEDGED_WITHIN
from trionat.relay.server_tunnel import ServerTunnel
from trionat.relay.stream import VisitorStream
from trionat.server.sessions.tunnels import Tunnels
from trionat.transport.isolation import isolated

if TYPE_CHECKING:
    from trionat.server.visitors.visitor import Visitor
    from trionat.transport.endpoint import Endpoint

log = get_logger(__name__)

# Tunnels that a visitor is given before it is reset: its bytes themselves may be what kills them.
_TRIES = 3

# Idle tunnels that nobody has needed for this long, in sweeps, are sent home.
_RETIRE_AFTER = 30


@attrs.define(eq=False)
class _Served:
    """What runs on one tunnel."""

    scope: trio.CancelScope
    current: tuple[Visitor, VisitorStream] | None = None


@attrs.define(eq=False, kw_only=True)
class NativeTunnels(Tunnels):
    """Cancelled, `run` puts a visitor to whom nothing was answered yet back into the queue, and resets the others.

    `keep_idle` is how many idle tunnels the client wants at least, `acknowledged_within` is as in `Tunnel`.
    """

    keep_idle: int
    acknowledged_within: float = ACKNOWLEDGED_WITHIN
    _tunnels: dict[ServerTunnel, _Served] = attrs.field(init=False, factory=lambda: {})
    _sweeps: int = attrs.field(init=False, default=0)

    async def _serve(self, wire: Endpoint, early: bytes) -> None:
        assert not early, "a login lets nothing through behind ATTACH"  # noqa: S101 - its bug, not the peer's
        tunnel = ServerTunnel(wire, acknowledged_within=self.acknowledged_within)
        served = self._tunnels[tunnel] = _Served(trio.CancelScope())
        reason = "its session has ended"
        try:
            with isolated(log, "tunnel lost"), served.scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(
                        self._carry, tunnel, served, nursery.cancel_scope, name="carry"
                    )
                    await tunnel.receive()
                    nursery.cancel_scope.cancel("the client closed the tunnel")
            reason = "the tunnel was lost"
        finally:
            del self._tunnels[tunnel]
            if served.current is not None:
                self._rescue(*served.current, reason)

    async def _carry(self, tunnel: ServerTunnel, served: _Served, scope: trio.CancelScope) -> None:
        while (visitor := await self.queue.next()) is not None:
            stream = VisitorStream(visitor.number, visitor.endpoint)
            served.current = (visitor, stream)
            self._begin(visitor, stream)
            visitor.tries += 1
            await tunnel.open(
                stream,
                Open(
                    visitor=visitor.number,
                    service=visitor.service,
                    host=visitor.address.host,
                    port=visitor.address.port,
                    visit_host=visitor.visited.host,
                    visit_port=visitor.visited.port,
                ),
                visitor.early,
            )
            served.current = None
            self._finish(visitor, stream.end)
        scope.cancel("not needed any more")

    def _rescue(self, visitor: Visitor, stream: VisitorStream, reason: str) -> None:
        """The tunnel is gone: the visitor goes to another one if nothing of it was answered, else it is reset."""
        if stream.over:  # the last words were said, only the bookkeeping was cut short
            visitor.endpoint.close()
            self._finish(visitor, stream.end)
        elif stream.failure is None and stream.unanswered is not None and visitor.tries < _TRIES:
            visitor.early = bytes(stream.unanswered)
            self._put_back(visitor)
        else:
            visitor.endpoint.reset()
            self._finish(visitor, reason)

    def _sweep(self) -> None:
        """See after every tunnel, and send home those that were not needed for a while."""
        doubtful = any(tunnel.liveness.is_asked for tunnel in self._tunnels)
        for tunnel, served in list(self._tunnels.items()):
            try:
                tunnel.sweep(doubtful=doubtful)
            except PeerError as error:
                log.info("tunnel given up", reason=str(error))
                served.scope.cancel(str(error))
                # The other end may wait for a plain end that does not read, and would not see a mere end.
                tunnel.wire.reset()
        self._sweeps += 1
        if self._sweeps % _RETIRE_AFTER == 0:
            busy = len(self._tunnels) - self.queue.idle
            self.queue.retire(max(0, self.queue.least_idle - max(self.keep_idle, busy // 4)))
            self.queue.least_idle = self.queue.idle
