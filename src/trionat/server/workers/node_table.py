"""Claims of workers whose parent is a node of a cluster: Redis knows which node has a claim, and the parent which of its workers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import attrs

from trionat.server.registry.claim import TakenError
from trionat.server.registry.local import LocalRegistry
from trionat.server.registry.table import ClaimTable

if TYPE_CHECKING:
    from trionat.server.registry.claim import Claim, Wish
    from trionat.server.registry.registry import Registry
    from trionat.server.registry.table import Member
    from trionat.server.visitors.ports import LeaseKey

NODE: Final = "node "
"""What a holder's word begins with, where it is another node: no route leads there. No name of a worker has a blank."""


@attrs.define(eq=False)
class NodeTable(ClaimTable):
    """See the module. `node` is this node's registry, whose claims are those of its workers; it has the same ports."""

    node: Registry = attrs.field(kw_only=True)

    def __attrs_post_init__(self) -> None:
        self.node.on_free = self._tell_free
        self.node.on_evict = self._evict
        self.node.on_lost = self._lose
        self.node.on_moved = self._move

    @property
    def free_slots(self) -> int:
        """See `ClaimTable`."""
        return self.node.free_slots

    @property
    def free_ports(self) -> int:
        """See `ClaimTable`: all of them. To count those that no node has takes a look at each, and news come in crowds; a claim looks anyway."""
        return len(self.ports.ports)

    async def claim_of_node(self, wish: Wish, word: str) -> Claim | None:
        """See `Registry.claim`."""
        if not self._make_way(wish, word):
            return None
        if wish.group is not None:
            self._shared_points(wish, word)  # which of the workers has them
        try:
            claim = await self.node.claim(wish)
        except TakenError as taken:
            raise TakenError(NODE + taken.holder) from None
        if claim is None:
            return None
        claim = attrs.evolve(claim, holder=word)
        self._put(claim)
        return claim

    def _give_back(self, claim: Claim, *, is_shared: bool) -> None:
        self.node.release(claim)

    def occupy(self, claim: Claim, *, occupied: bool) -> None:
        """See `Registry.occupy`."""
        super().occupy(claim, occupied=occupied)
        if self.is_current(claim):
            self.node.occupy(claim, occupied=occupied)

    def _evict(self, key: LeaseKey, reason: str, *, vacant_only: bool) -> None:
        """Another node wants a key, or needs room. What a worker has left that is not there serves nobody."""
        if (member := self._member_with(key)) is not None:
            member.on_evict(key, reason, vacant_only=vacant_only)

    def _lose(self, key: LeaseKey, reason: str) -> None:
        """Another node has one of the ports, or the group of that key; all claims of a group are at one worker."""
        if (member := self._member_with(key)) is not None:
            member.on_lost(key, reason)

    def _move(self, key: LeaseKey) -> None:
        """Another node has the key, as it was to be."""
        if (member := self._member_with(key)) is not None:
            member.on_moved(key)

    def _member_with(self, key: LeaseKey) -> Member | None:
        """Return the worker that has a claim, or all those of a group. Where it is not there, they are released: nobody uses them."""
        while (held := self._find_held(key)) is not None:
            if (member := self._members.get(held.claim.holder)) is not None:
                return member
            self.release(held.claim)
        return None


@attrs.define(eq=False)
class WorkerOfNode(LocalRegistry):
    """One worker's registry, at its parent. Another worker's word is a route; another node's is not."""

    @property
    def _claims(self) -> NodeTable:
        assert isinstance(self.table, NodeTable), "made with one"  # noqa: S101 - for type checkers
        return self.table

    def is_route(self, holder: str) -> bool:
        """See `Registry`."""
        return not holder.startswith(NODE)

    async def holder(self, key: LeaseKey) -> str | None:
        """See `Registry`."""
        if self._claims.has(key):
            return self._claims.holder(key, self.word)
        node = await self._claims.node.holder(key)
        return None if node is None else NODE + node

    async def is_there(self, holder: str) -> bool:
        """See `Registry`."""
        return self.is_route(holder) or await self._claims.node.is_there(holder.removeprefix(NODE))

    async def claim(self, wish: Wish) -> Claim | None:
        """See `Registry`."""
        return await self._claims.claim_of_node(wish, self.word)

    async def evict(self, key: LeaseKey, reason: str) -> None:
        """See `Registry`."""
        if self._claims.has(key):
            self._claims.evict(key, reason)
        else:
            await self._claims.node.evict(key, reason)
