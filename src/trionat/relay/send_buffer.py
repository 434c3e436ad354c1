"""What one side has sent of a stream and the other one has not acknowledged: enough to send it again over another tunnel."""

from __future__ import annotations

from typing import Final

import attrs

from trionat.transport.scratch import HEADROOM_BYTES, SCRATCH_BYTES, scratch

_ACKS_PER_BUFFER: Final = 4
"""How often a receiver acknowledges while a buffer of the other side is filled once: the sender is to have room again before it needs it."""

_JOINED_BYTES: Final = 16 * 1024
"""Up to which size small pieces are held together, since each has a price of its own."""

_WHOLE_BYTES: Final = SCRATCH_BYTES * 3 // 4
"""From which size on a read is not copied, so that at most a quarter of the memory is wasted."""


@attrs.define(eq=False)
class SendMemory:
    """Bounds what all buffers of a session hold, and those of all sessions (`whole`).

    `limit` and `held` are bytes of memory: a piece counts as a whole until all of it is acknowledged. The stream that uses it up goes on at full speed, and can no longer be resumed: to wait for memory would let slow visitors stop others.
    """

    limit: int
    whole: SendMemory | None = None
    held: int = attrs.field(init=False, default=0)

    @property
    def is_used_up(self) -> bool:
        """Whether there is no more."""
        return not self.has_room(0)

    def has_room(self, count: int) -> bool:
        """Whether it would not be used up by so many bytes more."""
        return self.held + count < self.limit and (self.whole is None or self.whole.has_room(count))

    def add(self, count: int) -> None:
        """So many bytes more, or less."""
        self.held += count
        if self.whole is not None:
            self.whole.held += count


@attrs.define(eq=False)
class SendBuffer:
    """Holds at most `size` bytes and one read, or nothing any more, where memory is `used_up`: then the stream cannot be resumed.

    A position counts a stream's bytes from 0, and its END as one more.

    `start` is the position of the first byte that is held, `held` how many there are. Whoever is done with the stream calls `release`.
    """

    size: int
    memory: SendMemory
    ack_after: int = attrs.field(init=False)
    used_up: bool = attrs.field(init=False, default=False)
    start: int = attrs.field(init=False, default=0)
    held: int = attrs.field(init=False, default=0)
    # As they were read, so that none is copied twice; small ones are joined. The first begins with bytes that are not held any more.
    # Views are parts of buffers that were read into.
    _chunks: list[bytearray | memoryview] = attrs.field(init=False, repr=False, factory=lambda: [])
    _passed: int = attrs.field(init=False, default=0)

    def __attrs_post_init__(self) -> None:
        self.ack_after = (
            self.size // _ACKS_PER_BUFFER
        )  # bytes that the other side acknowledges at once, at the latest

    @property
    def is_full(self) -> bool:
        """Whether an acknowledgement has to come before more is sent."""
        return self.held >= self.size

    def keep_read(self, count: int) -> None:
        """Hold so many bytes, which were read into `scratch().keepable()` behind its headroom: that buffer itself where they about fill it."""
        if count < _WHOLE_BYTES:
            self.keep(scratch().keepable()[HEADROOM_BYTES : HEADROOM_BYTES + count])
        elif not self.used_up:
            kept = scratch().keep()
            self._chunks.append(kept[HEADROOM_BYTES : HEADROOM_BYTES + count])
            self._count(count, len(kept))

    def keep(self, piece: memoryview) -> None:
        """Hold a copy of what is sent."""
        if self.used_up:
            return
        count, chunks = len(piece), self._chunks
        last = chunks[-1] if chunks else None
        if isinstance(last, bytearray) and len(last) + count <= _JOINED_BYTES:
            last += piece
        else:
            chunks.append(bytearray(piece))
        self._count(count, count)

    def _count(self, count: int, memory: int) -> None:
        self.held += count
        self.memory.add(memory)
        if self.memory.is_used_up:
            self.used_up = True
            self.release()

    def acknowledge(self, position: int) -> None:
        """Let go of everything before a position; one that was acknowledged before changes nothing."""
        count = min(position - self.start, self.held)
        if count > 0:
            self.start += count
            self.held -= count
            self._passed += count
            while self._chunks and self._passed >= len(self._chunks[0]):
                chunk = self._chunks.pop(0)
                self._passed -= len(chunk)
                if isinstance(chunk, memoryview):
                    chunk = memoryview(chunk.obj)
                    scratch().take_back(chunk)
                self.memory.add(-len(chunk))

    def piece(self, position: int, most: int) -> bytes:
        """Return a copy of at most so many bytes from a position on, or from `start` if that is behind it; empty: there are no more."""
        at = self._passed + max(0, position - self.start)
        for chunk in self._chunks:
            if at < len(chunk):
                return bytes(memoryview(chunk)[at : at + most])
            at -= len(chunk)
        return b""

    def release(self) -> None:
        """Let go of everything; nothing will be sent again. Idempotent."""
        self.acknowledge(self.start + self.held)
