"""How often one account may be written of in the audit: the rest is counted, so that nobody can push out what others have done."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final

import attrs

if TYPE_CHECKING:
    from trionat.server.events.audit import Actor

AT_ONCE: Final = 30
INTERVAL: Final = 60.0
"""How many entries there may be at once, and seconds until there may be one more. Chosen: by hand nobody gets there, and one account takes some months to fill the audit."""


@attrs.define(eq=False)
class Allowance:
    """That of one account: `actor` is who used it last, and `left_out` has the numbers of what was not written, by action."""

    actor: Actor
    since: float
    entries: float = AT_ONCE
    left_out: Counter[str] = attrs.field(factory=lambda: Counter[str]())

    def take(self, now: float) -> bool:
        """Take one entry; False where there is none."""
        self.entries = min(AT_ONCE, self.entries + (now - self.since) / INTERVAL)
        self.since = now
        if self.entries < 1:
            return False
        self.entries -= 1
        return True

    def is_whole(self, now: float) -> bool:
        """Tell whether it is as one that was never used."""
        return not self.left_out and self.entries + (now - self.since) / INTERVAL >= AT_ONCE
