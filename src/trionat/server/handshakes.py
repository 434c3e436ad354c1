"""Connections that have not said yet who they are: how many there may be at once, in all and of one address."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

from trionat.log import get_logger
from trionat.networks import network_of
from trionat.server.refusals import Bound, RefusalCounters
from trionat.server.tally import DONE, FAILED

if TYPE_CHECKING:
    from collections.abc import Callable

    import trio

    from trionat.server.tally import Tally

log = get_logger(__name__)


def _nowhere(_: str) -> bool:
    return False


@attrs.define(eq=False)
class PendingHandshakes:
    """At most `limit`, and of each network (`network_of`) at most `network_limit`; the oldest has to make room.

    So a crowd of silent peers cannot keep those out who have something to say, and one address not even those who take long.

    Half of `limit` is for networks from which somebody has a session, or had one lately (`is_in_use`, of a host), and half for all
    others; what one half leaves free the other may use, until it is wanted. So whoever comes from many addresses cannot end the
    handshakes of clients that were here before, nor can those keep new clients out.

    With a `tally` they are counted there.
    """

    limit: int
    network_limit: int
    refusals: RefusalCounters = attrs.field(factory=RefusalCounters)
    is_in_use: Callable[[str], bool] = _nowhere
    tally: Tally | None = None
    _networks: dict[trio.CancelScope, str] = attrs.field(init=False, factory=lambda: {})
    _scopes: dict[str, dict[trio.CancelScope, None]] = attrs.field(init=False, factory=lambda: {})
    _in_use: dict[trio.CancelScope, None] = attrs.field(init=False, factory=lambda: {})
    _others: dict[trio.CancelScope, None] = attrs.field(init=False, factory=lambda: {})

    def __len__(self) -> int:
        """How many there are."""
        return len(self._networks)

    def take_limits(self, limit: int, network_limit: int) -> None:
        """These count from now on: where there are more, each that comes sends one away."""
        self.limit, self.network_limit = limit, network_limit

    def add(self, scope: trio.CancelScope, host: str) -> None:
        """A new connection from `host` is served in `scope`, which is cancelled when it has to make room."""
        network = network_of(host)
        half = self._in_use if self.is_in_use(host) else self._others
        if len(self._scopes.get(network, ())) >= self.network_limit:
            oldest = next(iter(self._scopes[network]))
            self._send_away(oldest, Bound.HANDSHAKES_OF_ADDRESS, self.network_limit)
        elif len(self._networks) >= self.limit:
            self._send_away(self._oldest(half), Bound.HANDSHAKES, self.limit)
        self._networks[scope] = network
        self._scopes.setdefault(network, {})[scope] = None
        half[scope] = None
        if self.tally is not None:
            self.tally.pending_handshakes += 1

    def finish(self, scope: trio.CancelScope) -> None:
        """The peer in this scope has said who it is. Idempotent, as the next two: what comes after the first of them does nothing."""
        self._end(scope, DONE)

    def fail(self, scope: trio.CancelScope) -> None:
        """The peer in this scope is gone, or was sent away, before it has said who it is."""
        self._end(scope, FAILED)

    def remove(self, scope: trio.CancelScope) -> None:
        """The peer in this scope is another process's to hear, or it is not counted how that ended."""
        self._end(scope, None)

    def _end(self, scope: trio.CancelScope, result: str | None) -> None:
        network = self._networks.pop(scope, None)
        if network is None:
            return
        self._in_use.pop(scope, None)
        self._others.pop(scope, None)
        del self._scopes[network][scope]
        if not self._scopes[network]:
            del self._scopes[network]
        if self.tally is not None:
            self.tally.pending_handshakes -= 1
            if result is not None:
                self.tally.handshakes[result] += 1

    def _oldest(self, wanted: dict[trio.CancelScope, None]) -> trio.CancelScope:
        """Return which one makes room for another in the half `wanted`: the oldest of the half that would have more than its share."""
        others = len(self._others) + (wanted is self._others)
        crowded = self._others if others > self.limit // 2 else self._in_use
        return next(iter(crowded or self._networks))

    def _send_away(self, scope: trio.CancelScope, bound: Bound, limit: int) -> None:
        network = self._networks[scope]
        self.fail(scope)
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
