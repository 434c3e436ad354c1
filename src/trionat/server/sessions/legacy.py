"""The control connection of a legacy session: a number and a port, then one word a second and one for each visitor."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import attrs
import trio

from trionat.errors import ConnectionLostError
from trionat.protocol.legacy import KeepAlive, LegacyMessage, NewConnection, UserInformation
from trionat.server.sessions.legacy_tunnels import LegacyTunnels
from trionat.server.sessions.session import Session, SessionEnd
from trionat.transport.deadline import deadline

if TYPE_CHECKING:
    from trionat.protocol.dialect import Dialect
    from trionat.transport.channel import LegacyChannel

# Seconds between two KEEP_ALIVE (specification).
KEEP_ALIVE_INTERVAL: Final = 1.0

# Seconds after which a client whose kernel acknowledges nothing has to make room for one from its address. There is something
# to be acknowledged every second; two of them may be lost on the way.
_STALLED_AFTER: Final = 2.0


@attrs.define(eq=False, kw_only=True)
class LegacySession(Session):
    """See `Session`. The client never says anything, so that it is gone is noticed by what we send to it.

    Its goodbye looks like a loss: its port is reserved for it either way.
    """

    channel: LegacyChannel
    _dialect: Dialect = attrs.field(alias="dialect")

    def __attrs_post_init__(self) -> None:
        self.tunnels = LegacyTunnels(self.lease.queue, self.config.max_visitors)

    @property
    def dialect(self) -> str:
        """See `Session`."""
        return self._dialect.value

    @property
    def is_deserted(self) -> bool:
        """Whether it is about to end, or the client's machine has stopped to acknowledge what is sent to it."""
        return self._end is not None or self.channel.endpoint.silent_for() > _STALLED_AFTER

    async def _converse(self, nursery: trio.Nursery) -> SessionEnd:
        nursery.start_soon(self._write, name="control writer")
        try:
            while True:
                await self.channel.receive()  # a message that the dialect knows does no harm
        except ConnectionLostError as error:  # known at once: the client may be back already
            return SessionEnd("lost", str(error), tell=False, goodbye=False)

    async def _write(self) -> None:
        queue = self.lease.queue
        # Visitors who waited for the client are news to it as well.
        announced = queue.arrivals - queue.waiting
        await self._send(UserInformation(self.uid, self.lease.port_numbers[0]))
        due = trio.current_time() + KEEP_ALIVE_INTERVAL
        while True:
            while announced < queue.arrivals:
                announced += 1
                await self._send(NewConnection())
            with trio.move_on_at(due):
                await queue.arrived.wait()
            if trio.current_time() >= due:
                due = trio.current_time() + KEEP_ALIVE_INTERVAL
                await self._send(KeepAlive())

    async def _send(self, message: LegacyMessage) -> None:
        with deadline(self.config.peer_timeout, "the client does not read its control connection"):
            await self.channel.send(message)

    def _tell_drain(self) -> None:
        """The dialect has no word for it: visitors that are there may finish, that is all."""

    async def _tell_end(self, end: SessionEnd) -> None:
        """The dialect has no word for it: the connection is closed, and the client comes again."""
