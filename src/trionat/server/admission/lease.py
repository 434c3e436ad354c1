"""What a client holds at the server: a session slot, its visit ports and names, and the visitors that wait.

A lease outlives the control sessions that use it, one after another. When a session is lost the lease is kept for a while, so
that the client which comes back finds its ports and its visitors; when the client says goodbye, it ends at once.
"""

from __future__ import annotations

import hmac
import secrets
from typing import TYPE_CHECKING, Final

import attrs
import trio

from trionat.server.registry.claim import group_key
from trionat.signals import Signal

if TYPE_CHECKING:
    from collections.abc import Callable, Container

    from trionat.protocol.messages import Publish, ServiceRequest
    from trionat.relay.send_buffer import SendMemory
    from trionat.server.visitors.group import Group
    from trionat.server.visitors.ports import LeaseKey, PointId, VisitPoint
    from trionat.server.visitors.queue import VisitorQueue

_TOKEN_BYTES: Final = 16


def _new_token() -> str:
    return secrets.token_hex(_TOKEN_BYTES)


@attrs.define(eq=False)
class Lease:
    """See the module. Made and released by `Leases`, which `on_idle` tells that no session uses it (any more), and `on_occupied` that one does.

    `given_up` says that nobody will come back for it, `released` that it is gone for good. `services` are those of the session
    that uses it, or did so last; `vacant_since` is when that one ended.

    The ports of a `group` are those of all its leases; a visitor is in the queue of one of them.

    `handed_over` is set when its client is at another server, which has its ports by now, or may have others: the visitors that are here finish, and no
    new ones come. `on_handed_over` is told first. `on_gone` is told why the lease of a client that was lost has ended.

    `token` names the client process whose streams are here: whoever shows it may go on with them. `send_memory` is what they all may hold.
    """

    key: LeaseKey
    points: tuple[VisitPoint, ...]
    queue: VisitorQueue
    send_memory: SendMemory
    on_idle: Callable[[Lease], None] = lambda _: None
    on_occupied: Callable[[Lease], None] = lambda _: None
    on_handed_over: Callable[[Lease], None] = lambda _: None
    group: Group | None = None
    on_gone: Callable[[str], None] | None = attrs.field(init=False, default=None)
    released: bool = attrs.field(init=False, default=False)
    given_up: bool = attrs.field(init=False, default=False)
    services: tuple[ServiceRequest, ...] = attrs.field(init=False, default=())
    vacant_since: float | None = attrs.field(init=False, default=None)
    handed_over: trio.Event = attrs.field(init=False, factory=trio.Event)
    token: str = attrs.field(init=False, repr=False, factory=_new_token)
    _next_number: int = attrs.field(init=False, default=0)
    _evict: Callable[[str], None] | None = attrs.field(init=False, default=None)
    _send_back: Callable[[str], None] | None = attrs.field(init=False, default=None)
    _vacated: Signal = attrs.field(init=False, factory=Signal)

    def __attrs_post_init__(self) -> None:
        if self.group is not None:
            self.group.join(self.queue)
            return
        for service, point in enumerate(self.points):
            point.service = service
            point.queue = self.queue

    @property
    def occupied(self) -> bool:
        """Whether a session uses it."""
        return self._evict is not None

    @property
    def is_reserved(self) -> bool:
        """Whether it is kept for a client that was lost."""
        return self.vacant_since is not None and not self.given_up and not self.released

    @property
    def port_numbers(self) -> tuple[int, ...]:
        """The visit ports, in the order of the client's services; 0 for one that has a name."""
        return tuple(number if isinstance(number, int) else 0 for number in self.point_ids)

    @property
    def point_ids(self) -> tuple[PointId, ...]:
        """The visit ports and names, in the order of the client's services."""
        return tuple(point.id for point in self.points)

    @property
    def names(self) -> tuple[str, ...]:
        """The names, in the order of the services that have one."""
        return tuple(point for point in self.point_ids if isinstance(point, str))

    @property
    def ports_key(self) -> LeaseKey:
        """As whose the registry knows its ports: its own, or its group's."""
        return self.key if self.group is None else group_key(self.key[0], self.group.name)

    def serves(
        self,
        services: tuple[ServiceRequest, ...],
        allowed: Container[int] | None = None,
        group: str | None = None,
    ) -> bool:
        """Tell whether these services can have just these ports and names, of a user who may have the `allowed` ones alone, in the group of that name."""
        if group != (None if self.group is None else self.group.name):
            return False
        return len(services) == len(self.points) and all(
            service.fits(point) and (allowed is None or isinstance(point, str) or point in allowed)
            for service, point in zip(services, self.point_ids, strict=True)
        )

    @property
    def next_number(self) -> int:
        """The number of the next service that comes in this session."""
        return self._next_number

    def change(
        self, services: tuple[ServiceRequest, ...], points: tuple[VisitPoint, ...], kept: int
    ) -> None:
        """These are its services from now on, and where they are; those behind the first `kept` are new, and get the next numbers. Not for a group."""
        for point in self.points:
            if point not in points[:kept]:
                self.queue.drop_service(point.service, "the service was taken away")
        self.points = points
        for point in points[kept:]:
            point.service, point.queue = self._next_number, self.queue
            self._next_number += 1
        self.take_services(services)

    def _renumber(self) -> None:
        """A session begins: its services have the numbers of their places."""
        if self.group is None:
            self.queue.renumber({point.service: place for place, point in enumerate(self.points)})
            for place, point in enumerate(self.points):
                point.service = place
        self._next_number = len(self.points)

    def check_services(self, services: tuple[ServiceRequest, ...]) -> None:
        """Check that a session with these services may be up beside the others of its group.

        Raises:
            RefusedError: they say otherwise who may visit.
        """
        if self.group is not None:
            self.group.check(self.queue, self._published(services))

    def take_services(self, services: tuple[ServiceRequest, ...]) -> None:
        """These are the services of the session that is about to use it."""
        self.services = services
        publishes = self._published(services)
        if self.group is not None:
            self.group.say(self.queue, publishes)
            return
        for publish, point in zip(publishes, self.points, strict=True):
            point.take_publish(publish)

    def _published(self, services: tuple[ServiceRequest, ...]) -> tuple[Publish | None, ...]:
        return tuple(
            attrs.evolve(service.publish, name=point.id)  # it may have asked for none
            if service.publish is not None and isinstance(point.id, str)
            else service.publish
            for service, point in zip(services, self.points, strict=True)
        )

    def occupy(
        self,
        uid: int,
        evict: Callable[[str], None],
        send_back: Callable[[str], None] | None = None,
    ) -> None:
        """The session `uid` uses the lease from now on; `evict` ends it, for the reason given. So does `send_back`, and its client comes again."""
        self._renumber()
        self.queue.session = uid
        self.queue.down = frozenset()
        self.vacant_since = self.on_gone = None
        self._evict = evict
        self._send_back = send_back or evict
        self.on_occupied(self)
        if self.group is not None:
            self.group.settle()
            self.group.relieve()

    def evict(self, reason: str) -> None:
        """End the session that uses the lease, if one does."""
        if self._evict is not None:
            self._evict(reason)

    def send_back(self, reason: str) -> None:
        """End the session that uses the lease, if one does; its client comes again, and gets another lease."""
        if self._send_back is not None:
            self._send_back(reason)

    def resume(self, token: str | None) -> None:
        """Let the session that begins go on with the streams of the one before; without the right token they are reset.

        The client's process is another one then, or has given them up.
        """
        if token is None or not hmac.compare_digest(token.encode(), self.token.encode()):
            self.queue.reset_streams("the client has come back without it")
            self.token = _new_token()

    def vacate(self) -> None:
        """Its session has ended; visitors that come now wait for the next, or go to others of the group."""
        self.queue.session = None
        self.vacant_since = trio.current_time()
        self._evict = self._send_back = None
        self._vacated.notify()
        if self.group is not None:
            self.group.settle()
            self.group.pass_on(self.queue, begun=True)
        self.on_idle(self)

    def drain(self) -> None:
        """The client is leaving, as it says: visitors that come now are closed, those who have begun may finish, and it ends with its session."""
        self.given_up = True
        if self.group is not None:
            self.queue.open = False
            self.group.settle()
            self.group.pass_on(self.queue)
        self.queue.drain("the client is leaving")

    def give_up(self, reason: str) -> None:
        """No client will come back for it: visitors that wait or come now are closed for that reason, and it ends with its session."""
        self.given_up = True
        if self.group is not None and not self.released:
            self.queue.open = False
            self.group.settle()
            self.group.pass_on(self.queue)
        self.queue.close(reason)
        if not self.occupied:
            self.on_idle(self)

    def hand_over(self) -> None:
        """The client is at another server by now: new visitors go there. Idempotent."""
        if not self.handed_over.is_set():
            self.given_up = True
            self.on_handed_over(self)
            self.handed_over.set()
            if not self.occupied:
                self.on_idle(self)

    async def wait_vacant(self, reason: str, is_wanted: Callable[[], bool]) -> None:
        """Evict whichever session uses the lease, as often as it takes, and as long as it is still wanted.

        Whoever has lost his turn while he waited may have been woken already, and must not evict the session of the one who has it.
        """
        while self._evict is not None and is_wanted():
            self._evict(reason)
            await self._vacated.wait()
