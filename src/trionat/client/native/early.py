"""Visitors that the server begins on the control connection: connected to their service while a tunnel for them is on its way."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import attrs
import trio

from trionat.errors import RemoteProtocolError
from trionat.protocol.conversation import Side
from trionat.protocol.messages import EARLY_BYTES, Begin, Early
from trionat.protocol.tunnel_frames import Open
from trionat.relay.client_tunnel import LocalServiceError
from trionat.relay.early import MOST_EARLY, EarlyOutbox, EarlyStream
from trionat.relay.stream import VisitorStream

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from trionat.client.native.streams import WaitingStreams
    from trionat.transport.endpoint import Endpoint

# Seconds for which a tunnel waits for the connection to the service. The server wants an answer to RESUME within 4 s, so after that the tunnel
# answers first, and connects then, as for OPEN.
_CONNECTS_WITHIN: Final = 1.0

# Visitors whose service could not be reached, which their tunnel is to tell. The oldest is forgotten, and tried again.
_MOST_REFUSED: Final = 1024


@attrs.define(eq=False)
class _Begun:
    """`ready` is set when `early` is there, or never will be. `said` is what the visitor has said before."""

    frame: Open
    scope: trio.CancelScope = attrs.field(factory=trio.CancelScope)
    ready: trio.Event = attrs.field(factory=trio.Event)
    early: EarlyStream | None = None
    said: bytearray = attrs.field(factory=bytearray)


@attrs.define(eq=False)
class EarlyStreams:
    """Their streams are in `waiting`, where a tunnel finds them after `release`.

    `connect` is the way to the local service, `room` tells for how many more visitors there is one, those who connect just now included.
    """

    connect: Callable[[Open], Awaitable[Endpoint]]
    waiting: WaitingStreams
    outbox: EarlyOutbox
    room: Callable[[], int] = lambda: MOST_EARLY
    _begun: dict[int, _Begun] = attrs.field(init=False, factory=lambda: {})
    _refused: dict[int, LocalServiceError] = attrs.field(init=False, factory=lambda: {})

    def begin(self, message: Begin, nursery: trio.Nursery) -> None:
        """Serve a visitor, in that nursery; where there are too many, it begins when a tunnel comes for it.

        There may be more than a server begins at a time, since nobody tells us which visitors have left again.

        Raises:
            RemoteProtocolError: the server begins one for the second time, or what is no visitor, or does not read our answers.
        """
        frame = Open.decode(message.open)
        if frame.visitor in self._begun or frame.visitor in self.waiting:
            raise RemoteProtocolError("BEGIN of a visitor for the second time")
        if self.outbox.is_stuck:
            raise RemoteProtocolError(
                "BEGIN of more and more visitors from a server that does not read"
            )
        self.outbox.post(Early(frame.visitor, 0, b""))
        connecting = sum(begun.early is None for begun in self._begun.values())
        if (
            len(self._begun) >= 2 * MOST_EARLY
            or connecting >= self.room()
            or not self.waiting.memory.has_room((connecting + 1) * EARLY_BYTES)
        ):
            return
        begun = self._begun[frame.visitor] = _Begun(frame)
        nursery.start_soon(self._own, begun, name="early visitor")

    async def _own(self, begun: _Begun) -> None:
        with begun.scope:
            await self._serve(begun)

    async def _serve(self, begun: _Begun) -> None:
        frame = begun.frame
        try:
            plain = await self.connect(frame)
            stream = VisitorStream(frame.visitor, plain, self.waiting.new_buffer())
            begun.early = EarlyStream(stream, Side.CLIENT, self.outbox)
            begun.early.take(Early(frame.visitor, 0, bytes(begun.said)))
            self.waiting.hold(frame, stream, is_early=True)
            begun.ready.set()
            await begun.early.run()
        except LocalServiceError as error:
            if len(self._refused) >= _MOST_REFUSED:
                del self._refused[next(iter(self._refused))]
            self._refused[frame.visitor] = error
        finally:
            begun.ready.set()
            del self._begun[frame.visitor]

    def take(self, early: Early) -> None:
        """Take what the server says about a visitor; nothing is done where the visitor is not here any more.

        Raises:
            RemoteProtocolError: it is more than may come here.
        """
        if (begun := self._begun.get(early.visitor)) is None:
            return
        if begun.early is not None:
            begun.early.take(early)
        elif early.position != len(begun.said) or early.position > EARLY_BYTES:
            raise RemoteProtocolError("EARLY of more than may come on the control connection")
        else:
            begun.said += early.data

    async def release(self, visitor: int) -> None:
        """Let a tunnel have the visitor, if it has begun here.

        Raises:
            LocalServiceError: its service cannot be reached.
        """
        if (begun := self._begun.get(visitor)) is not None:
            with trio.move_on_after(_CONNECTS_WITHIN):
                await begun.ready.wait()
            if not begun.ready.is_set():
                begun.scope.cancel("its tunnel connects to the service")
                await begun.ready.wait()
            if begun.early is not None:
                await begun.early.stop()
        if (refusal := self._refused.pop(visitor, None)) is not None:
            raise refusal
