"""The visitors of a session at an original server: each has a task, a local connection and a tunnel of its own."""

from __future__ import annotations

from itertools import count
from typing import TYPE_CHECKING

import attrs
import trio

from trionat.log import get_logger
from trionat.protocol.conversation import Side
from trionat.relay.client_tunnel import LocalServiceError
from trionat.relay.liveness import SWEEP_INTERVAL
from trionat.relay.raw_tunnel import RawTunnel
from trionat.relay.stream import VisitorStream
from trionat.signals import Signal
from trionat.transport.isolation import isolated

if TYPE_CHECKING:
    from collections.abc import Iterator

    from trionat.client.forwarder import Forwarder
    from trionat.client.legacy.dialer import LegacyDialer
    from trionat.protocol.legacy import UserInformation
    from trionat.transport.endpoint import Endpoint

log = get_logger(__name__)


@attrs.define(eq=False)
class Visitors:
    """Serves them, at most `limit` at once; numbers in the log count from 1 in each session."""

    server: LegacyDialer
    session: UserInformation
    forwarder: Forwarder
    limit: int
    _present: int = attrs.field(init=False, default=0)
    _tunnels: set[RawTunnel] = attrs.field(init=False, factory=lambda: set())
    _numbers: count[int] = attrs.field(init=False, factory=lambda: count(1))
    _one_less: Signal = attrs.field(init=False, factory=Signal)

    def admit(self, nursery: trio.Nursery) -> None:
        """Serve one more, in a task of `nursery`; one too many is left to wait at the server, which closes it soon."""
        number = next(self._numbers)
        if self._present >= self.limit:
            self.forwarder.note_refused(
                0, f"{self.limit} are here already (MaxTunnels)", visitor=number
            )
            return
        self._present += 1
        nursery.start_soon(self._serve, number, name=f"visitor {number}")

    def streams(self) -> Iterator[VisitorStream]:
        """Those that have a tunnel."""
        return (tunnel.stream for tunnel in self._tunnels)

    async def wait_none(self) -> None:
        """Wait until no visitor is left."""
        while self._present:
            await self._one_less.wait()

    async def sweep(self) -> None:
        """Once a second, until cancelled: see after connections that were reset while nobody touched them."""
        while True:
            await trio.sleep(SWEEP_INTERVAL)
            for tunnel in self._tunnels:
                tunnel.sweep()

    async def _serve(self, number: int) -> None:
        """Serve a visitor from NEW_CONNECTION until both directions have ended. Its failure is nobody else's."""
        try:
            with isolated(log, "visitor refused", visitor=number):
                await self._join(number)
        finally:
            self._present -= 1
            self._one_less.notify()

    async def _join(self, number: int) -> None:
        """Connect to the local service, then to the server, and relay: no tunnel waits for a service."""
        try:
            local = await self.forwarder.open(0)
        except LocalServiceError as error:
            self.forwarder.note_refused(0, str(error), visitor=number)
            await self._send_away()
            return
        try:
            wire = await self.server.open_tunnel(self.session)
        except BaseException:
            local.close()
            raise
        await self._relay(VisitorStream(number, local), wire)

    async def _send_away(self) -> None:
        """Open a tunnel that ends at once, so that the server closes the visitor now and not when its patience is over.

        Until then it would take the tunnel of the next visitor, and that one the tunnel of the one after it. An end, not a
        reset, which may overtake the frame that names the session.
        """
        (await self.server.open_tunnel(self.session)).close()

    async def _relay(self, stream: VisitorStream, wire: Endpoint) -> None:
        since = trio.current_time()
        tunnel = RawTunnel(wire, stream, Side.CLIENT)
        self._tunnels.add(tunnel)
        try:
            await tunnel.run()
        finally:
            self._tunnels.remove(tunnel)
        self.forwarder.note_closed(stream.plain, stream.end)
        log.info(
            "visitor closed",
            visitor=stream.visitor,
            service=str(self.forwarder.services[0].local),
            reason=stream.end,
            received=stream.given,
            sent=stream.taken,
            seconds=round(trio.current_time() - since, 3),
        )
