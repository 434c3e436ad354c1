"""The parent's side of a worker's registry (`remote.py`): its questions are answered out of the table of claims."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

from trionat.server.registry.claim import TakenError
from trionat.server.registry.local import LocalRegistry
from trionat.server.registry.values import read_key, read_wish, write_claim

if TYPE_CHECKING:
    from collections.abc import Callable

    from trionat.server.registry.claim import Claim
    from trionat.server.registry.registry import Registry
    from trionat.server.registry.table import ClaimTable
    from trionat.server.visitors.ports import LeaseKey
    from trionat.server.workers.link import Link, Values


@attrs.define(eq=False)
class ClaimServer:
    """One worker's, known by its word; it is in the table from `join` on. `on_granted` is called before it hears of its new claim.

    `kind` is the registry that has the table's answers.
    """

    table: ClaimTable
    word: str
    link: Link
    on_granted: Callable[[Claim], None] = lambda _: None
    kind: Callable[..., Registry] = LocalRegistry
    _registry: Registry = attrs.field(init=False)

    def join(self) -> None:
        """The worker is up."""
        self._registry = self.kind(
            self.table,
            self.word,
            on_free=self.tell_free,
            on_evict=self.evict,
            on_lost=self.lose,
            on_moved=self.move,
        )

    def evict(self, key: LeaseKey, reason: str, *, vacant_only: bool) -> None:
        """Ask the worker to give up what it holds under a key."""
        self.link.post({"what": "evict", "key": key, "reason": reason, "vacant_only": vacant_only})

    def lose(self, key: LeaseKey, reason: str) -> None:
        """Tell the worker that a claim does not hold any more."""
        self.link.post({"what": "lost", "key": key, "reason": reason})

    def move(self, key: LeaseKey) -> None:
        """Tell the worker that another node, or worker, has a key by now, as it was to be."""
        self.link.post({"what": "moved", "key": key})

    @property
    def room(self) -> Values:
        """How many slots and ports are free."""
        return {"slots": self.table.free_slots, "ports": self.table.free_ports}

    def tell_room(self) -> None:
        """Tell the worker how much is free."""
        self.link.post({"what": "room", **self.room})

    def tell_free(self) -> None:
        """Tell the worker that it is worth trying again."""
        self.link.post({"what": "room", **self.room, "again": True})

    def hear(self, message: Values) -> bool:
        """Do what a message says; tell whether it is one about claims."""
        match message["what"]:
            case "release":
                if (claim := self._find(message)) is not None:
                    self.table.release(claim)
                    if (other := self.table.sharing(claim)) is not None:
                        # Its client has joined a group that was just left: the worker may have closed the ports meanwhile.
                        self.on_granted(other)
            case "occupy":
                if (claim := self._find(message)) is not None:
                    self.table.occupy(claim, occupied=message["occupied"])
            case _:
                return False
        return True

    async def reply(self, question: Values) -> Values:
        """Answer a question about claims.

        Raises:
            RefusedError: as the methods of `Registry`.
        """
        match question["what"]:
            case "holder":
                return await self._holder(question)
            case "is there":
                return {"is_there": await self._registry.is_there(question["holder"])}
            case "claim":
                return await self._claim(question)
            case "evict":
                await self._registry.evict(read_key(question["key"]), question["reason"])
                return {}
            case what:
                raise AssertionError(f"a worker asks {what!r}")

    def _find(self, message: Values) -> Claim | None:
        claim = self.table.find(read_key(message["key"]), message["fence"])
        return claim if claim is not None and claim.holder == self.word else None

    async def _holder(self, question: Values) -> Values:
        holder = await self._registry.holder(read_key(question["key"]))
        route = holder is not None and self._registry.is_route(holder)
        return {"holder": holder, "is_route": route}

    async def _claim(self, question: Values) -> Values:
        try:
            claim = await self._registry.claim(read_wish(question["wish"]))
        except TakenError as taken:
            return {"taken": taken.holder}
        if claim is None:
            return {"claim": None}
        self.on_granted(claim)
        return {"claim": write_claim(claim)}
