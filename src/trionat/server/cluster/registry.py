"""The registry whose truth is in Redis, with a copy of the table in memory."""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Final

import attrs
import trio

from trionat.config.cluster import NODE
from trionat.errors import RefusedError, RegistryAwayError
from trionat.log import get_logger
from trionat.protocol.messages import RefusalCode
from trionat.server.cluster.scripts import (
    CLAIM,
    DOUBT,
    EVICT,
    FIND,
    MOST_OF_POINTS,
    OCCUPY,
    RELEASE,
    SUSPECT_AFTER,
)
from trionat.server.cluster.table import Entry, decode_key, encode_key, read_fence, readable
from trionat.server.registry.claim import Claim, TakenError, Wish, is_group
from trionat.server.registry.registry import Registry
from trionat.server.visitors.ports import name_taken
from trionat.text import counted
from trionat.transport.dial import dial

if TYPE_CHECKING:
    from collections.abc import Sequence

    from trionat.server.cluster.redis_link import Answer, RedisLink
    from trionat.server.cluster.table import RoutingTable
    from trionat.server.visitors.ports import LeaseKey, PointId, PortPool, VisitPoint

log = get_logger(__name__)

_TRIES: Final = 8
"""Times that other ports are chosen because somebody was faster; then the client waits for the next change."""

_DIAL: Final = 1.0
"""Seconds to find out whether anybody listens at a node's address."""

_REASON: Final = 512
"""Characters."""

_MAKE_ROOM: Final = "the user's limit of sessions"
_MOVED: Final = "this client is at another node by now"
_GROUP_MOVED: Final = "the group of this client is at another node by now"
_TAKEN: Final = "a visit port or a name of this client is in use at another node by now"


@attrs.define(eq=False)
class _Elsewhere:
    """The ports and names that other nodes hold, as far as is known here; not those of the client that `asks`, which are to come along with it."""

    table: RoutingTable
    node: str
    asks: LeaseKey | None = None

    def __contains__(self, point: object) -> bool:
        entry = self.table.by_point.get(point)  # type: ignore[call-overload]
        return entry is not None and entry.node != self.node and entry.key != self.asks


@attrs.define(eq=False)
class _Held:
    """What this node holds, as the others know it: the claim of a client, with its ports and names; of one in a group without, for they are the group's.

    The group's is there as long as it has `members`. `lost` says that another node has it by now, and the lease is on its way out.
    """

    claim: Claim
    points: tuple[PointId, ...]
    occupied: bool = True
    lost: bool = False
    members: int = 0


