"""A group: several clients of one user behind the same visit ports, each with a queue of its own.

No checkpoint anywhere, hence no lock.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import attrs

from trionat.errors import RefusedError
from trionat.protocol.messages import RefusalCode

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from trionat.protocol.messages import Publish
    from trionat.server.accounts.limits import UserLimits
    from trionat.server.visitors.ports import VisitPoint
    from trionat.server.visitors.queue import VisitorQueue
    from trionat.server.visitors.visitor import Visitor

_READY: Final = 0

_KEYS: Final = {
    "kind": "Http, Tls, Https",
    "http2": "Http2",
    "basic_auth": "BasicAuth",
    "allow": "Allow",
    "deny": "Deny",
    "rate": "Rate",
    "approve": "Approve",
}
"""How people know what a client says of a service that is published by name."""


@attrs.define(eq=False)
class Group:
    """Stands in the place of a queue at the ports that it holds, and gives each visitor to the client that has the fewest.

    A client whose service is down, that is lost or is full gets visitors only where there is no better one, one that leaves gets none. Of those
    with equally few, it is the turn of the one that has waited longest for one.

    Those that are up say the same about who may visit, passwords aside: each client salts its own, so nobody can tell whether they are the same. What the one
    says counts that has been up for longest.
    """

    name: str
    points: tuple[VisitPoint, ...]
    _queues: dict[VisitorQueue, None] = attrs.field(init=False, factory=lambda: {})
    _said: dict[VisitorQueue, tuple[Publish | None, ...]] = attrs.field(
        init=False, factory=lambda: {}
    )
    _counts: VisitorQueue | None = attrs.field(init=False, default=None)

    def __attrs_post_init__(self) -> None:
        for service, point in enumerate(self.points):
            point.service = service
            point.queue = self

    def __len__(self) -> int:
        """How many clients it has, those that are lost and may come back included."""
        return len(self._queues)

    @property
    def user_limits(self) -> UserLimits:
        """What its user may have; all clients share it."""
        return next(iter(self._queues)).user_limits

    def join(self, queue: VisitorQueue) -> None:
        """A client is one of it from now on."""
        self._queues[queue] = None

    def leave(self, queue: VisitorQueue) -> None:
        """A client is gone for good."""
        del self._queues[queue]
        self._said.pop(queue, None)
        self.settle()

    def check(self, queue: VisitorQueue, publishes: Sequence[Publish | None]) -> None:
        """Check that a client which is about to be up says the same about its services as those that are.

        Raises:
            RefusedError: it does not.
        """
        for other in self._up():
            if other is queue:
                continue
            for point, theirs, its in zip(self.points, self._said[other], publishes, strict=True):
                if keys := _differing(theirs, its):
                    raise RefusedError(
                        RefusalCode.PORT_TAKEN,
                        f"the group {self.name} says otherwise about {point.id} than this client: say the same on all its clients ({keys})",
                    )

    def say(self, queue: VisitorQueue, publishes: tuple[Publish | None, ...]) -> None:
        """This is how a client publishes its services from now on."""
        self._said.pop(queue, None)  # the last one to come up is behind all others
        self._said[queue] = publishes
        self.settle()

    def settle(self) -> None:
        """See how the services are published now that a client has come, or gone. While none is up, it stays as it was."""
        if not self._said:
            return
        counts = next(self._up(), self._counts)
        if counts not in self._said:
            counts = next(reversed(self._said))
        self._counts = counts
        for point, publish in zip(self.points, self._said[counts], strict=True):
            if point.queue is self:  # else others have it by now
                point.take_publish(publish)

    def _up(self) -> Iterator[VisitorQueue]:
        return (queue for queue in self._said if queue.session is not None and queue.open)

    def put(self, visitor: Visitor) -> None:
        """Take a new visitor over; see `VisitorQueue.put`."""
        self._best(visitor.service, self._queues).put(visitor)

    def relieve(self) -> None:
        """A client is up (again): it may serve who waits for those that are lost."""
        for queue in list(self._queues):
            if queue.session is None:
                self.pass_on(queue, begun=True)

    def pass_on(self, queue: VisitorQueue, *, begun: bool = False) -> None:
        """Give visitors that wait there, and with whom its client has not begun, to others that can serve them now.

        `begun`: also those of whom its client can have got nothing; nobody reads from them any more.
        """
        others = [each for each in self._queues if each is not queue]
        for visitor in queue.waiting_visitors:
            stream = visitor.stream
            untouched = stream is None or (
                begun and not (stream.taken or stream.received or stream.failure)
            )
            if not others or not untouched:
                continue
            best = self._best(visitor.service, others)
            if self._rank(best, visitor.service) == _READY:
                queue.withdraw(visitor)
                visitor.stream, visitor.tries = None, 0
                best.put(visitor)

    def _best(
        self, service: int, queues: dict[VisitorQueue, None] | Sequence[VisitorQueue]
    ) -> VisitorQueue:
        best = min(queues, key=lambda queue: (self._rank(queue, service), queue.present))
        self._queues[best] = self._queues.pop(best)  # the others come first now
        return best

    def _rank(self, queue: VisitorQueue, service: int) -> int:
        """Return how well a client can serve a visitor now: the lower, the better."""
        if not queue.open:
            return 4
        if queue.present >= queue.most_present:
            return 3
        if service in queue.down:
            return 2
        return 1 if queue.session is None else _READY


def _differing(theirs: Publish | None, its: Publish | None) -> str:
    """Return in what two clients differ about a service, as far as it can be compared; nothing where they do not."""
    if theirs is None or its is None:
        return "" if theirs is its else _KEYS["kind"]
    one, other = _comparable(theirs), _comparable(its)
    return ", ".join(dict.fromkeys(_KEYS[key] for key in _KEYS if one[key] != other[key]))


def _comparable(publish: Publish) -> dict[str, object]:
    users = sorted(entry.partition(":")[0] for entry in publish.basic_auth)
    networks = {"allow": sorted(publish.allow), "deny": sorted(publish.deny)}
    return {**attrs.asdict(publish), **networks, "basic_auth": users}


@attrs.define(eq=False)
class Groups:
    """Those that there are, by user and name."""

    _by_name: dict[tuple[str, str], Group] = attrs.field(init=False, factory=lambda: {})

    def find(self, user: str, name: str | None) -> Group | None:
        """Return a user's group; None: there is none yet, or no name."""
        return None if name is None else self._by_name.get((user, name))

    def open(self, user: str, name: str | None, points: tuple[VisitPoint, ...]) -> Group | None:
        """Return a user's group, which is made at these ports and names if it is not there yet: a client has to join at once then. None: it has no name."""
        if name is None:
            return None
        if (group := self._by_name.get((user, name))) is None:
            group = self._by_name[user, name] = Group(name, points)
        return group

    def leave(self, user: str, group: Group, queue: VisitorQueue) -> bool:
        """A client is gone for good; tell whether the group is gone with it."""
        group.leave(queue)
        if group:
            return False
        del self._by_name[user, group.name]
        return True
