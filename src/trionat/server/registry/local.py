"""The registry whose truth is in this process: no task, and no wait."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

from trionat.server.registry.registry import Registry
from trionat.server.registry.table import Member

if TYPE_CHECKING:
    from trionat.protocol.messages import ServiceRequest
    from trionat.server.registry.claim import Claim, Wish
    from trionat.server.registry.table import ClaimTable
    from trionat.server.visitors.ports import LeaseKey, PointId


@attrs.define(eq=False)
class LocalRegistry(Registry):
    """See `Registry`. There is no checkpoint in any of it; several share a table under different words."""

    table: ClaimTable
    word: str = ""

    def __attrs_post_init__(self) -> None:
        self.table.join(self.word, Member(self._free, self._evict, self._lose, self._move))

    def _free(self) -> None:
        self.on_free()

    def _evict(self, key: LeaseKey, reason: str, *, vacant_only: bool) -> None:
        self.on_evict(key, reason, vacant_only=vacant_only)

    def _lose(self, key: LeaseKey, reason: str) -> None:
        self.on_lost(key, reason)

    def _move(self, key: LeaseKey) -> None:
        self.on_moved(key)

    @property
    def amends(self) -> bool:
        """See `Registry`."""
        return True

    def amend(
        self,
        claim: Claim,
        services: tuple[ServiceRequest, ...],
        points: tuple[PointId | None, ...],
    ) -> Claim | None:
        """See `Registry`."""
        return self.table.amend(claim, services, points)

    @property
    def free_slots(self) -> int:
        """See `Registry`."""
        return self.table.free_slots

    async def holder(self, key: LeaseKey) -> str | None:
        """See `Registry`."""
        return self.table.holder(key, self.word)

    async def claim(self, wish: Wish) -> Claim | None:
        """See `Registry`."""
        return self.table.claim(wish, self.word)

    def release(self, claim: Claim) -> None:
        """See `Registry`."""
        self.table.release(claim)

    def occupy(self, claim: Claim, *, occupied: bool) -> None:
        """See `Registry`."""
        self.table.occupy(claim, occupied=occupied)

    async def evict(self, key: LeaseKey, reason: str) -> None:
        """See `Registry`."""
        self.table.evict(key, reason)
