"""How often each account may change something: who has a password, or a token, is not to push out the audit and the events, nor to flood webhooks."""

from __future__ import annotations

from typing import Final

import attrs
import trio

_BURST: Final = 60
_INTERVAL: Final = 10.0
"""Changes at once, and seconds until there is one more. Chosen: no person comes near it, and 10,000 events are kept of a day at least, whatever one account does."""

_MOST: Final = 10_000


@attrs.define(eq=False)
class ChangeRate:
    """Counts the changes of accounts; those of administrators are not brought here."""

    _full: dict[int, float] = attrs.field(init=False, factory=lambda: {})
    """By account: when it may make all of its burst again."""

    def take(self, account_id: int) -> float:
        """Count a change, and return 0; or count none, and return in how many seconds there may be one."""
        now = trio.current_time()
        full = max(now, self._full.pop(account_id, now))
        wait = full + _INTERVAL - now - _BURST * _INTERVAL
        if wait <= 0:
            full += _INTERVAL
        if len(self._full) >= _MOST:
            del self._full[next(iter(self._full))]
        self._full[account_id] = full
        return max(0.0, wait)
