"""A stream that begins on the control connection, because no tunnel is idle.

Only its first bytes in each direction travel there. As soon as there is a tunnel, the stream is resumed on it like one that has lost its
tunnel, so whatever was under way is sent again there if it did not arrive.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final

import attrs
import trio

from trionat.protocol.messages import EARLY_BYTES, Begin, Early
from trionat.protocol.tunnel_frames import AbortReason
from trionat.relay.stream import VisitorStream, reset_text
from trionat.signals import Signal
from trionat.transport.scratch import scratch

if TYPE_CHECKING:
    from collections.abc import Callable

    from trionat.protocol.conversation import Side

MOST_EARLY: Final = 64
"""Streams of a session that may be on the control connection at once."""

_MOST_BYTES: Final = 256 * 1024
"""Bytes of them that may wait to be sent there."""


@attrs.define(eq=False)
class EarlyOutbox:
    """What is to be sent on the control connection about streams that have begun there, one message at a time, so that nothing waits behind it.

    `on_posted` is called when there is something; then `next` is to be called when its turn has come, and again after each message.
    """

    on_posted: Callable[[], None]
    _messages: deque[Begin | Early] = attrs.field(init=False, factory=lambda: deque())
    _held: int = attrs.field(init=False, default=0)
    _room: Signal = attrs.field(init=False, factory=Signal)

    def post(self, message: Begin | Early) -> None:
        """Send it behind the others."""
        self._messages.append(message)
        self._held += len(message.payload())
        self.on_posted()

    def next(self) -> Begin | Early | None:
        """Return the next message, None: there is none."""
        if not self._messages:
            return None
        message = self._messages.popleft()
        self._held -= len(message.payload())
        self._room.notify()
        if self._messages:
            self.on_posted()
        return message

    @property
    def is_stuck(self) -> bool:
        """Whether far more waits than those who wait for room can have posted."""
        return self._held >= 2 * _MOST_BYTES

    async def wait_room(self) -> None:
        """Wait until more may be posted."""
        while self._held >= _MOST_BYTES:
            await self._room.wait()


@attrs.define(eq=False)
class EarlyStream:
    """One end of such a stream. `run` carries what its plain end says; `stop` ends that, and then the stream may go to a tunnel.

    `on_moved` is called with the bytes that were taken from the plain end, and given to it.
    """

    stream: VisitorStream
    side: Side
    outbox: EarlyOutbox
    on_moved: Callable[[int, int], None] = lambda _taken, _given: None
    _scope: trio.CancelScope = attrs.field(init=False, factory=trio.CancelScope)
    _ended: trio.Event = attrs.field(init=False, factory=trio.Event)

    async def run(self) -> None:
        """Carry at most `EARLY_BYTES` and one read, until `stop` or cancelled."""
        try:
            with self._scope:
                await self._carry()
        except (OSError, trio.ClosedResourceError):
            self._lose_plain()
        finally:
            self._ended.set()

    async def stop(self) -> None:
        """Stop, and return when nobody waits for the plain end any more."""
        self._scope.cancel("the stream has a tunnel now")
        await self._ended.wait()

    async def _carry(self) -> None:
        stream, buffer = self.stream, self.stream.send_buffer
        assert buffer is not None, "only a stream that can be resumed begins here"  # noqa: S101 - for type checkers
        while stream.taken < EARLY_BYTES and stream.failure is None:
            await self.outbox.wait_room()
            if not buffer.memory.has_room(EARLY_BYTES):
                return  # it could not go on over a tunnel, which need not keep what it reads
            room = scratch().outgoing[:EARLY_BYTES]
            try:
                count = stream.plain.recv_into(room)
            except BlockingIOError:
                await stream.plain.readable.wait()
                continue
            if not count:
                return  # a tunnel reads that again
            self.outbox.post(Early(stream.visitor, stream.taken, bytes(room[:count])))
            buffer.keep(room[:count])
            stream.taken += count
            self.on_moved(count, 0)

    def take(self, early: Early) -> None:
        """Give what has come to the plain end, as far as it takes it at once; a tunnel brings the rest."""
        stream = self.stream
        if self._scope.cancel_called or early.position != stream.given or stream.failure:
            return
        try:
            sent = stream.plain.send(early.data) if early.data else 0
        except BlockingIOError:
            return
        except OSError:
            self._lose_plain()
            return
        if not stream.given and stream.on_answer is not None and sent:
            stream.on_answer()
        stream.given += sent
        self.on_moved(0, sent)

    def _lose_plain(self) -> None:
        self.stream.fail(AbortReason.RESET, reset_text(self.side))
        self.stream.plain.close()
