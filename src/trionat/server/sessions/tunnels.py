"""The tunnels of one session, and the book of the visitors that they serve."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from contextlib import suppress
from typing import TYPE_CHECKING

import attrs
import trio

from trionat.log import get_logger
from trionat.protocol.tunnel_frames import AbortReason
from trionat.relay.liveness import SWEEP_INTERVAL
from trionat.transport.descriptors import is_for_control
from trionat.transport.endpoint import Endpoint

if TYPE_CHECKING:
    from trionat.relay.stream import VisitorStream
    from trionat.server.visitors.queue import VisitorQueue
    from trionat.server.visitors.visitor import Visitor

log = get_logger(__name__)


@attrs.define(eq=False)
class Tunnels(ABC):
    """Serves the visitors of `queue` over the tunnels that the client opens, at most `limit` at once.

    `run` owns all of them: when it is cancelled every tunnel is closed, and no visitor is served any more. `count` is how many
    tunnels there are, `served` how many visitors have had one, `streams` has those who are served now.
    """

    queue: VisitorQueue
    limit: int
    count: int = attrs.field(init=False, default=0)
    served: int = attrs.field(init=False, default=0)
    streams: dict[Visitor, VisitorStream] = attrs.field(init=False, factory=lambda: {})
    _received: int = attrs.field(init=False, default=0)
    _sent: int = attrs.field(init=False, default=0)
    _arrivals_end: trio.MemorySendChannel[tuple[Endpoint, bytes]] = attrs.field(init=False)
    _arrivals: trio.MemoryReceiveChannel[tuple[Endpoint, bytes]] = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        # Bounded by `limit`, which `attach` checks; the channel only hands over.
        self._arrivals_end, self._arrivals = trio.open_memory_channel[tuple[Endpoint, bytes]](
            math.inf
        )

    @property
    def received(self) -> int:
        """Bytes taken from visitors so far, live ones included; never less than before."""
        return self._received + sum(stream.taken for stream in self.streams.values())

    @property
    def sent(self) -> int:
        """Bytes given to visitors so far, live ones included; never less than before."""
        return self._sent + sum(stream.given for stream in self.streams.values())

    @property
    def relayed(self) -> int:
        """Bytes relayed so far, both directions added."""
        return self.received + self.sent

    def attach(self, wire: Endpoint, early: bytes = b"") -> bool:
        """Take over the wire of a new tunnel; False, and the caller keeps it, if there are too many or the session ends.

        There are too many as well where hardly a descriptor is left: those are for control connections. `early` was read from it behind the message that announced the tunnel.
        """
        if self.count >= self.limit or is_for_control(wire.fileno()):
            log.debug("tunnel refused", present=self.count, limit=self.limit)
            return False
        try:
            self._arrivals_end.send_nowait((wire, early))
        except trio.BrokenResourceError:
            return False
        self.count += 1
        log.debug("tunnel taken over", session=self.queue.session, present=self.count)
        return True

    def kick(self, number: int, reason: str) -> bool:
        """Reset the visitor of that number, and tell the client why; tell whether it is served here, and not reset already."""
        for visitor, stream in self.streams.items():
            if visitor.number == number and not visitor.is_over:
                stream.fail(AbortReason.OTHER, reason)
                visitor.endpoint.reset()  # wakes whoever reads or writes it, and so the tunnel
                return True
        return False

    async def run(self) -> None:
        """Serve until cancelled."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._sweep_regularly, name="sweep")
                async for wire, early in self._arrivals:
                    nursery.start_soon(self._own, wire, early, name="tunnel")
        finally:
            with suppress(trio.WouldBlock):
                while True:  # noqa: ASYNC913 - ends when it is empty
                    wire, _ = self._arrivals.receive_nowait()
                    self._close(wire)
            self._arrivals.close()

    async def _own(self, wire: Endpoint, early: bytes) -> None:
        try:
            await self._serve(wire, early)
        finally:
            self._close(wire)

    def _close(self, wire: Endpoint) -> None:
        self.count -= 1
        log.debug("tunnel closed", session=self.queue.session, present=self.count)
        wire.close()

    async def _sweep_regularly(self) -> None:
        while True:
            await trio.sleep(SWEEP_INTERVAL)
            self._sweep()

    @abstractmethod
    async def _serve(self, wire: Endpoint, early: bytes) -> None:
        """Serve visitors over one tunnel until it ends; what its peer does must not come out."""

    @abstractmethod
    def _sweep(self) -> None:
        """See after every tunnel; called every `SWEEP_INTERVAL`."""

    # -- the book ----------------------------------------------------------------------------------------------------

    def _begin(self, visitor: Visitor, stream: VisitorStream) -> None:
        """The visitor is served from now on: its bytes count, those of before do not, and its user's throttle holds it."""
        log.debug("visitor paired with a tunnel", visitor=visitor.number, served=len(self.streams))
        stream.throttle = self.queue.user_limits.throttle
        self._received -= stream.taken
        self._sent -= stream.given
        self.streams[visitor] = stream
        if visitor.session != self.queue.session and not visitor.is_over:  # else it was counted
            visitor.session = self.queue.session
            self.served += 1

    def _finish(self, visitor: Visitor, end: str) -> None:
        """The visitor was served; its endpoint is closed already."""
        stream = self._end(visitor)
        told = visitor.has_left
        self.queue.leave(visitor)
        if told:  # only its last words have gone over another tunnel
            return
        log.info(
            "visitor closed",
            visitor=visitor.number,
            address=str(visitor.address),
            port=visitor.visited.port,
            **({} if visitor.name is None else {"name": visitor.name}),
            reason=end,
            received=stream.taken,
            sent=stream.given,
            seconds=round(trio.current_time() - visitor.arrived, 3),
        )

    def count_bytes(self, received: int, sent: int) -> None:
        """Count what has gone another way than over a tunnel."""
        self._received += received
        self._sent += sent

    def _put_back(self, visitor: Visitor) -> None:
        """The visitor goes to another tunnel, perhaps of another session."""
        self._end(visitor)
        self.queue.put_back(visitor)

    def _end(self, visitor: Visitor) -> VisitorStream:
        """The visitor is not served any more; what was relayed is counted here."""
        stream = self.streams.pop(visitor)
        self._received += stream.taken
        self._sent += stream.given
        return stream
