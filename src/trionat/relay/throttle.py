"""The throttle on a user's streams: bytes per second, over all of its sessions and both directions.

There is one book for all of them. Every piece that a stream has read is put on it, and is relayed when the rate has made up for
all that stand before it. So each stream has at most one piece that waits in each direction, they take turns, and one that has
just begun stands behind the others: many short ones get no more than a few long ones.
"""

from __future__ import annotations

from typing import Final

import attrs
import trio

from trionat.transport.endpoint import TLS_RECORD_BYTES

# Seconds of the rate that one read may take, and that an idle user has in store: so that a page loads at once.
_PORTION: Final = 0.02
_CREDIT: Final = 0.25

# Shorter waits, in seconds, are put off until they have added up: timers are not that exact.
_GRAIN: Final = 0.01


@attrs.define(eq=False)
class Throttle:
    """One user's. `rate` is in bytes per second, and may be changed at any time; without one nothing is held up."""

    rate: int | None = None
    _charged: int = attrs.field(init=False, default=0)
    _paid: float = attrs.field(init=False, default=0.0)
    _paid_at: float = attrs.field(init=False, default=0.0)

    def portion(self, room: memoryview) -> memoryview:
        """Return as much of the room as one read may fill; never less than a TLS record."""
        if self.rate is None:
            return room
        return room[: max(TLS_RECORD_BYTES, int(self.rate * _PORTION))]

    def charge(self, count: int) -> int:
        """Put so many bytes on the book; return how many stand before them."""
        before = self._charged
        if self.rate is not None:
            self._pay(self.rate)
            self._charged += count
        return before

    def delay(self, before: int) -> float:
        """Return in how many seconds the rate will have made up for all that stand before that place, as it looks now."""
        if self.rate is None:
            return 0.0
        self._pay(self.rate)
        delay = (before - self._paid) / self.rate
        return delay if delay > _GRAIN else 0.0

    def _pay(self, rate: int) -> None:
        now = trio.current_time()
        earned = (now - self._paid_at) * rate
        self._paid = min(self._paid + earned, self._charged + rate * _CREDIT)
        self._paid_at = now
