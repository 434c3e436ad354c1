"""How often something may be written of, such as what one account does: the rest is counted, so that nobody can push out what others have done."""

from __future__ import annotations

from collections import Counter

import attrs


@attrs.define(eq=False, kw_only=True)
class Allowance:
    """There may be `at_once` entries at once, and one more each `interval` seconds. `left_out` has the numbers of what was not written, by type, since the moment `began`."""

    at_once: int
    interval: float
    since: float
    began: float = attrs.field(init=False, default=0.0)
    left_out: Counter[str] = attrs.field(init=False, factory=lambda: Counter[str]())
    _entries: float = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self._entries = self.at_once

    def take(self, now: float, count: int = 1) -> bool:
        """Take some entries; False where there are not so many."""
        self._entries = min(self.at_once, self._entries + (now - self.since) / self.interval)
        self.since = now
        if self._entries < count:
            return False
        self._entries -= count
        return True

    def leave_out(self, what: str, now: float) -> None:
        """Something is not written."""
        if not self.left_out:
            self.began = now
        self.left_out[what] += 1

    def is_whole(self, now: float) -> bool:
        """Tell whether it is as one that was never used."""
        return (
            not self.left_out and self._entries + (now - self.since) / self.interval >= self.at_once
        )
