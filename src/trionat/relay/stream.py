"""One visitor joined to one tunnel, as seen from one side."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import attrs
import trio

from trionat.errors import RemoteProtocolError
from trionat.protocol.conversation import Side
from trionat.transport.readiness import Gate

if TYPE_CHECKING:
    from collections.abc import Callable

    from trionat.protocol.tunnel_frames import AbortReason
    from trionat.relay.send_buffer import SendBuffer
    from trionat.relay.throttle import Throttle
    from trionat.transport.endpoint import Endpoint


# Seconds for which a tunnel lives that has not been killed by what it had to carry first: nothing of ours, or bytes that were on their way. A tunnel that
# has died in silence with bytes on it is given up after 6 s.
_LIVED: Final = 1.0
_OUTLIVED: Final = 10.0


@attrs.frozen
class Failure:
    """Why a stream ended other than by END in both directions: `reason` for machines, `text` for people."""

    reason: AbortReason
    text: str


@attrs.define(eq=False)
class VisitorStream:
    """The plain end of a conversation (the visitor at the server, the local service at the client) and how it went.

    `taken` and `given` are bytes read from and written to the plain end, right at every moment. `took_end` says that it has no more,
    `gave_end` that it was told so. `throttle` slows the stream down; a server sets it.

    With a `send_buffer` the stream outlives its tunnel: another one goes on with it. Its positions, in both directions, count bytes and then
    1 for the end. `acknowledged` is the position that the peer has acknowledged, `told` the one that was acknowledged to it, and `confirmed` the one of
    which it will hear whatever becomes of the tunnel. `attempt` is how often it was resumed, `resumed_at` when the peer answered that on the
    tunnel that has it now.

    `over` says that both sides have said their last words, `aborted` that the peer has said ABORT, `finished` that its end has been logged;
    `since` is when it began. `on_answer`, if it is there, is called before the first byte is counted as given. `changed` opens when there may be room in the send buffer again, and when it is over or has failed.
    """

    visitor: int
    plain: Endpoint
    send_buffer: SendBuffer | None = None
    taken: int = 0
    given: int = 0
    took_end: bool = False
    gave_end: bool = False
    failure: Failure | None = None
    over: bool = False
    aborted: bool = False
    finished: bool = False
    since: float = attrs.field(factory=trio.current_time)
    throttle: Throttle | None = None
    attempt: int = 0
    on_answer: Callable[[], None] | None = None
    resumed_at: float | None = attrs.field(init=False, default=None)
    acknowledged: int = attrs.field(init=False, default=0)
    told: int = attrs.field(init=False, default=0)
    confirmed: int = attrs.field(init=False, default=0)
    _furthest: tuple[int, int] = attrs.field(init=False, default=(0, 0))
    changed: Gate = attrs.field(init=False, factory=Gate)
    _held_up: list[trio.CancelScope] = attrs.field(init=False, factory=lambda: [])

    @property
    def received(self) -> int:
        """The position up to which the plain end has taken what the peer sent."""
        return self.given + self.gave_end

    @property
    def sent(self) -> int:
        """The position up to which the peer gets, or is to get, what the plain end has said."""
        return self.taken + self.took_end

    @property
    def has_ended(self) -> bool:
        """Whether both directions have, so that the plain end is not needed any more."""
        return self.took_end and self.gave_end

    @property
    def is_acknowledged(self) -> bool:
        """Whether both sides have all of it, with its end, and know that of each other."""
        return self.took_end and self.acknowledged == self.sent and not self.owes_ack

    @property
    def can_resume(self) -> bool:
        """Whether another tunnel could go on with it."""
        return self.send_buffer is not None and not self.send_buffer.used_up

    def acknowledge(self, position: int) -> None:
        """Take the peer's word for how far it is.

        Raises:
            RemoteProtocolError: it cannot be so far, or the stream is not of those that are acknowledged.
        """
        if self.send_buffer is None or position > self.sent:
            raise RemoteProtocolError(f"ACK of {position}, where {self.sent} were sent")
        if position > self.acknowledged:
            self.acknowledged = position
            self.send_buffer.acknowledge(position)
            self.changed.open()

    @property
    def owes_ack(self) -> bool:
        """Whether the peer does not know how far we are."""
        return self.send_buffer is not None and self.told != self.received

    @property
    def is_unconfirmed(self) -> bool:
        """Whether the peer may not know how far we are, although it was told: an ACK on the tunnel waits behind bytes that nobody may take."""
        return self.send_buffer is not None and self.confirmed != self.received

    def note_told(self) -> None:
        """The peer is told how far we are, on the tunnel."""
        self.told = self.received

    def note_confirmed(self) -> None:
        """The peer is told how far we are where nothing holds that up: on the control connection, or with the first frame on a tunnel."""
        self.told = self.confirmed = self.received

    def advance(self) -> bool:
        """Tell whether the tunnel that is lost now has carried it: whether it has come further, in either direction, since this was asked last.

        Somebody who says nothing comes no further. There the tunnel counts if it was resumed on it and then lived for a while.
        """
        before, self._furthest = self._furthest, (self.acknowledged, self.received)
        if self._furthest != before or self.attempt == 0:
            return True
        if self.resumed_at is None:
            return False
        lived = trio.current_time() - self.resumed_at
        return lived > (_LIVED if self.acknowledged == self.sent else _OUTLIVED)

    def release(self) -> None:
        """Nobody goes on with it. Idempotent."""
        if self.send_buffer is not None:
            self.send_buffer.release()

    def fail(self, reason: AbortReason, text: str) -> None:
        """Note why it ends; the first reason counts. Of what was sent nothing is sent again."""
        if self.failure is None:
            self.failure = Failure(reason, text)
            self.release()
            for scope in self._held_up:
                scope.cancel(text)
        self.changed.open()

    @property
    def is_limited(self) -> bool:
        """Whether its bandwidth is limited: then `slow_down` comes before every piece."""
        return self.throttle is not None and self.throttle.rate is not None

    def portion(self, room: memoryview) -> memoryview:
        """Return as much of the room as one read may fill."""
        return room if self.throttle is None else self.throttle.portion(room)

    async def slow_down(self, count: int) -> None:
        """Wait until so many bytes, which were read, may be relayed; a stream that has failed need not wait."""
        if self.throttle is None or self.failure is not None or self.throttle.take_nowait(count):
            return
        with trio.CancelScope() as scope:
            self._held_up.append(scope)
            try:
                await self.throttle.take(count)
            finally:
                self._held_up.remove(scope)

    @property
    def end(self) -> str:
        """How it ended, in words for the log."""
        return "ended by both sides" if self.failure is None else self.failure.text


def reset_text(side: Side) -> str:
    """Say who it was that reset the plain end of `side`."""
    who = "the visitor" if side is Side.SERVER else "the local service"
    return f"{who} reset its connection"
