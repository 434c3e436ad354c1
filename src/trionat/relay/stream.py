"""One visitor joined to one tunnel, as seen from one side."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import attrs
import trio

from trionat.protocol.conversation import Side
from trionat.signals import Signal

if TYPE_CHECKING:
    from trionat.protocol.tunnel_frames import AbortReason
    from trionat.relay.throttle import Throttle
    from trionat.transport.endpoint import Endpoint

# What a server keeps of a visitor's bytes until something comes back, to give it to another tunnel if this one proves dead. A
# request with its headers fits; a longer one is being uploaded, and then the tunnel has shown that it lives.
REPLAY_BYTES: Final = 64 * 1024


@attrs.frozen
class Failure:
    """Why a stream ended other than by END in both directions: `reason` for machines, `text` for people."""

    reason: AbortReason
    text: str


@attrs.define(eq=False)
class VisitorStream:
    """The plain end of a conversation (the visitor at the server, the local service at the client) and how it went.

    `taken` and `given` are bytes read from and written to the plain end, right at every moment. `unanswered` holds what was
    taken until the other side has answered anything, or None: once it has, when there was too much, and at a client. `throttle`
    slows the stream down; a server sets it.
    """

    visitor: int
    plain: Endpoint
    taken: int = 0
    given: int = 0
    failure: Failure | None = None
    unanswered: bytearray | None = attrs.field(default=None, repr=False)
    over: bool = False
    throttle: Throttle | None = None
    changed: Signal = attrs.field(factory=Signal)
    _held_up: set[trio.CancelScope] = attrs.field(init=False, factory=lambda: set())

    def fail(self, reason: AbortReason, text: str) -> None:
        """Note why it ends; the first reason counts."""
        if self.failure is None:
            self.failure = Failure(reason, text)
            for scope in self._held_up:
                scope.cancel(text)
        self.changed.notify()

    @property
    def is_limited(self) -> bool:
        """Whether its bandwidth is limited: then `slow_down` comes before every piece."""
        return self.throttle is not None and self.throttle.rate is not None

    def portion(self, room: memoryview) -> memoryview:
        """Return as much of the room as one read may fill."""
        return room if self.throttle is None else self.throttle.portion(room)

    def keep_unanswered(self, piece: memoryview) -> None:
        """Keep what was taken, as long as it is little."""
        if self.unanswered is not None:
            self.unanswered += piece
            if len(self.unanswered) > REPLAY_BYTES:
                self.unanswered = None

    async def slow_down(self, count: int) -> None:
        """Wait until so many bytes, which were read, may be relayed; a stream that has failed need not wait."""
        if self.throttle is None or self.failure is not None or self.throttle.take_nowait(count):
            return
        with trio.CancelScope() as scope:
            self._held_up.add(scope)
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
