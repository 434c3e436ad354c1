"""The one interface behind which a process shares state with others; it does not know how many there are.

An implementation has the truth somewhere: in this process, at a parent, in a database. `tests/registry/test_registry.py` has what
all of them promise.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Protocol

import attrs

if TYPE_CHECKING:
    from collections.abc import Callable

    from trionat.protocol.messages import ServiceRequest
    from trionat.server.registry.claim import Claim, Wish
    from trionat.server.visitors.ports import LeaseKey, PointId


class Evict(Protocol):
    """How a process is asked to give up what it holds under a key; see `Registry.on_evict`."""

    def __call__(self, key: LeaseKey, reason: str, *, vacant_only: bool) -> None:
        """Give it up, soon."""
        ...


def _keep(key: LeaseKey, reason: str, *, vacant_only: bool) -> None:
    """Nobody is asked, as long as nobody listens."""


def _ignore(key: LeaseKey, reason: str) -> None:
    """As above."""


@attrs.define(eq=False)
class Registry(ABC):
    """One process's way to what it shares. All methods are for the Trio thread.

    `on_free` is called when a claim that was refused for lack of room may succeed by now. `on_evict` is called when another process wants
    the key of one of this process's claims: with `vacant_only`, it is to be given up only where no session uses it. Giving up means `release`, sooner
    or later. `on_lost` is called when a claim does not hold any more without having been released, since another process has one of its ports: its client has
    to log in anew. `on_moved` is called when another process has the key of one of them, and was to get it: see `drain`. All of them must return at once. What is told is told at most once, and a claim's news come in the order of its fence.
    """

    on_free: Callable[[], None] = attrs.field(kw_only=True, default=lambda: None)
    on_evict: Evict = attrs.field(kw_only=True, default=_keep)
    on_lost: Callable[[LeaseKey, str], None] = attrs.field(kw_only=True, default=_ignore)
    on_moved: Callable[[LeaseKey], None] = attrs.field(kw_only=True, default=lambda _: None)

    @property
    def amends(self) -> bool:
        """Whether what a claim has can change, by `amend`."""
        return False

    def amend(
        self,
        claim: Claim,
        services: tuple[ServiceRequest, ...],
        points: tuple[PointId | None, ...],
    ) -> Claim | None:
        """Have a claim be for these services at these points, of which those that are None are taken, and give back the others that it had. None: there are too few ports, and all is as before. No checkpoint.

        Raises:
            RefusedError: a port or a name is taken; all is as before.
        """
        raise NotImplementedError

    def is_route(self, holder: str) -> bool:
        """Tell whether a holder's word is a route, by which clients get there."""
        return True

    @property
    @abstractmethod
    def free_slots(self) -> int:
        """How many more sessions there may be, as far as is known here."""

    def has_room(self, key: LeaseKey) -> bool:
        """Tell whether a claim of this key would find a slot, as far as is known here."""
        return self.free_slots > 0

    @abstractmethod
    async def holder(self, key: LeaseKey) -> str | None:
        """Return who holds a key, a client's or a group's (`group_key`), if another process does that is alive.

        Raises:
            RefusedError: it cannot be found out now.
        """

    async def is_there(self, holder: str) -> bool:
        """Tell whether another process goes on, as far as can be told; what one holds that does not is free soon.

        Raises:
            RefusedError: it cannot be found out now.
        """
        del holder
        return True

    @abstractmethod
    async def claim(self, wish: Wish) -> Claim | None:
        """Take a slot and all ports of the wish, or nothing at all: None, and `on_free` is called when it is worth trying again.

        Which ports: those that it names, else those that the key had before, else those that nobody has used for the longest time. What
        a dead process has left under the key is taken over. Of two processes that claim at the same moment one gets it. Where too many
        of the user's claims stand without a session, their holders are asked to give them up, and the answer is None meanwhile.

        Where the wish names a group, and this process has claims of it: the ports of those, and no slot. What a dead process has left of a group is taken over
        by the first of its clients that comes.

        Cancelled, nothing is held: what was granted too late is given back.

        Raises:
            TakenError: another process holds the key, or the group's.
            RefusedError: it does not fit its group, a port that it names is taken, or those that its user may have are, or the user has all the sessions that it
                may have, or nobody can be asked now.
        """

    @abstractmethod
    def release(self, claim: Claim) -> None:
        """Give slot and ports back. Nothing happens where the claim does not hold any more."""

    @abstractmethod
    def occupy(self, claim: Claim, *, occupied: bool) -> None:
        """Tell whether a session uses the claim; one that is new counts as used. Nothing happens where it does not hold any more."""

    @abstractmethod
    async def evict(self, key: LeaseKey, reason: str) -> None:
        """Ask whoever holds a key to give it up; `on_free` is called when that is done. Nobody is asked where nobody holds it.

        Raises:
            RefusedError: nobody can be asked now.
        """
