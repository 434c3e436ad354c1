"""The log lines about connections that came to nothing: scanners make thousands, and each costs no more than a number."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final

import attrs
import trio

from trionat.log import get_logger
from trionat.networks import network_of
from trionat.server.refusals import Bound

if TYPE_CHECKING:
    from trionat.address import TCPAddress
    from trionat.server.refusals import RefusalCounters

log = get_logger(__name__)

_INTERVAL: Final = 60.0

# Lines within the interval, for one network (`network_of`) and in all. Chosen: enough for an office that does not get in.
_LINES_OF_NETWORK: Final = 60
_LINES: Final = 240


@attrs.define(eq=False)
class ConnectionLog:
    """Tells of each while there are few; of those that are too many, how many there were, in a line a second at most."""

    refusals: RefusalCounters
    _lines: Counter[str] = attrs.field(init=False, factory=lambda: Counter())
    _until: float = attrs.field(init=False, default=float("-inf"))

    def closed(self, address: TCPAddress, reason: str) -> None:
        """A connection from there has ended, and its peer is to blame."""
        if (now := trio.current_time()) >= self._until:
            self._until = now + _INTERVAL
            self._lines.clear()
        network = network_of(address.host)
        if self._lines[network] < _LINES_OF_NETWORK and self._lines.total() < _LINES:
            self._lines[network] += 1
            log.info("connection closed", reason=reason, address=str(address))
        else:
            self.refusals.count(
                Bound.CONNECTIONS,
                lambda count: log.info(
                    "connections closed", count=count, reason=reason, address=str(address)
                ),
            )
