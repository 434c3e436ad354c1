"""Who holds what: the truth, where it is in a process. Plain state that changes between two checkpoints."""

from __future__ import annotations

from itertools import count
from typing import TYPE_CHECKING, Final

import attrs

from trionat.errors import RefusedError
from trionat.protocol.messages import RefusalCode
from trionat.server.registry.claim import Claim, TakenError, Wish

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from trionat.protocol.messages import ServiceRequest
    from trionat.server.registry.registry import Evict
    from trionat.server.visitors.ports import LeaseKey, PointId, PortPool

_MAKE_ROOM: Final = "the user's limit of sessions"


@attrs.frozen(eq=False)
class Member:
    """A process, as far as the table talks to it: all of them are as in `Registry`."""

    on_free: Callable[[], None]
    on_evict: Evict
    on_lost: Callable[[LeaseKey, str], None]
    on_moved: Callable[[LeaseKey], None]


@attrs.define(eq=False)
class _Held:
    claim: Claim
    occupied: bool = True


@attrs.define(eq=False)
class ClaimTable:
    """At most `slots` claims, with ports of the pool. Processes are known by a word each, and are there between `join` and `leave`.

    What a process holds stays when it has left: whoever has its word next finds it with `held_by`, and a client that comes to another
    process takes it along. See `Registry` for what the methods do. `on_change` is called with ports and names that were just taken, or given back.
    """

    slots: int
    ports: PortPool
    on_change: Callable[[Iterable[PointId]], None] = lambda _: None
    _held: dict[LeaseKey, _Held] = attrs.field(init=False, factory=lambda: {})
    _groups: dict[LeaseKey, dict[LeaseKey, _Held]] = attrs.field(init=False, factory=lambda: {})
    _sharing: int = attrs.field(init=False, default=0)
    _by_user: dict[str, dict[LeaseKey, _Held]] = attrs.field(init=False, factory=lambda: {})
    _members: dict[str, Member] = attrs.field(init=False, factory=lambda: {})
    _fences: Iterator[int] = attrs.field(init=False, factory=lambda: count(1))

    @property
    def free_slots(self) -> int:
        """How many more claims there may be."""
        return self.slots - (len(self._held) - self._sharing)

    @property
    def free_ports(self) -> int:
        """How many ports may be free."""
        return self.ports.free

    def join(self, word: str, member: Member) -> None:
        """A process is there from now on."""
        self._members[word] = member

    def leave(self, word: str) -> None:
        """A process is gone. Whoever waits for one of its keys may have it."""
        self._members.pop(word, None)
        self._tell_free()

    def held_by(self, word: str) -> tuple[Claim, ...]:
        """Return what a process holds, or has left behind."""
        return tuple(held.claim for held in self._held.values() if held.claim.holder == word)

    def holders_of(self, user: str) -> set[str]:
        """Return the processes that have claims of a user."""
        return {held.claim.holder for held in self._by_user.get(user, {}).values()}

    def find(self, key: LeaseKey, fence: int) -> Claim | None:
        """Return a claim that still holds."""
        held = self._held.get(key)
        return None if held is None or held.claim.fence != fence else held.claim

    def claim_of(self, point: PointId) -> Claim | None:
        """Return the claim that a port or a name belongs to; one of several, where it is a group's."""
        found = self.ports.find(point)
        if found is None or (key := found.last_holder) is None:
            return None
        held = self._find_held(key)
        return None if held is None or point not in held.claim.points else held.claim

    def is_current(self, claim: Claim) -> bool:
        """Tell whether a claim still holds."""
        return self.find(claim.key, claim.fence) is not None

    def holder(self, key: LeaseKey, asking: str) -> str | None:
        """Return which other process holds a key, if one does that is there."""
        held = self._find_held(key)
        if held is None or held.claim.holder == asking or held.claim.holder not in self._members:
            return None
        return held.claim.holder

    def has(self, key: LeaseKey) -> bool:
        """Tell whether a process has a claim of this key, a client's or a group's, or has left one."""
        return self._find_held(key) is not None

    def _find_held(self, key: LeaseKey) -> _Held | None:
        """Find what is held under a key: a client's, or one of a group's."""
        if (held := self._held.get(key)) is None:
            held = next(iter(self._groups.get(key, {}).values()), None)
        return held

    def sharing(self, claim: Claim) -> Claim | None:
        """Return another claim of the same group, if there is one."""
        group = {} if claim.wish.group is None else self._groups.get(claim.wish.ports_key, {})
        return next((held.claim for key, held in group.items() if key != claim.key), None)

    def claim(self, wish: Wish, word: str) -> Claim | None:
        """See `Registry.claim`."""
        if not self._make_way(wish, word):
            return None
        shared = None if wish.group is None else self._shared_points(wish, word)
        if not self._has_sessions(wish):
            return None
        if shared is None:
            if self.free_slots <= 0:
                return None
            taken = self.ports.take(wish.services, wish.ports_key, wish.limits.visit_ports)
            if taken is None:
                return None
            points = tuple(point.id for point in taken)
        else:
            points = shared
        claim = Claim(wish=wish, points=points, fence=next(self._fences), holder=word)
        self._put(claim)
        return claim

    def amend(
        self,
        claim: Claim,
        services: tuple[ServiceRequest, ...],
        points: tuple[PointId | None, ...],
    ) -> Claim | None:
        """See `Registry.amend`."""
        wish, held = claim.wish, self._held[claim.key]
        missing = [
            service for service, point in zip(services, points, strict=True) if point is None
        ]
        taken = self.ports.take(missing, wish.ports_key, wish.limits.visit_ports)
        if taken is None:
            return None
        new = iter(taken)
        ids = tuple(next(new).id if point is None else point for point in points)
        held.claim = attrs.evolve(claim, wish=attrs.evolve(wish, services=services), points=ids)
        self.ports.note_held(ids)
        gone = [point for point in claim.points if point not in ids]
        found = (self.ports.find(point) for point in gone)
        self.ports.give_back(point for point in found if point is not None)
        self.on_change({*claim.points, *ids})
        self._tell_free()
        return held.claim

    def _make_way(self, wish: Wish, word: str) -> bool:
        """Remove what a process has left under a key that is not there any more. False: the one that asks is about to release it. Raises TakenError."""
        held = self._held.get(wish.key)
        if held is not None:
            if (other := self.holder(wish.key, word)) is not None:
                raise TakenError(other)
            if held.claim.holder == word and word in self._members:
                return False
            self._remove(held.claim)
        return True

    def _shared_points(self, wish: Wish, word: str) -> tuple[PointId, ...] | None:
        """Return the ports and names of the group that the wish names, where this process has it; take away what a dead one has left of it."""
        group = self._groups.get(wish.ports_key)
        if group is None:
            return None
        if (other := self.holder(wish.ports_key, word)) is not None:
            raise TakenError(other)
        claims = [held.claim for held in group.values()]
        if claims[0].holder == word:
            wish.check_fits(claims[0].points)
            return claims[0].points
        for claim in claims:
            self._remove(claim)
        return None

    def _put(self, claim: Claim) -> None:
        held = self._held[claim.key] = _Held(claim)
        self.ports.note_held(claim.points)
        self._by_user.setdefault(claim.key[0], {})[claim.key] = held
        if claim.wish.group is not None:
            group = self._groups.setdefault(claim.wish.ports_key, {})
            group[claim.key] = held
            if len(group) > 1:
                self._sharing += 1
                return
        self.on_change(claim.points)

    def _has_sessions(self, wish: Wish) -> bool:
        """Tell whether the user may have one more; asks for those that stand without a session where there are too many."""
        if (most := wish.limits.sessions) is None:
            return True
        mine = self._by_user.get(wish.key[0], {})
        if sum(held.occupied for held in mine.values()) >= most:
            raise RefusedError(
                RefusalCode.TOO_MANY_SESSIONS,
                f"this account has all the sessions that it may have at once ({most})",
            )
        vacant = [held.claim for held in mine.values() if not held.occupied]
        for claim in vacant[: max(0, len(mine) + 1 - most)]:
            if (member := self._members.get(claim.holder)) is not None:
                member.on_evict(claim.key, _MAKE_ROOM, vacant_only=True)
            else:
                self.release(claim)
        return len(mine) < most

    def release(self, claim: Claim) -> None:
        """See `Registry.release`."""
        if self.is_current(claim):
            self._remove(claim)
            self._tell_free()

    def _remove(self, claim: Claim) -> None:
        del self._held[claim.key]
        mine = self._by_user[claim.key[0]]
        del mine[claim.key]
        if not mine:
            del self._by_user[claim.key[0]]
        is_shared = False
        if claim.wish.group is not None:
            group = self._groups[claim.wish.ports_key]
            del group[claim.key]
            if is_shared := bool(group):
                self._sharing -= 1
            else:
                del self._groups[claim.wish.ports_key]
        self._give_back(claim, is_shared=is_shared)
        if not is_shared:
            self.on_change(claim.points)

    def _give_back(self, claim: Claim, *, is_shared: bool) -> None:
        """Give back the ports and names of a claim that is gone, unless others of its group share them."""
        if not is_shared:
            found = (self.ports.find(point) for point in claim.points)
            self.ports.give_back(point for point in found if point is not None)

    def _tell_free(self) -> None:
        for member in list(self._members.values()):
            member.on_free()

    def occupy(self, claim: Claim, *, occupied: bool) -> None:
        """See `Registry.occupy`."""
        if self.is_current(claim):
            self._held[claim.key].occupied = occupied

    def evict(self, key: LeaseKey, reason: str) -> None:
        """See `Registry.evict`."""
        held = self._held.get(key)
        if held is not None and (member := self._members.get(held.claim.holder)) is not None:
            member.on_evict(key, reason, vacant_only=False)