@attrs.define(eq=False)
class RedisRegistry(Registry):
    """See `Registry`. `node` and `epoch` are this node's, `reserve` is for how many milliseconds the ports of a node that is gone are kept for its clients; at most `slots` claims are there at once, at all nodes together.

    `is_ready` says that Redis knows what we hold, and we know what all others do. What was held when Redis went away is held on: it is in
    `held`, and told again by `Node` when Redis is back. `is_offered` says that this node is drained: other nodes take over what its clients hold.
    """

    link: RedisLink
    table: RoutingTable
    pool: PortPool
    slots: int
    node: str
    epoch: str
    reserve: int
    is_ready: bool = attrs.field(init=False, default=False)
    is_offered: bool = attrs.field(init=False, default=False)
    held: dict[LeaseKey, _Held] = attrs.field(init=False, factory=lambda: {})
    _held_points: dict[PointId, LeaseKey] = attrs.field(init=False, factory=lambda: {})
    _elsewhere: _Elsewhere = attrs.field(init=False)
    _asking: int = attrs.field(init=False, default=0)

    def __attrs_post_init__(self) -> None:
        self._elsewhere = self.pool.elsewhere = _Elsewhere(self.table, self.node)

    def is_route(self, holder: str) -> bool:
        """See `Registry`."""
        return False

    @property
    def free_slots(self) -> int:
        """See `Registry`."""
        return self.slots - self.table.slots_taken - self._asking

    def has_room(self, key: LeaseKey) -> bool:
        """See `Registry`. A client of another node brings its slot along."""
        return self.free_slots > 0 or key in self.table.by_key

    async def holder(self, key: LeaseKey) -> str | None:
        """See `Registry`."""
        self._require()
        try:
            answer = await self.link.call(FIND, encode_key(key))
        except RegistryAwayError:
            raise _away() from None
        node = _name(answer[-1]) if len(answer) > 1 else ""
        return node if node not in ("", self.node) else None

    async def claim(self, wish: Wish) -> Claim | None:
        """See `Registry`."""
        self._require()
        if wish.key in self.held:
            return None  # it is about to be released
        if wish.group is not None and (group := self.held.get(wish.ports_key)) is not None:
            return await self._share(wish, group)
        if not self.has_room(wish.ports_key):
            return None
        _check_length(wish)
        self._asking += 1
        kept: list[VisitPoint] = []  # that others have, as we have just learned
        try:
            for _ in range(_TRIES):
                self._elsewhere.asks = wish.ports_key
                try:
                    taken = self.pool.take(wish.services, wish.ports_key, wish.limits.visit_ports)
                finally:
                    self._elsewhere.asks = None
                if taken is None:
                    return None
                kept += taken
                points = tuple(point.id for point in taken)
                answer = await self._ask(wish, points)
                match answer:
                    case [b"ok", *fences]:
                        claim = self._hold(wish, points, fences)
                        for point in taken:
                            kept.remove(point)
                        return claim
                    case [b"taken", *pairs]:
                        theirs = dict(zip(pairs[::2], pairs[1::2], strict=False))
                        self._refuse_taken(wish, theirs)
                        free = [point for point in taken if str(point.id).encode() not in theirs]
                        self.pool.give_back(free)
                        kept = [point for point in kept if point not in free]
                    case _:
                        self._refuse(wish, answer)
                        return None
            return None
        finally:
            self._asking -= 1
            self.pool.give_back(kept)

    async def _share(self, wish: Wish, group: _Held) -> Claim | None:
        """Take the ports and names that a group has here."""
        if group.lost:
            return None
        wish.check_fits(group.points)
        match await self._ask(wish, ()):
            case [b"ok", fence]:
                if group.members and not group.lost:
                    return self._hold(wish, group.points, [fence])
                self.link.send(RELEASE, self.node, self.epoch, encode_key(wish.key), fence)
            case answer:
                self._refuse(wish, answer)
        return None

    def _refuse(self, wish: Wish, answer: Answer) -> None:
        """Say why there is no claim, unless it is worth trying again soon."""
        match answer:
            case [b"held", node]:
                raise TakenError(_name(node))
            case [b"sessions"]:
                raise RefusedError(
                    RefusalCode.TOO_MANY_SESSIONS,
                    f"this account has all the sessions that it may have at once ({wish.limits.sessions})",
                )
            case [b"own"] | [b"room"] | [b"settling", _]:
                pass
            case _:  # Redis does not know us any more: we are about to tell it
                raise _away()

    async def _ask(self, wish: Wish, points: tuple[PointId, ...]) -> Answer:
        most = -1 if wish.limits.sessions is None else wish.limits.sessions
        key = encode_key(wish.key)
        group = "" if wish.group is None else encode_key(wish.ports_key)
        try:
            return await self.link.call(
                CLAIM,
                self.node,
                self.epoch,
                self.table.highest,
                key,
                most,
                ",".join(map(str, points)),
                group,
                on_late=partial(self._give_back, key, group),
            )
        except RegistryAwayError:
            raise _away() from None

    def _give_back(self, key: str, group: str, answer: Answer) -> None:
        """Nobody waits for a claim any more that was granted, with that of its group where it was the first."""
        if answer[0] == b"ok":
            for each, fence in zip((key, group), answer[1:], strict=False):
                self.link.send(RELEASE, self.node, self.epoch, each, fence)

    def _refuse_taken(self, wish: Wish, theirs: dict[bytes, bytes]) -> None:
        """Note who has these ports, and that it is not this client; refuse it where it has named one of them, or a name."""
        for number, key in theirs.items():
            with suppress(ValueError, KeyError):
                self.pool.remember(self.pool.ports[int(number)], decode_key(key.decode()))
        for service in wish.services:
            if (service.hostname or "").encode() in theirs:
                raise name_taken(service.hostname or "")
            if b"%d" % (service.visit_port or 0) in theirs:
                raise RefusedError(
                    RefusalCode.PORT_TAKEN, f"visit port {service.visit_port} is in use"
                )

    def _hold(self, wish: Wish, points: tuple[PointId, ...], granted: Sequence[bytes]) -> Claim:
        """Note what was granted: the fence of a claim, and that of its group where it is the first."""
        try:
            fence, *of_group = (read_fence(each.decode()) for each in granted)
            claim = Claim(wish=wish, points=points, fence=fence, holder=self.node)
            new = [_Held(claim, points if wish.group is None else ())]
            if of_group:
                its = attrs.evolve(wish, key=wish.ports_key, group=None)
                new.append(_Held(attrs.evolve(claim, wish=its, fence=of_group[0]), points))
            for held in new:
                key, fence = held.claim.key, held.claim.fence
                self.table.put(Entry(key, self.node, self.epoch, fence, held.points))
        except ValueError:
            log.warning("Redis has granted a claim with nonsense", fence=readable(granted[0]))
            self._give_back(encode_key(wish.key), encode_key(wish.ports_key), [b"ok", *granted])
            raise _away() from None
        self.pool.note_held(points)
        for held in new:
            self.held[held.claim.key] = held
            self._held_points.update(dict.fromkeys(held.points, held.claim.key))
        if wish.group is not None:
            self.held[wish.ports_key].members += 1
        return claim

    def release(self, claim: Claim) -> None:
        """See `Registry`. Where Redis is away, it is told when it is back: what is not held any more is not told again."""
        held = self.held.get(claim.key)
        if held is None or held.claim.fence != claim.fence:
            return
        if claim.wish.group is not None:
            group = self.held[claim.wish.ports_key]
            group.members -= 1
            if not group.members:
                self._drop(claim.wish.ports_key)
        self._drop(claim.key)  # last: who hears of it finds the group's ports free
        self.on_free()

    def _drop(self, key: LeaseKey) -> None:
        held = self.held.pop(key)
        for point in held.points:
            del self._held_points[point]
        fence = held.claim.fence
        self.table.remove(key, fence)
        self.pool.give_back(map(self.pool.open, held.points))
        self.link.send(RELEASE, self.node, self.epoch, encode_key(key), fence)

    def occupy(self, claim: Claim, *, occupied: bool) -> None:
        """See `Registry`."""
        held = self.held.get(claim.key)
        if held is not None and held.claim.fence == claim.fence and held.occupied != occupied:
            held.occupied = occupied
            key = encode_key(claim.key)
            self.link.send(OCCUPY, self.node, self.epoch, key, claim.fence, int(occupied))

    async def evict(self, key: LeaseKey, reason: str) -> None:
        """See `Registry`."""
        self._require()
        try:
            match await self.link.call(EVICT, encode_key(key), reason[:_REASON]):
                case [b"ok", node, silent] if _whole(silent) >= SUSPECT_AFTER * 1000:
                    if (name := _name(node)) != self.node:
                        await self._doubt(name)
                case _:
                    pass
        except RegistryAwayError:
            raise _away() from None

    async def is_there(self, holder: str) -> bool:
        """See `Registry`."""
        self._require()
        try:
            return await self._doubt(holder)
        except RegistryAwayError:
            raise _away() from None

    async def _doubt(self, node: str) -> bool:
        """Tell whether a node is there. Where its machine says that nobody listens, it has only to miss its beat to count as dead."""
        if (entry := self.table.nodes.get(node)) is None:
            return False
        try:
            with trio.move_on_after(_DIAL):
                (await dial(entry.address)).close()
        except ConnectionRefusedError:
            await self.link.call(DOUBT, node, self.reserve)
            return False
        except OSError as error:
            log.debug("cannot tell whether a node is there", node=node, error=str(error))
        return True

    def _require(self) -> None:
        if not self.is_ready:
            raise _away()

    # -- what Redis tells --------------------------------------------------------------------------------------------

    def take_eviction(self, key: LeaseKey, fence: int, reason: str, *, vacant_only: bool) -> None:
        """Somebody wants a key that this node holds, or has held."""
        held = self.held.get(key)
        if held is not None and held.claim.fence == fence:
            self.on_evict(key, readable(reason) or _MAKE_ROOM, vacant_only=vacant_only)

    def take_claim(self, entry: Entry) -> None:
        """A claim was granted, somewhere."""
        self.table.put(entry)
        if entry.node != self.node:
            self.remember(entry)
            self.give_way(entry)

    def remember(self, entry: Entry) -> None:
        """Its client gets the same ports, should it come here."""
        for point in entry.points:
            if isinstance(point, int) and (port := self.pool.ports.get(point)) is not None:
                self.pool.remember(port, entry.key)

    def give_way(self, entry: Entry) -> None:
        """Another node has a claim: what we hold of the same, with an older fence, is not ours any more."""
        keys = {self._held_points.get(point) for point in entry.points} | {entry.key}
        for key in keys:
            held = None if key is None else self.held.get(key)
            if (
                key is not None
                and held is not None
                and not held.lost
                and held.claim.fence < entry.fence
            ):
                self.lose(key, moved=key == entry.key)

    def lose(self, key: LeaseKey, *, moved: bool) -> None:
        """Another node holds what we do, with a higher fence: the client itself (`moved`) or its group, or one of its ports or names for somebody else."""
        held = self.held.get(key)
        if held is None or held.lost:
            return
        held.lost = True
        if moved and self.is_offered:
            log.info("a client has gone to another node", user=key[0], ports=held.claim.points)
            self.on_moved(key)
        else:
            log.warning(
                "another node has what was held here",
                user=key[0],
                ports=held.claim.points,
                fence=held.claim.fence,
            )
            if moved and not is_group(key):
                self.on_evict(key, _MOVED, vacant_only=False)
            else:
                self.on_lost(key, _GROUP_MOVED if moved else _TAKEN)


def _check_length(wish: Wish) -> None:
    """Check that Redis can hold such a claim. Raises RefusedError."""
    if sum(len(service.hostname or "65535") + 1 for service in wish.services) > MOST_OF_POINTS:
        raise RefusedError(
            RefusalCode.TOO_MANY_SERVICES,
            f"{counted(len(wish.services), 'service')} asked for, whose names are longer than the {MOST_OF_POINTS} bytes"
            " that a cluster holds of one client: spread them over several clients",
        )


def _name(node: bytes) -> str:
    """Read a node's name; none where it is nonsense."""
    try:
        return NODE.read(node.decode())
    except ValueError:
        return ""


def _whole(text: bytes) -> int:
    return int(text) if text.isdigit() and len(text) <= 15 else 0


def _away() -> RefusedError:
    return RefusedError(
        RefusalCode.STORE_UNAVAILABLE,
        "this server cannot agree with the others of its cluster now; try again",
    )
