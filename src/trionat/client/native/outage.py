"""An outage of the tunnels: they cannot be opened, or end at once, while the control connection is up."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import attrs
import trio

from trionat.client.reconnect import Backoff
from trionat.log import get_logger

if TYPE_CHECKING:
    from trionat.errors import PeerError

log = get_logger(__name__)

# Seconds without a reason before it is told again: tunnels of which every second one opens must not fill the log. Chosen.
_TOLD_AGAIN_AFTER: Final = 60.0

# Reasons that are remembered; the one heard longest ago makes room. They may have a server's own words in them.
_MOST_REASONS: Final = 16

# Seconds for which a dial that fails may have taken so that the first ones are no news: where a server is upgraded, the next round gets through.
_AT_ONCE: Final = 1.0


@attrs.define(eq=False)
class Outage:
    """How long to pause after tunnels that failed, and what is told of it: each reason once, the rest is counted.

    It lasts from the first failure until `worked` is called. Failures in one pause count as one, so 64 dials that fail together
    make the next pause no longer than one does.
    """

    paused_until: float = attrs.field(init=False, default=float("-inf"))
    _failures: int = attrs.field(init=False, default=0)
    _rounds: int = attrs.field(init=False, default=0)
    _backoff: Backoff = attrs.field(init=False, factory=Backoff)
    _told: bool = attrs.field(init=False, default=False)
    _heard_at: dict[str, float] = attrs.field(init=False, factory=lambda: {})

    @property
    def lasts(self) -> bool:
        """Whether no tunnel has worked since the last one that failed."""
        return self._failures > 0

    def failed(self, error: PeerError, *, tried_for: float, opened: bool) -> None:
        """Note that a tunnel failed after `tried_for` seconds; `opened`: it ended without a visitor as soon as it was open.

        The first one that does so is no news, as the server may be about to stop; nor is the first one that fails at once, as it may be about to be there again.
        """
        now = trio.current_time()
        self._failures += 1
        if now >= self.paused_until:
            self._rounds += 1
            self.paused_until = now + self._backoff.after(tried_for=tried_for, up_for=None)
        reason = str(error)
        if opened and self._rounds == 1:
            log.info("tunnel lost", reason=reason)
        elif self._rounds == 1 and tried_for < _AT_ONCE:
            log.debug("a tunnel could not be opened", reason=reason)
        elif not self._heard_lately(reason, now):
            self._told = True
            log.warning("no tunnel can be opened: visitors wait in vain", reason=reason)

    def _heard_lately(self, reason: str, now: float) -> bool:
        before = self._heard_at.pop(reason, float("-inf"))
        if len(self._heard_at) >= _MOST_REASONS:
            del self._heard_at[next(iter(self._heard_at))]
        self._heard_at[reason] = now
        return now - before < _TOLD_AGAIN_AFTER

    def worked(self) -> None:
        """A tunnel is open, and stays so. The outage is over."""
        if self._told:
            log.info("tunnels open again", failed=self._failures)
        self._told = False
        self._failures = self._rounds = 0
        self._backoff = Backoff()
        self.paused_until = float("-inf")
