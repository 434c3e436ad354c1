"""What the sessions of one user share: its limits, and how much of them is in use."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

from trionat.networks import Admittance, Networks, parse_network
from trionat.relay.throttle import Throttle

if TYPE_CHECKING:
    from trionat.store.base import Limits


@attrs.frozen(kw_only=True)
class Share:
    """What one process may give a user of its limits: visitors at once, and bytes per second. None: no limit."""

    visitors: int | None
    bandwidth: int | None

    @classmethod
    def whole(cls, limits: Limits) -> Share:
        """Return all of it."""
        return cls(visitors=limits.visitors, bandwidth=limits.bandwidth)


@attrs.define(eq=False)
class UserLimits:
    """One user's. `admittance` says who may visit. `visitors` counts those that are there, waiting or served, on all of its leases.

    `share` is what this process may give it: all, unless there are several (`deal`). `refused` counts visitors who came above that.
    """

    user: str
    limits: Limits
    share: Share = attrs.field(init=False)
    refused: int = attrs.field(init=False, default=0)
    visitors: int = attrs.field(init=False, default=0)
    leases: int = attrs.field(init=False, default=0)
    throttle: Throttle = attrs.field(init=False, factory=Throttle)
    admittance: Admittance = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self._apply()

    def change(self, limits: Limits) -> None:
        """Put new limits into force, for visitors and streams that are there as well; who may visit, for those to come."""
        if limits == self.limits:  # most often
            return
        before, self.limits = self.limits, limits
        if limits.shared != before.shared:
            self._apply()

    def deal(self, share: Share) -> None:
        """Give no more than this share, until the next one is dealt or the limits change."""
        self.share = share
        if self.throttle.rate != share.bandwidth:
            self.throttle.rate = share.bandwidth

    def _apply(self) -> None:
        self.share = Share.whole(self.limits)
        self.throttle.rate = self.limits.bandwidth
        self.admittance = Admittance(
            Networks(map(parse_network, self.limits.allow_visitors or ())),
            Networks(map(parse_network, self.limits.deny_visitors or ())),
        )


@attrs.define(eq=False)
class LiveLimits:
    """Those of users who hold a lease, and of nobody else. A share that was dealt holds until the last lease is gone, also for one that is yet to come."""

    by_user: dict[str, UserLimits] = attrs.field(init=False, factory=lambda: {})
    _shares: dict[str, Share] = attrs.field(init=False, factory=lambda: {})

    def take(self, user: str, limits: Limits) -> UserLimits:
        """Return the user's user_limits, under these limits, for one more lease; `give_back` has to follow."""
        user_limits = self.by_user.get(user)
        if user_limits is None:
            user_limits = self.by_user[user] = UserLimits(user, limits)
        else:
            user_limits.change(limits)
        if user in self._shares:
            user_limits.deal(self._shares[user])
        user_limits.leases += 1
        return user_limits

    def give_back(self, user_limits: UserLimits) -> None:
        """One lease less; with the last one the user_limits is forgotten."""
        user_limits.leases -= 1
        if not user_limits.leases:
            del self.by_user[user_limits.user]
            self._shares.pop(user_limits.user, None)

    def deal(self, user: str, limits: Limits, share: Share) -> None:
        """Put a user's limits into force, and the share of them that this process may give."""
        self._shares[user] = share
        if (user_limits := self.by_user.get(user)) is not None:
            user_limits.change(limits)
            user_limits.deal(share)
