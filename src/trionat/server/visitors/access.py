"""Who may visit: lists of addresses, visitors of one address at once, and their rate."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final

import attrs
import trio

from trionat.networks import Admittance, Networks, network_of
from trionat.server.refusals import Bound
from trionat.text import counted

if TYPE_CHECKING:
    from collections.abc import Callable

    from trionat.config.server import ServerConfig
    from trionat.server.accounts.limits import UserLimits

# Networks whose rate is remembered, those that visited last; some 3 MiB. One that is forgotten begins anew.
_MOST_NETWORKS: Final = 16_384


@attrs.define(eq=False)
class _Bucket:
    """How many visitors may come, as of the moment `at`."""

    tokens: float
    at: float


@attrs.define(eq=False)
class AccessPolicy:
    """Counts visitors that are there, and how fast they come, for each IPv4 address and each IPv6 /64 (`network_of`)."""

    config: ServerConfig
    _admittance: Admittance = attrs.field(init=False)
    _present: dict[str, int] = attrs.field(init=False, factory=lambda: {})
    _buckets: dict[str, _Bucket] = attrs.field(init=False, factory=lambda: {})

    def __attrs_post_init__(self) -> None:
        self.take_config(self.config)

    def take_config(self, config: ServerConfig) -> None:
        """This one counts from now on; who is here stays, and counts."""
        self.config = config
        self._admittance = Admittance(
            Networks(config.allow_visitors), Networks(config.deny_visitors)
        )

    def refusal(self, host: str, user_limits: UserLimits | None = None) -> tuple[Bound, str] | None:
        """Return why a visitor from this address may not come in, or None where it may; that takes one of its rate.

        `user_limits` are those of the user whose port it visits, if a lease holds that.
        """
        if (refusal := self.list_refusal(host, user_limits)) is not None:
            return refusal
        network = network_of(host)
        most = self.config.max_visitors_per_address
        if most and self._present.get(network, 0) >= most:
            return (
                Bound.VISITORS_OF_ADDRESS,
                f"{most} visitors from its address are here already (MaxVisitorsPerAddress)",
            )
        if self.config.visitor_rate and not self._take_token(network, self.config.visitor_rate):
            return (
                Bound.RATE,
                f"more than {counted(self.config.visitor_rate, 'visitor')} a second from its address (VisitorRate)",
            )
        return None

    def list_refusal(self, host: str, user_limits: UserLimits | None) -> tuple[Bound, str] | None:
        """The same by the lists alone: for a visitor that counts as present already."""
        if not self._admittance.includes(host):
            return Bound.LISTS, "its address may not visit (AllowVisitors, DenyVisitors)"
        if user_limits is not None and not user_limits.admittance.includes(host):
            return (
                Bound.ACCOUNT_LISTS,
                "its address may not visit this user (limits of the account)",
            )
        return None

    def _take_token(self, network: str, rate: int) -> bool:
        """Tell whether the bucket of this network, which a second fills, still has something in it, and take it."""
        now = trio.current_time()
        bucket = self._buckets.pop(network, None) or _Bucket(rate, now)
        if len(self._buckets) >= _MOST_NETWORKS:
            del self._buckets[next(iter(self._buckets))]
        self._buckets[network] = bucket
        bucket.tokens = min(rate, bucket.tokens + (now - bucket.at) * rate)
        bucket.at = now
        if bucket.tokens < 1:
            return False
        bucket.tokens -= 1
        return True

    def enter(self, host: str) -> Callable[[], None]:
        """Count a visitor from this address as present; returns what is to be called, once, when it has left."""
        network = network_of(host)
        self._present[network] = self._present.get(network, 0) + 1
        return partial(self._leave, network)

    def _leave(self, network: str) -> None:
        self._present[network] -= 1
        if not self._present[network]:
            del self._present[network]
