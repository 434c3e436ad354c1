"""What a peer can cause as often as it likes, and the log is to have now and then."""

from __future__ import annotations

from typing import Final

import attrs
import trio

INTERVAL: Final = 1.0
"""Seconds between two records for the same reason."""


@attrs.define(eq=False)
class Seldom:
    """Counts what happens for each reason, and says when to tell; reasons are a few constant words. Call it on the Trio thread."""

    _counts: dict[str, int] = attrs.field(init=False, factory=lambda: {})
    _due: dict[str, float] = attrs.field(init=False, factory=lambda: {})

    def count(self, reason: str) -> int:
        """Note one more; return how many there were since the last record if it is time for one, else 0."""
        self._counts[reason] = self._counts.get(reason, 0) + 1
        now = trio.current_time()
        if now < self._due.get(reason, float("-inf")):
            return 0
        self._due[reason] = now + INTERVAL
        return self._counts.pop(reason)
