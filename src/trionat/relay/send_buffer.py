"""What one side has sent of a stream and the other one has not acknowledged: enough to send it again over another tunnel."""

from __future__ import annotations

from typing import Final

import attrs

from trionat.transport.endpoint import TLS_RECORD_BYTES

_ACKS_PER_BUFFER: Final = 4
"""How often a receiver acknowledges while a buffer of the other side is filled once: the sender is to have room again before it needs it."""


@attrs.define(eq=False)
class SendMemory:
    """Bounds what all buffers of a session hold, and those of all sessions (`whole`). `limit` and `held` are bytes.

    Where it is used up, a stream goes on as its own bytes are acknowledged, a TLS record at a time; so the bound may be passed by one for
    each stream.
    """

    limit: int
    whole: SendMemory | None = None
    held: int = attrs.field(init=False, default=0)

    @property
    def is_used_up(self) -> bool:
        """Whether there is no more."""
        return self.held >= self.limit or (self.whole is not None and self.whole.is_used_up)

    def add(self, count: int) -> None:
        """So many bytes more, or less."""
        self.held += count
        if self.whole is not None:
            self.whole.held += count


@attrs.define(eq=False)
class SendBuffer:
    """Holds at most `size` bytes and one read. A position counts a stream's bytes from 0, and its END as one more.

    `start` is the position of the first byte that is held. Whoever is done with the stream calls `release`.
    """

    size: int
    memory: SendMemory
    start: int = attrs.field(init=False, default=0)
    _bytes: bytearray = attrs.field(init=False, repr=False, factory=bytearray)

    @property
    def ack_after(self) -> int:
        """How many bytes the other side acknowledges at once, at the latest."""
        return self.size // _ACKS_PER_BUFFER

    @property
    def is_full(self) -> bool:
        """Whether an acknowledgement has to come before more is sent."""
        held = len(self._bytes)
        return held >= self.size or (held > 0 and self.memory.is_used_up)

    @property
    def is_empty(self) -> bool:
        """Whether all bytes are acknowledged; the END may not be."""
        return not self._bytes

    def portion(self, room: memoryview) -> memoryview:
        """Return as much of the room as one read may fill."""
        return room[:TLS_RECORD_BYTES] if self.memory.is_used_up else room

    def keep(self, piece: memoryview) -> None:
        """Hold a copy of what is sent."""
        self._bytes += piece
        self.memory.add(len(piece))

    def acknowledge(self, position: int) -> None:
        """Let go of everything before a position; one that was acknowledged before changes nothing."""
        count = min(position - self.start, len(self._bytes))
        if count > 0:
            del self._bytes[:count]
            self.start += count
            self.memory.add(-count)

    def piece(self, position: int, most: int) -> bytes:
        """Return a copy of at most so many bytes from a position on, or from `start` if that is behind it; empty: there are no more."""
        at = max(0, position - self.start)
        return bytes(self._bytes[at : at + most])

    def release(self) -> None:
        """Let go of everything; nothing will be sent again. Idempotent."""
        self.memory.add(-len(self._bytes))
        self.start += len(self._bytes)
        self._bytes = bytearray()
