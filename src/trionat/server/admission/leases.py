"""Which leases exist, who gets one back, and when they end. All of it is plain state that changes between two checkpoints."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

import attrs
import trio

from trionat.errors import RefusedError, RemoteProtocolError
from trionat.log import get_logger
from trionat.protocol.messages import MAX_SERVICES, RefusalCode
from trionat.relay.send_buffer import SendMemory
from trionat.server.accounts.limits import LiveLimits
from trionat.server.admission.lease import Lease
from trionat.server.admission.naming import Naming
from trionat.server.refusals import RefusalCounters
from trionat.server.registry.claim import Claim, Wish, group_key, is_group
from trionat.server.registry.local import LocalRegistry
from trionat.server.registry.table import ClaimTable
from trionat.server.visitors.group import Groups
from trionat.server.visitors.queue import VisitorQueue
from trionat.signals import AutoResetEvent

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Container, Iterator, Sequence

    from trionat.config.server import ServerConfig
    from trionat.protocol.messages import ServiceRequest
    from trionat.server.accounts.name_owners import Reservation
    from trionat.server.admission.queued_client import QueuedClient
    from trionat.server.registry.registry import Registry
    from trionat.server.visitors.ports import LeaseKey, PointId, PortPool, VisitPoint
    from trionat.server.visitors.visitor import Visitor

log = get_logger(__name__)

_TAKE_BACK: Final = 2.0
"""Seconds for the store to forget names that a client has not got. It takes milliseconds, and a client that is refused waits for it."""


def _in_this_process(leases: Leases) -> Registry:
    return LocalRegistry(ClaimTable(leases.config.session_limit, leases.ports))


def _point_of(service: ServiceRequest, points: Sequence[PointId]) -> PointId | None:
    """Return which of these ports and names a service asks for, if it does."""
    wanted = service.visit_port if service.has_port else service.hostname
    return wanted if wanted in points else None


def _close(visitor: Visitor) -> None:
    """There is no such process."""
    visitor.endpoint.close()
    visitor.gone()


class NameOwners(Protocol):
    """Who knows whose names are."""

    async def reserve(self, user: str, account_id: int, names: Sequence[str]) -> Reservation:
        """Make all of them the account's, or none.

        Raises:
            RefusedError: one is somebody else's, or nobody can be asked now.
        """
        ...

    async def take_back(self, reservation: Reservation) -> None:
        """Forget what was new with a reservation, if that can be done now."""
        ...


@attrs.define(eq=False)
class Leases:
    """Every lease is a claim in the registry (one session slot, and its ports; those of a group share both) until it is released.

    `ports` are the visit ports of this process; where the registry is in it as well, which it is unless given, they are its pool. `by_key` has
    the leases that exist; `live_limits` what their users may have; `changed` is notified when slots and ports are free
    again, or will be in a while, and when a client leaves the queue. `pass_on` brings a visitor to the process that has its port by now.
    While it `is_at_rest`, since another process is about to go on with all of them, nothing expires.
    """

    config: ServerConfig
    ports: PortPool
    refusals: RefusalCounters = attrs.field(factory=RefusalCounters)
    registry: Registry = attrs.field(
        default=attrs.Factory(_in_this_process, takes_self=True), kw_only=True
    )
    pass_on: Callable[[Visitor], None] = attrs.field(kw_only=True, default=_close)
    owners: NameOwners | None = attrs.field(kw_only=True, default=None)
    naming: Naming = attrs.field(init=False)
    by_key: dict[LeaseKey, Lease] = attrs.field(init=False, factory=lambda: {})
    _claims: dict[LeaseKey, Claim] = attrs.field(init=False, factory=lambda: {})
    groups: Groups = attrs.field(init=False, factory=Groups)
    live_limits: LiveLimits = attrs.field(init=False, factory=LiveLimits)
    send_memory: SendMemory = attrs.field(init=False)
    changed: AutoResetEvent = attrs.field(init=False, factory=AutoResetEvent)
    is_at_rest: bool = attrs.field(init=False, default=False)

    def __attrs_post_init__(self) -> None:
        self.naming = Naming(self.config.domain)
        self.send_memory = SendMemory(self.config.resume_memory_total)
        self.registry.on_free = self.changed.notify
        self.registry.on_evict = self.evict
        self.registry.on_lost = self.lose
        self.registry.on_moved = self.hand_over

    def take_config(self, config: ServerConfig) -> None:
        """This one counts from now on; what a client has at once, from its next session on."""
        self.config = config
        self.send_memory.limit = config.resume_memory_total
        self.changed.notify()  # there may be more slots and ports, and leases may end sooner

    def __iter__(self) -> Iterator[Lease]:
        return iter(list(self.by_key.values()))

    @property
    def free_slots(self) -> int:
        """How many more sessions there may be."""
        return self.registry.free_slots

    def has_room(self, key: LeaseKey) -> bool:
        """Tell whether there may be a session of this client."""
        return self.registry.has_room(key)

    async def joins(self, client: QueuedClient) -> bool:
        """Tell whether the client's group is there, here or at another process, so that it needs neither a slot nor ports.

        Raises:
            RefusedError: it cannot be found out now.
        """
        if client.group is None:
            return False
        user = client.key[0]
        return (
            self.groups.find(user, client.group) is not None
            or await self.registry.holder(group_key(user, client.group)) is not None
        )

    async def grant(self, client: QueuedClient) -> Lease | None:
        """Return a new lease for a client that has none, or None where too few slots or ports are free. No checkpoint where the registry is in this process.

        Raises:
            TakenError: another process holds its key, or its group.
            RefusedError: a port that it names is taken, or too many of those that its user may have are, or it does not fit its group.
        """
        group = self.groups.find(client.key[0], client.group)
        if group is not None and len(group) >= (most := self.config.max_group_clients):
            raise RefusedError(
                RefusalCode.FULL,
                f"the group {group.name} has all the clients that it may have at once ({most}, MaxGroupClients)",
            )
        choices = self.naming.choices(client.services, client.key, client.group, client.scope)
        refusal: RefusedError | None = None
        for services in choices:
            try:
                await self._reserve(client, services)
                claim = await self.registry.claim(
                    Wish(
                        key=client.key,
                        services=services,
                        limits=client.limits,
                        group=client.group,
                    )
                )
            except RefusedError as error:
                if error.code != RefusalCode.NAME_TAKEN:
                    raise
                refusal = error  # perhaps of a name that nobody has asked for: there are others
                await self.take_back(client)
            else:
                if claim is None:
                    return None
                client.settle(claim.points)
                return self.open(claim)
        assert refusal is not None, "there is a choice at least"  # noqa: S101 - for type checkers
        raise refusal

    def check_services(
        self, client: QueuedClient, services: Sequence[ServiceRequest]
    ) -> tuple[ServiceRequest, ...]:
        """Return services with whole names, where they ask for one.

        Raises:
            RefusedError: the client asks for what this server does not have, or what its user may not have.
        """
        whole = self.naming.whole(services, client.scope)
        self.ports.check(whole, client.limits.visit_ports, client.scope.who)
        if len(whole) > self.config.max_services:
            raise RefusedError(
                RefusalCode.TOO_MANY_SERVICES,
                f"{len(whole)} services asked for, {self.config.max_services} allowed (MaxServices)",
            )
        return whole

    def refusal_of(self, client: QueuedClient, services: Sequence[ServiceRequest]) -> str:
        """Return why this client would be refused for good if it asked for these services alone, or nothing; nobody gets them, and who has them now does not count."""
        try:
            whole = self.check_services(client, services)
            next(self.naming.choices(whole, client.key, client.group, client.scope))
        except RefusedError as refusal:
            return refusal.text
        return ""

    def can_change(self, lease: Lease) -> bool:
        """Tell whether the services of a lease can change within a session."""
        return self.registry.amends and lease.group is None

    async def change(
        self,
        client: QueuedClient,
        lease: Lease,
        removed: Collection[int],
        added: tuple[ServiceRequest, ...],
    ) -> tuple[VisitPoint, ...]:
        """Take services of a client away, by their numbers, and give it others, all or nothing; return where these are. One that comes for a port or name of one that goes gets just that.

        Raises:
            RefusedError: that cannot be; all is as before.
            RemoteProtocolError: there is no such service.
        """
        places = {point.service: place for place, point in enumerate(lease.points)}
        if missing := [number for number in removed if number not in places]:
            raise RemoteProtocolError(f"CHANGE without a service {missing[0]}")
        if len(removed) == len(places) and not added:
            raise RefusedError(RefusalCode.NAME_NOT_OFFERED, "no service would be left")
        if lease.next_number + len(added) > MAX_SERVICES:
            raise RefusedError(RefusalCode.TOO_MANY_SERVICES, "too many changes in one session")
        kept = [place for number, place in places.items() if number not in removed]
        stay = tuple(lease.services[place] for place in kept)
        held = tuple(lease.point_ids[place] for place in kept)
        free = [lease.point_ids[places[number]] for number in removed]
        whole = self.check_services(client, (*stay, *added))
        refusal: RefusedError | None = None
        for services in self.naming.choices(whole[len(kept) :], client.key, None, client.scope):
            try:
                await self._reserve(client, services)
                self._check_there(lease)
                new = tuple(_point_of(service, free) for service in services)
                claim = self.registry.amend(
                    self._claims[lease.key], (*whole[: len(kept)], *services), (*held, *new)
                )
            except RefusedError as error:
                refusal = error
                await self.take_back(client)
                if refusal.code != RefusalCode.NAME_TAKEN:
                    break
            except BaseException:  # the session ends meanwhile
                await self.take_back(client)  # noqa: ASYNC102 - shielded there, for a while
                raise
            else:
                if claim is None:
                    await self.take_back(client)
                    raise RefusedError(RefusalCode.PORT_TAKEN, "no visit port is free")
                return self._settle(client, lease, claim, len(kept))
        assert refusal is not None, "there is a choice at least"  # noqa: S101 - for type checkers
        raise refusal

    def _check_there(self, lease: Lease) -> None:
        if lease.given_up or lease.released or lease.handed_over.is_set():
            raise RefusedError(RefusalCode.DRAINING, "the session ends")

    def _settle(
        self, client: QueuedClient, lease: Lease, claim: Claim, kept: int
    ) -> tuple[VisitPoint, ...]:
        self._claims[lease.key] = claim
        client.settle(claim.points)
        points = tuple(map(self.ports.open, claim.points))
        lease.change(claim.wish.services, points, kept)
        log.info("services have changed", ports=lease.point_ids, user=lease.key[0])
        self.changed.notify()
        return points[kept:]

    async def _reserve(self, client: QueuedClient, services: Sequence[ServiceRequest]) -> None:
        """Have the client's user own its names, for a while after they were used last.

        Raises:
            RefusedError: somebody else does, or nobody can be asked now.
        """
        already = {name for reservation in client.reservations for name in reservation.names}
        names = [
            name
            for service in services
            if (name := service.hostname) is not None and name not in already
        ]
        if names and self.owners is not None:
            reservation = await self.owners.reserve(client.key[0], client.account_id, names)
            if reservation.names:
                client.reservations.append(reservation)

    async def take_back(self, client: QueuedClient) -> None:
        """Have the client's user not own what it has not got, and did not own before. Cancelling does not keep it from that, but a store that hangs does."""
        reservations, client.reservations = client.reservations, []
        if self.owners is not None and reservations:
            with trio.move_on_after(_TAKE_BACK, shield=True):  # noqa: ASYNC912 - there are some
                for reservation in reservations:
                    await self.owners.take_back(reservation)

    def open(self, claim: Claim) -> Lease:
        """Return the lease of a claim that has none; no session uses it."""
        limits = claim.wish.limits
        user_limits = self.live_limits.take(claim.key[0], limits)
        queue = VisitorQueue(
            self.config.max_waiting_visitors, self.config.max_visitors, user_limits, self.refusals
        )
        memory = SendMemory(self.config.resume_memory, self.send_memory)
        points = tuple(map(self.ports.open, claim.points))
        group = self.groups.open(claim.key[0], claim.wish.group, points)
        lease = Lease(
            claim.key, points, queue, memory, self._idle, self._occupied, self._handed_over, group
        )
        lease.take_services(claim.wish.services)
        self.by_key[lease.key] = lease
        self._claims[lease.key] = claim
        return lease

    def claim_of(self, lease: Lease) -> Claim:
        """Return what a lease is for the registry."""
        return self._claims[lease.key]

    async def restore(
        self, wish: Wish, points: Sequence[PointId], token: str, vacant_for: float
    ) -> Lease | None:
        """Return a lease that another process had, with its ports and names, as of a client that was lost so many seconds ago; None where it cannot be had here.

        Raises:
            RefusedError: the same, with the reason.
        """
        services = tuple(
            service.at(point) for service, point in zip(wish.services, points, strict=True)
        )
        claim = await self.registry.claim(attrs.evolve(wish, services=services))
        if claim is None:
            return None
        lease = self.open(claim)
        lease.services, lease.token = wish.services, token
        lease.vacant_since = trio.current_time() - vacant_for
        self.registry.occupy(claim, occupied=False)
        return lease

    def let_go(self, kept: Container[int] = ()) -> None:
        """Let go of all leases: another process goes on with them by now. Connections of visitors with the `kept` numbers are still somebody's here."""
        for lease in self:
            lease.on_gone = None
            lease.queue.let_go(kept)
            lease.hand_over()

    async def reclaim(self, client: QueuedClient) -> Lease | None:
        """Return the lease that the client has from before, without a session: one that is up is evicted. None: there is none.

        A lease whose ports do not fit the client's services any more is given up. A client that was refused meanwhile, since another
        connection of it has come, touches nothing any more.
        """
        reason = f"a new connection of the same client ({client.client_name})"

        def is_wanted() -> bool:
            return client.refusal is None

        while is_wanted() and (lease := self.by_key.get(client.key)) is not None:
            if lease.given_up or not lease.serves(
                client.services, client.limits.visit_ports, client.group
            ):
                lease.give_up(reason if lease.given_up else "the client came back for other ports")
                await lease.wait_vacant(reason, is_wanted)
                continue
            await lease.wait_vacant(reason, is_wanted)
            if is_wanted() and not lease.released and not lease.given_up:
                return lease
        return None

    def of_user(self, user: str) -> list[Lease]:
        """Return the user's leases."""
        return [lease for lease in self if lease.key[0] == user]

    def expires_at(self, lease: Lease) -> float:
        """Return when a lease that no session uses is released; infinity while one does."""
        if lease.vacant_since is None or lease.occupied:
            return float("inf")
        return lease.vacant_since + self.config.port_reservation

    def expire(self, lease: Lease) -> None:
        """Release a lease if it has stood without a session for `PortReservation`."""
        if not self.is_at_rest and self.expires_at(lease) <= trio.current_time():
            lease.queue.expire_all()
            self.release(lease, "the client did not come back in time")

    async def expire_visitors(self) -> None:
        """Dismiss visitors that have waited for longer than `VisitorWait`, or `ResumeWait`, for ever."""
        while True:
            await trio.sleep(min(0.5, self.config.visitor_wait / 4))
            for lease in () if self.is_at_rest else self:
                lease.queue.expire(
                    wait=self.config.visitor_wait, resume_wait=self.config.effective_resume_wait
                )

    def _idle(self, lease: Lease) -> None:
        """No session uses the lease: it ends now if nobody will come back for it, else by `expire`."""
        if lease.given_up:
            self.release(lease, "the client has left")
        elif not lease.released:
            self.registry.occupy(self._claims[lease.key], occupied=False)
            if lease.group is not None and lease.points[0].queue is not lease.group:
                self._pass_on_new(lease)
            self.changed.notify()

    def _occupied(self, lease: Lease) -> None:
        lease.queue.most_waiting = self.config.max_waiting_visitors
        lease.queue.most_present = self.config.max_visitors
        lease.send_memory.limit = self.config.resume_memory
        self.registry.occupy(self._claims[lease.key], occupied=True)

    def evict(self, key: LeaseKey, reason: str, *, vacant_only: bool) -> None:
        """Another process wants a key: give its lease up, and end the session that uses it. With `vacant_only`, only where none does."""
        lease = self.by_key.get(key)
        if lease is not None and not (vacant_only and lease.occupied):
            lease.give_up(reason)
            lease.evict(reason)

    def take_away(self, ports: Collection[int]) -> None:
        """There are fewer visit ports, or more, from now on: who has one of these is told, comes again, and gets another one."""
        reason = "its visit port was taken away"
        for lease in self:
            if not frozenset(ports).isdisjoint(lease.point_ids):
                lease.give_up(reason)
                lease.send_back(reason)
        self.changed.notify()

    def lose(self, key: LeaseKey, reason: str) -> None:
        """Another process has something of a lease by now, or of all leases of a group: they end, and the clients that use them come again."""
        for lease in self._held_under(key):
            lease.give_up(reason)
            lease.send_back(reason)

    def hand_over(self, key: LeaseKey) -> None:
        """Another process has the key by now, as it was to be: what is here goes on, as long as the session does.

        Where it is a group's, its ports are there, with the first of its clients that has gone. Those that are still here keep their visitors, and get no new ones.
        """
        for lease in self._held_under(key):
            if not is_group(key):
                lease.hand_over()
                continue
            for point in lease.points:
                point.queue = None
            self._pass_on_new(lease)

    def _held_under(self, key: LeaseKey) -> list[Lease]:
        """Return the lease of a client, or all of a group; without those that were handed over."""
        if is_group(key):
            found = [lease for lease in self if lease.ports_key == key]
        else:
            found = [self.by_key[key]] if key in self.by_key else []
        return [lease for lease in found if not lease.handed_over.is_set()]

    def _handed_over(self, lease: Lease) -> None:
        if lease.group is not None:
            lease.group.pass_on(lease.queue)
        self._leave_ports(lease)
        self.registry.release(self._claims.pop(lease.key))
        self._pass_on_new(lease)

    def _pass_on_new(self, lease: Lease) -> None:
        """Its ports are at another process: who waits goes there, unless a session takes care of it."""
        if not lease.occupied:
            for visitor in lease.queue.take_new():
                self.pass_on(visitor)

    def _leave_ports(self, lease: Lease) -> bool:
        """Bring no more visitors to a lease; tell whether its ports are free now, which they are not while others of its group are there."""
        group = lease.group
        if group is not None and not self.groups.leave(lease.key[0], group, lease.queue):
            return False
        for point in lease.points:
            self.ports.close(point)
        return True

    def release(self, lease: Lease, reason: str) -> None:
        """Give back slot and ports, and dismiss the visitors that wait, for that reason. Idempotent."""
        if lease.released:
            return
        lease.released = True
        if lease.on_gone is not None:
            lease.on_gone(reason)
        lease.queue.close(reason)
        self.live_limits.give_back(lease.queue.user_limits)
        del self.by_key[lease.key]
        if not lease.handed_over.is_set():
            user, group = lease.key[0], lease.group
            if self._leave_ports(lease):
                log.info("ports are free again", ports=lease.point_ids, user=user)
            elif group is not None:
                log.info(
                    "a client has left its group", group=group.name, left=len(group), user=user
                )
            self.registry.release(self._claims.pop(lease.key))
        self.changed.notify()
