"""What is known of the requests to one name: how many, with which statuses, and how long they took."""

from __future__ import annotations

from collections import Counter, deque
from typing import Final

import attrs
import trio

RATE_OVER: Final = 60
"""Seconds over which requests are counted for their rate."""

_LEAST: Final = 0.001
_STEP: Final = 1.5
_BUCKETS: Final = 40
"""Times from a millisecond to three hours, each bucket half as long again as the one before: a quantile is right to 20 %."""


@attrs.frozen(kw_only=True)
class RequestFigures:
    """As of now. `rate` is in requests a second, `statuses` has the requests by their first digit, such as `2xx`; `median` and `slow` (95 of 100 were faster) are in seconds, None before the first."""

    total: int = 0
    rate: float = 0.0
    statuses: dict[str, int] = attrs.field(factory=dict[str, int])
    median: float | None = None
    slow: float | None = None


@attrs.define(eq=False)
class RequestCounter:
    """Counts; each request costs the same, and memory is bounded."""

    _since: float = attrs.field(init=False, factory=trio.current_time)
    _statuses: Counter[str] = attrs.field(init=False, factory=lambda: Counter())
    _times: list[int] = attrs.field(init=False, factory=lambda: [0] * _BUCKETS)
    _seconds: deque[tuple[int, int]] = attrs.field(init=False, factory=lambda: deque())

    def count(self, status: int, seconds: float) -> None:
        """A request has got its answer, after so many seconds."""
        self._statuses[f"{status // 100}xx"] += 1
        bucket, border = 0, _LEAST
        while seconds > border and bucket < _BUCKETS - 1:
            bucket, border = bucket + 1, border * _STEP
        self._times[bucket] += 1
        second = int(trio.current_time())
        if self._seconds and self._seconds[-1][0] == second:
            self._seconds[-1] = second, self._seconds[-1][1] + 1
        else:
            self._seconds.append((second, 1))
            self._forget(second)

    def _forget(self, second: int) -> None:
        while self._seconds and self._seconds[0][0] <= second - RATE_OVER:
            self._seconds.popleft()

    @property
    def figures(self) -> RequestFigures:
        """All of it, as of now."""
        now = trio.current_time()
        self._forget(int(now))
        recent = sum(count for _, count in self._seconds)
        return RequestFigures(
            total=self._statuses.total(),
            rate=round(recent / max(1.0, min(RATE_OVER, now - self._since)), 2),
            statuses=dict(sorted(self._statuses.items())),
            median=self._quantile(0.5),
            slow=self._quantile(0.95),
        )

    def _quantile(self, part: float) -> float | None:
        total = sum(self._times)
        if not total:
            return None
        seen = 0
        border = _LEAST
        for count in self._times:
            seen += count
            if seen >= part * total:
                break
            border *= _STEP
        return round(border, 4)
