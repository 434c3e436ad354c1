"""Visitors that begin on the control connection, since no tunnel is idle: their first bytes, and those of the answer, need not wait for one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import attrs
import trio

from trionat.log import get_logger
from trionat.protocol.conversation import Side
from trionat.protocol.messages import EARLY_BYTES, Begin
from trionat.protocol.tunnel_frames import AbortReason
from trionat.relay.early import MOST_EARLY, EarlyOutbox, EarlyStream

if TYPE_CHECKING:
    from collections.abc import Callable

    from trionat.protocol.messages import Early
    from trionat.relay.send_buffer import SendBuffer
    from trionat.server.visitors.queue import VisitorQueue
    from trionat.server.visitors.visitor import Visitor

log = get_logger(__name__)

# Seconds in which the client has to answer BEGIN. It does so at once, behind what else waits on the control connection.
_CONFIRMED_WITHIN: Final = 15.0


@attrs.define(eq=False)
class _Begun:
    visitor: Visitor
    early: EarlyStream
    confirmed: trio.Event = attrs.field(factory=trio.Event)


@attrs.define(eq=False)
class EarlyVisitors:
    """Begins for the visitors of the queue while `run` runs; they stay in the queue, and a tunnel goes on with them.

    `on_moved` is called with the bytes that were taken from and given to visitors.
    """

    queue: VisitorQueue
    outbox: EarlyOutbox
    new_buffer: Callable[[], SendBuffer]
    on_moved: Callable[[int, int], None]
    _begun: dict[int, _Begun] = attrs.field(init=False, factory=lambda: {})

    async def run(self) -> None:
        """Begin for every visitor that has to wait, until cancelled."""
        queue = self.queue
        async with trio.open_nursery() as nursery:
            while True:
                self._begun = {  # without those that have left
                    number: begun for number, begun in self._begun.items() if begun.visitor.present
                }
                for visitor in queue.waiting_visitors:
                    if visitor.stream is None and len(self._begun) < MOST_EARLY:
                        self._begin(visitor, nursery)
                await queue.arrived.wait()

    def _begin(self, visitor: Visitor, nursery: trio.Nursery) -> None:
        if self.queue.user_limits.throttle.rate is not None:
            return  # its bytes wait for their turn
        buffer = self.new_buffer()
        if not buffer.memory.has_room(EARLY_BYTES):
            return
        stream = visitor.new_stream(buffer)
        visitor.stream = stream
        early = EarlyStream(stream, Side.SERVER, self.outbox, self.on_moved)
        self._begun[visitor.number] = _Begun(visitor, early)
        log.debug("visitor begins on the control connection", visitor=visitor.number)
        self.outbox.post(Begin(visitor.opening.payload()))
        nursery.start_soon(early.run, name="early visitor")

    def take(self, early: Early) -> None:
        """Take what the client says about a visitor; nothing is done where the visitor is not here any more."""
        begun = self._begun.get(early.visitor)
        if begun is not None:
            begun.confirmed.set()
            begun.early.take(early)

    async def release(self, visitor: Visitor) -> None:
        """Let a tunnel have the visitor, as soon as the client is known to have heard of it: else it might begin twice there.

        Where the client does not answer in time, the visitor is reset, which the tunnel tells.
        """
        begun = self._begun.get(visitor.number)
        if begun is not None:
            with trio.move_on_after(_CONFIRMED_WITHIN) as scope:
                await begun.confirmed.wait()
            if scope.cancelled_caught:
                begun.early.stream.fail(AbortReason.TIMEOUT, "the client did not answer BEGIN")
                visitor.endpoint.reset()
            await begun.early.stop()
            del self._begun[visitor.number]
