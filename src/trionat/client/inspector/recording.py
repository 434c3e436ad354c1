"""One visitor as the client saw it: what both directions carried, when, and how it ended."""

from __future__ import annotations

from array import array
from bisect import bisect_right
from time import perf_counter
from typing import TYPE_CHECKING, Final

import attrs

if TYPE_CHECKING:
    from trionat.address import TCPAddress

SAME_PIECE: Final = 0.001
"""Seconds within which bytes of one direction have one time stamp: who writes byte by byte does not get one for each."""

MOST_PIECES: Final = 16 * 1024
"""Time stamps of a direction; what comes after them belongs to the last piece. They take a quarter of a MiB."""

PIECE_BYTES: Final = 16
"""What a time stamp takes: a position and a time."""


@attrs.define(eq=False)
class Track:
    """One direction. `count` bytes have passed, of which `data` has the first, at most `limit`. `is_full`: what comes now need only be counted.

    The bytes came in pieces: each begins at a position of `starts`, and came at the time of `times` (of `perf_counter`). `ended` is when the direction ended.
    """

    limit: int
    count: int = 0
    data: bytearray = attrs.field(init=False, factory=bytearray)
    starts: array[int] = attrs.field(init=False, factory=lambda: array("Q"))
    times: array[float] = attrs.field(init=False, factory=lambda: array("d"))
    first: float | None = attrs.field(init=False, default=None)
    ended: float | None = attrs.field(init=False, default=None)
    is_full: bool = attrs.field(init=False, default=False)

    @property
    def is_whole(self) -> bool:
        """Whether `data` has all that has passed so far."""
        return self.count == len(self.data)

    def add(self, piece: memoryview, now: float, *, apart: bool) -> int:
        """Take note of bytes; return how much memory that takes. `apart`: the other direction has had its turn since."""
        size = len(piece)
        self.count += size
        if self.first is None:
            self.first = now
        data = self.data
        room = self.limit - len(data)
        if room <= 0:
            self.is_full = True
            return 0
        taken = 0
        if (apart or not self.times or now - self.times[-1] >= SAME_PIECE) and len(
            self.times
        ) < MOST_PIECES:
            self.starts.append(len(data))
            self.times.append(now)
            taken = PIECE_BYTES
        if size > room:
            piece = piece[:room]
            size = room
        data += piece
        return taken + size

    def time_of(self, position: int) -> float | None:
        """Return when the byte at that position came; None: it is not there."""
        if not 0 <= position < len(self.data):
            return None
        return self.times[bisect_right(self.starts, position) - 1]

    @property
    def held(self) -> int:
        """Bytes of memory."""
        return len(self.data) + PIECE_BYTES * len(self.times)

    def drop(self) -> None:
        """Let go of the bytes, and keep none from now on."""
        self.limit = 0
        self.data = bytearray()
        self.starts = array("Q")
        self.times = array("d")


@attrs.define(eq=False, kw_only=True)
class Recording:
    """One visitor, or a replay of what one has sent.

    `received` is what the service got, `sent` what it said, as the log has it. `visitor` and `visited` are None where the server does not tell. `began` and `ended` are times of `perf_counter`,
    `began_at` is the time of day in seconds. `why` is empty until it has ended. `is_dropped` says that its bytes have made room for others'.
    """

    number: int
    service: int
    name: str
    local: str
    visitor: TCPAddress | None
    visited: TCPAddress | None
    began_at: float
    limit: int
    replay_of: int | None = None
    began: float = attrs.field(factory=perf_counter)
    ended: float | None = attrs.field(init=False, default=None)
    why: str = attrs.field(init=False, default="")
    is_dropped: bool = attrs.field(init=False, default=False)
    rate: float = attrs.field(init=False, default=0.0)
    received: Track = attrs.field(init=False)
    sent: Track = attrs.field(init=False)
    _last: Track | None = attrs.field(init=False, default=None)

    def __attrs_post_init__(self) -> None:
        self.received = Track(self.limit)
        self.sent = Track(self.limit)

    def add(self, track: Track, piece: memoryview) -> int:
        """Take note of bytes of one direction; return how much memory that takes."""
        apart, self._last = track is not self._last, track
        return track.add(piece, perf_counter(), apart=apart)

    @property
    def count(self) -> int:
        """Bytes that have passed, both directions."""
        return self.received.count + self.sent.count

    @property
    def held(self) -> int:
        """Bytes of memory."""
        return self.received.held + self.sent.held

    @property
    def first_byte(self) -> float | None:
        """Seconds until the service had said something."""
        return None if self.sent.first is None else self.sent.first - self.began

    def end(self, why: str) -> None:
        """It is over; of several reasons the last one counts."""
        if self.ended is None:
            self.ended = perf_counter()
            self.rate = 0.0
        self.why = why

    def drop(self) -> int:
        """Let go of the bytes; return how much memory that was."""
        freed = self.held
        self.is_dropped = self.is_dropped or freed > 0
        self.received.drop()
        self.sent.drop()
        return freed

    def pieces(self) -> list[tuple[str, int, int, float]]:
        """Return what is kept, in the order in which it came: the direction, from where to where, and the seconds since it began."""
        found: list[tuple[str, int, int, float]] = []
        for direction, track in (("received", self.received), ("sent", self.sent)):
            ends = (*track.starts[1:], len(track.data))
            # Without bytes there is one end more than there are starts.
            found += [
                (direction, start, end, time - self.began)
                for start, end, time in zip(track.starts, ends, track.times, strict=False)
            ]
        return sorted(found, key=lambda piece: piece[3])
