"""The parent's side of a worker's registry (`remote.py`): its questions are answered out of the table of claims."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

from trionat.server.registry.claim import TakenError
from trionat.server.registry.table import Member
from trionat.server.workers.values import read_key, read_wish, write_claim

if TYPE_CHECKING:
    from collections.abc import Callable

    from trionat.server.registry.claim import Claim
    from trionat.server.registry.table import ClaimTable
    from trionat.server.visitors.ports import LeaseKey
    from trionat.server.workers.link import Link, Values


@attrs.define(eq=False)
class ClaimServer:
    """One worker's, known by its word; it is in the table from `join` on. `on_granted` is called before it hears of its new claim."""

    table: ClaimTable
    word: str
    link: Link
    on_granted: Callable[[Claim], None] = lambda _: None

    def join(self) -> None:
        """The worker is up. It hears how much is free by `tell_room` alone."""
        self.table.join(self.word, Member(lambda: None, self.evict))

    def evict(self, key: LeaseKey, reason: str, *, vacant_only: bool) -> None:
        """Ask the worker to give up what it holds under a key."""
        self.link.post({"what": "evict", "key": key, "reason": reason, "vacant_only": vacant_only})

    @property
    def room(self) -> Values:
        """How many slots and ports are free."""
        return {"slots": self.table.free_slots, "ports": self.table.ports.free}

    def tell_room(self) -> None:
        """Tell the worker how much is free."""
        self.link.post({"what": "room", **self.room})

    def hear(self, message: Values) -> bool:
        """Do what a message says; tell whether it is one about claims."""
        match message["what"]:
            case "release":
                if (claim := self._find(message)) is not None:
                    self.table.release(claim)
            case "occupy":
                if (claim := self._find(message)) is not None:
                    self.table.occupy(claim, occupied=message["occupied"])
            case "evict":
                self.table.evict(read_key(message["key"]), message["reason"])
            case _:
                return False
        return True

    def _find(self, message: Values) -> Claim | None:
        claim = self.table.find(read_key(message["key"]), message["fence"])
        return claim if claim is not None and claim.holder == self.word else None

    def holder(self, question: Values) -> Values:
        """Answer who holds a key."""
        return {"holder": self.table.holder(read_key(question["key"]), self.word)}

    def claim(self, question: Values) -> Values:
        """Grant a wish, or not.

        Raises:
            RefusedError: as `Registry.claim`.
        """
        try:
            claim = self.table.claim(read_wish(question["wish"]), self.word)
        except TakenError as taken:
            return {"taken": taken.holder}
        if claim is None:
            return {"claim": None}
        self.on_granted(claim)
        return {"claim": write_claim(claim)}
