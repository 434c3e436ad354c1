"""What the sessions of one user share: its limits, and how much of them is in use."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

from trionat.networks import Admittance, Networks, parse_network
from trionat.relay.throttle import Brake

if TYPE_CHECKING:
    from trionat.store.base import Limits


@attrs.define(eq=False)
class Allowance:
    """One user's. `admittance` says who may visit. `visitors` counts those that are there, waiting or served, on all of its leases."""

    user: str
    limits: Limits
    visitors: int = attrs.field(init=False, default=0)
    leases: int = attrs.field(init=False, default=0)
    brake: Brake = attrs.field(init=False, factory=Brake)
    admittance: Admittance = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self._apply()

    def change(self, limits: Limits) -> None:
        """Put new limits into force, for visitors and streams that are there as well; who may visit, for those to come."""
        if limits != self.limits:
            self.limits = limits
            self._apply()

    def _apply(self) -> None:
        self.brake.rate = self.limits.bandwidth
        self.admittance = Admittance(
            Networks(map(parse_network, self.limits.allow_visitors or ())),
            Networks(map(parse_network, self.limits.deny_visitors or ())),
        )


@attrs.define(eq=False)
class Allowances:
    """Those of users who hold a lease, and of nobody else."""

    by_user: dict[str, Allowance] = attrs.field(init=False, factory=lambda: {})

    def take(self, user: str, limits: Limits) -> Allowance:
        """Return the user's allowance, under these limits, for one more lease; `give_back` has to follow."""
        allowance = self.by_user.get(user)
        if allowance is None:
            allowance = self.by_user[user] = Allowance(user, limits)
        else:
            allowance.change(limits)
        allowance.leases += 1
        return allowance

    def give_back(self, allowance: Allowance) -> None:
        """One lease less; with the last one the allowance is forgotten."""
        allowance.leases -= 1
        if not allowance.leases:
            del self.by_user[allowance.user]
