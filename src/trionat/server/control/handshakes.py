"""Connections that have not said yet who they are: how many there may be at once, in all and of one address."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

from trionat.log import get_logger
from trionat.networks import network_of
from trionat.server.refusals import Bound, RefusalCounters

if TYPE_CHECKING:
    import trio

log = get_logger(__name__)


@attrs.define(eq=False)
class PendingHandshakes:
    """At most `limit`, and of each network (`network_of`) at most `network_limit`; the oldest has to make room.

    So a crowd of silent peers cannot keep those out who have something to say, and one address not even those who take long.
    """

    limit: int
    network_limit: int
    refusals: RefusalCounters = attrs.field(factory=RefusalCounters)
    _networks: dict[trio.CancelScope, str] = attrs.field(init=False, factory=lambda: {})
    _scopes: dict[str, dict[trio.CancelScope, None]] = attrs.field(init=False, factory=lambda: {})

    def add(self, scope: trio.CancelScope, host: str) -> None:
        """A new connection from `host` is served in `scope`, which is cancelled when it has to make room."""
        network = network_of(host)
        if len(self._scopes.get(network, ())) >= self.network_limit:
            oldest = next(iter(self._scopes[network]))
            self._send_away(oldest, Bound.HANDSHAKES_OF_ADDRESS, self.network_limit)
        elif len(self._networks) >= self.limit:
            self._send_away(next(iter(self._networks)), Bound.HANDSHAKES, self.limit)
        self._networks[scope] = network
        self._scopes.setdefault(network, {})[scope] = None

    def remove(self, scope: trio.CancelScope) -> None:
        """The peer in this scope has said who it is, or is gone. Idempotent."""
        network = self._networks.pop(scope, None)
        if network is not None:
            del self._scopes[network][scope]
            if not self._scopes[network]:
                del self._scopes[network]

    def _send_away(self, scope: trio.CancelScope, bound: Bound, limit: int) -> None:
        network = self._networks[scope]
        self.remove(scope)
        scope.cancel("too many handshakes")
        self.refusals.count(
            bound,
            lambda count: log.warning(
                "too many connections that have not said who they are: closing the oldest",
                network=network,
                closed=count,
                key=bound.value,
                limit=limit,
            ),
        )
