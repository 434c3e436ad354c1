"""Whether a local service can be reached, as the last try has shown, and when that is told."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import attrs
import trio

from trionat.events import ServiceDown, ServiceUp
from trionat.log import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable

    from trionat.config.service import Service
    from trionat.events import ClientEvent

log = get_logger(__name__)

# Seconds before a service that was up again may be told as down another time: one that serves every second visitor must not
# fill the log. Chosen.
_TOLD_AGAIN_AFTER: Final = 10.0

# Seconds between two lines about visitors that one service did not serve; those in between are counted. Chosen.
_REFUSED_INTERVAL: Final = 60.0


@attrs.define(eq=False)
class ServiceHealth:
    """What the last tries of one service have shown. `tried` tells whether there was any, `is_down` what came of the last.

    `on_change` is called whenever `is_down` has changed; to people it is told once each.
    """

    service: Service
    tell: Callable[[ClientEvent], None]
    on_change: Callable[[], None] = lambda: None
    is_down: bool = attrs.field(init=False, default=False)
    tried: bool = attrs.field(init=False, default=False)
    _told_down: bool = attrs.field(init=False, default=False)
    _quiet_until: float = attrs.field(init=False, default=float("-inf"))
    _refused_told_at: float = attrs.field(init=False, default=float("-inf"))
    _refused: int = attrs.field(init=False, default=0)

    def worked(self) -> None:
        """Somebody listens there."""
        self.tried = True
        if self.is_down:
            self.is_down = False
            self.on_change()
        if self._told_down:
            self._told_down = False
            log.info(
                "the local service is back",
                service=str(self.service.local),
                refused=self._refused or None,
            )
            self._refused = 0
            self._refused_told_at = float("-inf")
            self.tell(ServiceUp(name=self.service.name, local=self.service.local))

    def failed(self, reason: str) -> None:
        """Nobody listens there, or does not answer."""
        self.tried = True
        if not self.is_down:
            self.is_down = True
            self.on_change()
        now = trio.current_time()
        if self._told_down or now < self._quiet_until:
            return
        self._told_down = True
        self._quiet_until = now + _TOLD_AGAIN_AFTER
        log.warning(
            "the local service is down; visitors are refused until it is back",
            service=str(self.service.local),
            reason=reason,
        )
        self.tell(ServiceDown(name=self.service.name, local=self.service.local, reason=reason))

    def refused(self, **visitor: object) -> None:
        """A visitor was not served: log it at once, or count it where one was logged a moment ago."""
        self._refused += 1
        now = trio.current_time()
        if now - self._refused_told_at >= _REFUSED_INTERVAL:
            refused = self._refused if self._refused > 1 else None
            log.warning("visitor refused", **visitor, refused=refused)
            self._refused, self._refused_told_at = 0, now
        else:
            log.debug("visitor refused", **visitor)
