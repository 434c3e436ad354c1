"""The bandwidth limit of a user: a token bucket, shared by all of its streams in both directions.

A piece that a stream has read is relayed as soon as the rate has made up for all that were relayed before it. Streams take turns: each has at
most one piece that waits in each direction, and one that has just begun stands behind the others, so many short streams
get no more than a few long ones. Only what is relayed is charged: a stream that ends while it waits owes nothing.
"""

from __future__ import annotations

from typing import Final

import attrs
import trio

from trionat.signals import Signal
from trionat.transport.endpoint import TLS_RECORD_BYTES

# Seconds of the rate that one read may take, and that an idle user has in store: so that a page loads at once.
_PORTION: Final = 0.02
_CREDIT: Final = 0.25

# Shorter waits, in seconds, are put off until they have added up: timers are not that exact.
_GRAIN: Final = 0.01


@attrs.define(eq=False)
class Throttle:
    """One user's bucket. The debt is never more than the one piece that was relayed last.

    `rate` is in bytes per second; without one nothing is held up. A new one counts at once for those who wait, and a rate that is
    set where there was none begins without debt.
    """

    _rate: int | None = None
    _tokens: float = attrs.field(init=False, default=0.0)
    _refilled_at: float = attrs.field(init=False, default=0.0)  # long ago
    _waiting: dict[Signal, None] = attrs.field(init=False, factory=lambda: {})

    @property
    def rate(self) -> int | None:
        """See the class."""
        return self._rate

    @rate.setter
    def rate(self, rate: int | None) -> None:
        if self._rate is not None and rate is not None:
            self._refill(self._rate)
            # At the old rate a larger piece was allowed than the new one can make up for soon.
            self._tokens = max(self._tokens, -TLS_RECORD_BYTES)
        else:
            self._tokens, self._refilled_at = 0.0, 0.0
        self._rate = rate
        self._wake_next()

    def portion(self, room: memoryview) -> memoryview:
        """Return as much of the room as one read may fill; never less than a TLS record."""
        if self._rate is None:
            return room
        return room[: max(TLS_RECORD_BYTES, int(self._rate * _PORTION))]

    def take_nowait(self, count: int) -> bool:
        """Charge so many bytes, which may be relayed now; False, and nothing is charged, where they have to wait."""
        if self._rate is not None and (self._waiting or self._delay(self._rate) > 0):
            return False
        self._tokens -= count
        return True

    async def take(self, count: int) -> None:
        """Wait until so many bytes may be relayed, and charge them. Cancelled, nothing is charged."""
        turn = Signal()
        self._waiting[turn] = None
        try:
            while self._rate is not None:
                delay = self._delay(self._rate)
                if next(iter(self._waiting)) is not turn:
                    await turn.wait()
                elif delay > 0:
                    with trio.move_on_after(delay):
                        await turn.wait()
                else:
                    self._tokens -= count
                    break
        finally:
            del self._waiting[turn]
            self._wake_next()

    def _delay(self, rate: int) -> float:
        """Return in how many seconds the next piece may be relayed."""
        self._refill(rate)
        delay = -self._tokens / rate
        return delay if delay > _GRAIN else 0.0

    def _refill(self, rate: int) -> None:
        now = trio.current_time()
        self._tokens = min(self._tokens + (now - self._refilled_at) * rate, rate * _CREDIT)
        self._refilled_at = now

    def _wake_next(self) -> None:
        if self._waiting:
            next(iter(self._waiting)).notify()
