"""The tunnels of a legacy session: each comes for one visitor, and ends with it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

from trionat.log import get_logger
from trionat.protocol.conversation import Side
from trionat.relay.raw_tunnel import RawTunnel
from trionat.server.sessions.tunnels import Tunnels
from trionat.transport.isolation import isolated

if TYPE_CHECKING:
    from trionat.transport.endpoint import Endpoint

log = get_logger(__name__)


@attrs.define(eq=False)
class LegacyTunnels(Tunnels):
    """Gives a tunnel to the visitor that has waited longest; one for which nobody waits is closed.

    Cancelled, `run` resets every visitor that is served.
    """

    _running: set[RawTunnel] = attrs.field(init=False, factory=lambda: set())

    async def _serve(self, wire: Endpoint, early: bytes) -> None:
        visitor = self.queue.take()
        if visitor is None:
            log.info("tunnel closed", reason="no visitor waits for it")
            return
        stream = visitor.new_stream()
        tunnel = RawTunnel(wire, stream, Side.SERVER, early)
        self._begin(visitor, stream)
        self._running.add(tunnel)
        end = "its session has ended"
        try:
            with isolated(log, "tunnel lost"):
                await tunnel.run()
                end = stream.end
        finally:
            self._running.remove(tunnel)
            self._finish(visitor, end)

    def _sweep(self) -> None:
        for tunnel in self._running:
            tunnel.sweep()
