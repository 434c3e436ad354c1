"""What users may have on all workers together: each worker gets a share of it (`shares.py`), anew every second."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import attrs

from trionat.server.workers.shares import Usage, deal
from trionat.store.base import Limits

if TYPE_CHECKING:
    from collections.abc import Sequence

    from trionat.server.accounts.limits import Share
    from trionat.server.registry.claim import Claim
    from trionat.server.registry.table import ClaimTable
    from trionat.server.workers.process import WorkerProcess


@attrs.define(eq=False)
class SharedLimits:
    """What a user may have on all workers; `usage` is what they have told last, `shares` what they were dealt, and `sessions` how many they have, by their words."""

    user: str
    limits: Limits
    usage: dict[str, Usage] = attrs.field(factory=lambda: {})
    shares: dict[str, Share] = attrs.field(factory=lambda: {})
    sessions: Counter[str] = attrs.field(factory=lambda: Counter())

    def change(self, limits: Limits) -> None:
        """Put new limits into force; the workers hear of them with the next deal."""
        if limits == self.limits:  # most often
            return
        before, self.limits = self.limits, limits
        if limits.shared != before.shared:
            self.shares.clear()


@attrs.define(eq=False)
class LimitTable:
    """The limits of all users that have claims in `table`, or sessions that have lost theirs; `workers` are told their shares."""

    table: ClaimTable
    workers: Sequence[WorkerProcess]
    by_user: dict[str, SharedLimits] = attrs.field(init=False, factory=lambda: {})

    def take_claim(self, claim: Claim, worker: WorkerProcess) -> None:
        """A worker has a claim: it gets its share of the user's limits, which are those of this claim by now."""
        user = claim.key[0]
        shared = self.by_user.setdefault(user, SharedLimits(user, claim.wish.limits))
        shared.change(claim.wish.limits)
        shared.shares.pop(worker.word, None)
        self._deal(shared)

    def find(self, user: str) -> SharedLimits:
        """Return what a user's sessions share. One without a claim has lost it in this moment, and its session ends."""
        return self.by_user.get(user) or SharedLimits(user, Limits())

    def deal_all(self) -> None:
        """Deal all shares anew, by what the workers have told last."""
        for shared in list(self.by_user.values()):
            self._deal(shared)

    def _deal(self, shared: SharedLimits) -> None:
        """Deal a user's shares to the workers that have claims of it, or sessions whose client is at another node by now; those whose share changes are told."""
        holders = self.table.holders_of(shared.user) | set(shared.sessions)
        if not holders:
            del self.by_user[shared.user]
            return
        usage = {
            worker.word: shared.usage.get(worker.word, Usage())
            for worker in self.workers
            if worker.word in holders
        }
        shares = deal(shared.limits, usage, shared.shares)
        for worker in self.workers:
            share = shares.get(worker.word)
            if share is not None and share != shared.shares.get(worker.word):
                worker.tell_share(shared.user, shared.limits, share)
        shared.shares, shared.usage = shares, usage
