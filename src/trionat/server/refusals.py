"""Whom the server has refused, and by which bound: each is counted, and the log gets a line now and then.

There is no checkpoint in counting. A crowd costs a line a second for each bound and user, and none of it stays untold: what came after
such a line is in the next one, two seconds later at most.
"""

from __future__ import annotations

import enum
from collections import Counter
from typing import TYPE_CHECKING, Final

import attrs
import trio

if TYPE_CHECKING:
    from collections.abc import Callable

INTERVAL: Final = 1.0
"""Seconds between two log lines for the same bound and user."""


class Bound(enum.StrEnum):
    """What refuses, in the words of `trionat status`: a key of the configuration where there is one."""

    VISITORS = "MaxVisitors"
    WAITING_VISITORS = "MaxWaitingVisitors"
    WAIT = "VisitorWait"
    VISITORS_OF_ADDRESS = "MaxVisitorsPerAddress"
    RATE = "VisitorRate"
    LISTS = "lists"
    ACCOUNT_LISTS = "account_lists"
    ACCOUNT_VISITORS = "account_visitors"
    NO_CLIENT = "no_client"
    LEAVING = "leaving"
    HANDSHAKES = "MaxHandshakes"
    HANDSHAKES_OF_ADDRESS = "MaxHandshakesPerAddress"
    BAN = "BanAfter"
    PROXIES = "TrustedProxies"
    PROXY_HEADER = "proxy_header"
    CONNECTIONS = "connections"
    QUEUE = "MaxConnNum"
    DESCRIPTORS = "descriptors"


@attrs.define(eq=False)
class _Untold:
    """How many there were since the line that was due before `due`, and how the last one of them is told."""

    due: float
    tell: Callable[[int], None]
    count: int = 0


@attrs.define(eq=False)
class RefusalCounters:
    """`counts` has all since the start of the server."""

    counts: Counter[Bound] = attrs.field(init=False, factory=lambda: Counter())
    _untold: dict[tuple[Bound, str], _Untold] = attrs.field(init=False, factory=lambda: {})

    def count(self, bound: Bound, tell: Callable[[int], None], *, user: str = "") -> None:
        """Count one, and have `tell` log how many there were: at once, or with others in a while, or never if another comes."""
        self.counts[bound] += 1
        now = trio.current_time()
        untold = self._untold.get((bound, user))
        if untold is None:
            self._untold[bound, user] = _Untold(now + INTERVAL, tell)
            tell(1)
        else:
            untold.tell = tell
            untold.count += 1

    async def tell_regularly(self) -> None:
        """Tell what was not told, for ever; the rest when cancelled."""
        try:
            while True:
                await trio.sleep(INTERVAL)
                self._tell_due(trio.current_time())
        finally:
            self._tell_due(float("inf"))

    def _tell_due(self, now: float) -> None:
        for key, untold in list(self._untold.items()):
            if untold.due <= now:
                if untold.count:
                    untold.tell(untold.count)
                    untold.due, untold.count = now + INTERVAL, 0
                else:
                    del self._untold[key]
