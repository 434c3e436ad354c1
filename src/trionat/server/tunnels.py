"""The tunnels of one session: two tasks each, and the bookkeeping of who is served."""

from __future__ import annotations

import math
from contextlib import suppress
from typing import TYPE_CHECKING

import attrs
import trio

from trionat.errors import PeerError
from trionat.log import get_logger
from trionat.protocol.conversation import Side
from trionat.protocol.tunnel import Open
from trionat.relay.pairing import Pairing
from trionat.relay.tunnel import SWEEP_INTERVAL, Tunnel
from trionat.transport.endpoint import Endpoint
from trionat.transport.isolation import isolated

if TYPE_CHECKING:
    from trionat.server.visitors import Visitor, VisitorLine

log = get_logger(__name__)

# Tunnels that a visitor is given before it is reset: its bytes themselves may be what kills them.
_TRIES = 3

# Idle tunnels that nobody has needed for this long, in sweeps, are sent home.
_RETIRE_AFTER = 30


@attrs.define(eq=False)
class _Served:
    """What runs on one tunnel."""

    scope: trio.CancelScope
    current: tuple[Visitor, Pairing] | None = None


@attrs.define(eq=False)
class Tunnels:
    """Serves the visitors of `line` over the tunnels that the client opens.

    `run` owns all of them: when it is cancelled every tunnel is closed, and a visitor that was served is reset, or goes back
    into the line if nothing of it was answered yet. `keep_idle` is how many idle tunnels the client wants at least.
    """

    line: VisitorLine
    limit: int
    keep_idle: int
    taken: int = attrs.field(init=False, default=0)
    given: int = attrs.field(init=False, default=0)
    served: int = attrs.field(init=False, default=0)
    _tunnels: dict[Tunnel, _Served] = attrs.field(init=False, factory=lambda: {})
    _arrivals_end: trio.MemorySendChannel[Endpoint] = attrs.field(init=False)
    _arrivals: trio.MemoryReceiveChannel[Endpoint] = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        # Bounded by `limit`, which `attach` checks; the channel only hands over.
        self._arrivals_end, self._arrivals = trio.open_memory_channel[Endpoint](math.inf)

    @property
    def count(self) -> int:
        """How many tunnels there are, idle or not."""
        return len(self._tunnels) + self._arrivals.statistics().current_buffer_used

    @property
    def relayed(self) -> int:
        """Bytes relayed so far, both directions added, live visitors included."""
        live = (
            served.current[1] for served in self._tunnels.values() if served.current is not None
        )
        return self.taken + self.given + sum(pairing.taken + pairing.given for pairing in live)

    def attach(self, wire: Endpoint) -> bool:
        """Take over the wire of a new tunnel; False, and the caller keeps it, if there are too many or the session ends."""
        if self.count >= self.limit:
            return False
        try:
            self._arrivals_end.send_nowait(wire)
        except trio.BrokenResourceError:
            return False
        return True

    async def run(self) -> None:
        """Serve until cancelled."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._sweep)
                async for wire in self._arrivals:
                    nursery.start_soon(self._serve, wire, name="tunnel")
        finally:
            with suppress(trio.WouldBlock):
                while True:  # noqa: ASYNC913 - ends when it is empty
                    self._arrivals.receive_nowait().close()
            self._arrivals.close()

    async def _serve(self, wire: Endpoint) -> None:
        tunnel = Tunnel(wire, Side.SERVER)
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
            wire.close()
            if served.current is not None:
                self._rescue(*served.current, reason)

    async def _carry(self, tunnel: Tunnel, served: _Served, scope: trio.CancelScope) -> None:
        while (visitor := await self.line.next()) is not None:
            pairing = Pairing(visitor.number, visitor.endpoint, taken=len(visitor.early))
            served.current = (visitor, pairing)
            visitor.tries += 1
            await tunnel.open(
                pairing,
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
            self._account(visitor, pairing, pairing.end)
        scope.cancel("not needed any more")

    def _account(self, visitor: Visitor, pairing: Pairing, end: str) -> None:
        self.line.leave()
        self.served += 1
        self.taken += pairing.taken
        self.given += pairing.given
        log.info(
            "visitor closed",
            visitor=visitor.number,
            address=str(visitor.address),
            port=visitor.visited.port,
            reason=end,
            received=pairing.taken,
            sent=pairing.given,
            seconds=round(trio.current_time() - visitor.arrived, 3),
        )

    def _rescue(self, visitor: Visitor, pairing: Pairing, reason: str) -> None:
        """The tunnel is gone: the visitor goes to another one if nothing of it was answered, else it is reset."""
        if pairing.over:  # the last words were said, only the bookkeeping was cut short
            visitor.endpoint.close()
            self._account(visitor, pairing, pairing.end)
        elif pairing.failure is None and pairing.unanswered is not None and visitor.tries < _TRIES:
            visitor.early = bytes(pairing.unanswered)
            self.line.put_back(visitor)
        else:
            visitor.endpoint.reset()
            self._account(visitor, pairing, reason)

    async def _sweep(self) -> None:
        """Once a second: see after every tunnel, and send home those that were not needed for a while."""
        sweeps = 0
        while True:
            await trio.sleep(SWEEP_INTERVAL)
            for tunnel, served in list(self._tunnels.items()):
                try:
                    tunnel.sweep()
                except PeerError as error:
                    log.info("tunnel given up", reason=str(error))
                    served.scope.cancel(str(error))
            sweeps += 1
            if sweeps % _RETIRE_AFTER == 0:
                busy = len(self._tunnels) - self.line.idle
                self.line.retire(max(0, self.line.least_idle - max(self.keep_idle, busy // 4)))
                self.line.least_idle = self.line.idle
