"""The pool of visit ports: opened once at start, kept open, lent to one lease after another."""

from __future__ import annotations

from abc import ABC, abstractmethod
from itertools import islice
from typing import TYPE_CHECKING

import attrs

from trionat.config.values import HTTPS_PORT, PORTS
from trionat.errors import RefusedError
from trionat.protocol.messages import PublishKind, RefusalCode
from trionat.server.visitors.approvals import Approvals
from trionat.server.visitors.figures import RequestCounter
from trionat.server.visitors.restrictions import Restrictions
from trionat.signals import Signal
from trionat.text import counted

if TYPE_CHECKING:
    from collections.abc import Collection, Container, Iterable, Iterator, Sequence

    from trionat.config.server import ServerConfig
    from trionat.protocol.messages import Publish, ServiceRequest
    from trionat.server.visitors.group import Group
    from trionat.server.visitors.queue import VisitorQueue

# User name, and the client's name for itself; or, where it has none, its host and a number.
LeaseKey = tuple[str, str | tuple[str, int]]

PointId = int | str
"""A visit port, or a name."""


@attrs.define(eq=False, kw_only=True)
class VisitPoint(ABC):
    """Where visitors come in: a visit port, or a name. A visitor goes to the queue of the lease that holds it, or to its group; with none, it is sent away at once.

    `service` is the number of the service, for its client. `publish` says what speaks for that there, if anything does, and `restrictions` who may visit it then; `requests` counts those that we see.
    """

    queue: VisitorQueue | Group | None = None
    service: int = 0
    publish: Publish | None = None
    restrictions: Restrictions | None = None
    requests: RequestCounter | None = None
    last_holder: LeaseKey | None = None

    def take_publish(self, publish: Publish | None) -> None:
        """This is how its service is published from now on. What was counted and approved stays as long as it is published: a client that comes back salts its password anew.

        Raises:
            ValueError: it cannot be.
        """
        if publish == self.publish:
            return
        if publish is None:
            self.restrictions = self.requests = None
        else:
            before = self.restrictions
            approvals = Approvals() if before is None else before.approvals
            self.restrictions = Restrictions(publish, approvals)
            self.requests = self.requests or RequestCounter()
        self.publish = publish

    @property
    @abstractmethod
    def id(self) -> PointId:
        """The number of a port, or a name."""


@attrs.define(eq=False)
class VisitPort(VisitPoint):
    """One public port."""

    number: int

    @property
    def id(self) -> int:
        """See `VisitPoint`."""
        return self.number


@attrs.define(eq=False)
class VirtualHost(VisitPoint):
    """A name, in small letters, by which requests or ClientHellos find a service. There is one for each that somebody has now, or is about to have: `is_held` tells."""

    name: str
    is_held: bool = attrs.field(init=False, default=False)

    @property
    def id(self) -> str:
        """See `VisitPoint`."""
        return self.name


def public_url(point: VisitPoint, config: ServerConfig) -> str | None:
    """Return where visitors find a service that is published by name; None for one that is only at a visit port."""
    publish = point.publish
    if publish is None or config.domain is None:
        return None
    if publish.kind is PublishKind.HTTPS:
        return f"https://{_bracketed(config.domain)}:{point.id}"
    name = _bracketed(str(point.id))
    if publish.kind is PublishKind.TLS:
        return f"tls://{name}{config.url_port or f':{HTTPS_PORT}'}"
    return f"https://{name}{config.url_port}"


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _by_number(ports: Iterable[VisitPort]) -> dict[int, VisitPort]:
    return {port.number: port for port in ports}


def _has(numbers: Iterable[int], count: int) -> bool:
    """Tell whether there are so many; looks at no more of them."""
    return sum(1 for _ in islice(numbers, count)) == count


def name_taken(name: str) -> RefusedError:
    """Return the refusal of a client that wants a name which another client of its user has."""
    return RefusedError(
        RefusalCode.NAME_TAKEN, f"{name} is in use by another client of this account"
    )


@attrs.define(eq=False)
class PortPool:
    """Which ports are free, the one that has been free for the longest time first, and which names somebody has. What is held `elsewhere` is not free.

    `names_changed` is notified when a name was taken, or given back.
    """

    ports: dict[int, VisitPort] = attrs.field(converter=_by_number)
    elsewhere: Container[PointId] = ()
    names: dict[str, VirtualHost] = attrs.field(init=False, factory=lambda: {})
    names_changed: Signal = attrs.field(init=False, factory=Signal)
    _free: dict[int, VisitPort] = attrs.field(init=False)
    _unused: dict[int, VisitPort] = attrs.field(init=False)
    _leaving: dict[int, VisitPort] = attrs.field(init=False, factory=lambda: {})
    _last_held: dict[LeaseKey, dict[int, VisitPort]] = attrs.field(init=False, factory=lambda: {})

    def __attrs_post_init__(self) -> None:
        self._free = dict(self.ports)
        self._unused = dict(self.ports)

    def add(self, numbers: Iterable[int]) -> None:
        """There are more ports from now on."""
        for number in numbers:
            assert number not in self._leaving, "asked before"  # noqa: S101 - two would have it
            port = VisitPort(number)
            self.ports[number] = self._free[number] = self._unused[number] = port

    def remove(self, numbers: Iterable[int]) -> None:
        """There are fewer: nobody gets these any more. One that somebody has is leaving until it is given back."""
        for number in numbers:
            port = self.ports.pop(number)
            self._unused.pop(number, None)
            if self._free.pop(number, None) is None:
                self._leaving[number] = port
            if port.last_holder is not None:
                held = self._last_held[port.last_holder]
                del held[number]
                if not held:
                    del self._last_held[port.last_holder]

    def is_leaving(self, number: int) -> bool:
        """Tell whether somebody still has this port, which was taken away: until then it cannot be added again."""
        return number in self._leaving

    @property
    def free(self) -> int:
        """How many ports are free."""
        return sum(number not in self.elsewhere for number in self._free)

    def is_free(self, number: int) -> bool:
        """Tell whether nobody has this port."""
        return number in self._free

    def check(
        self,
        services: Sequence[ServiceRequest],
        allowed: Collection[int] | None = None,
        who: str = "account",
    ) -> None:
        """Refuse what waiting would never make possible; `allowed` are the only ports that the user, or `who` it is for people, may have, if not None.

        Raises:
            RefusedError: more services than ports, or a port that this server does not offer or the user may not have.
        """
        services = [service for service in services if service.has_port]
        if not services:
            return
        offered = self.ports.keys() if allowed is None else self.ports.keys() & frozenset(allowed)
        if not offered:
            raise RefusedError(
                RefusalCode.PORT_NOT_OFFERED,
                f"this server offers none of the visit ports that this {who} may have"
                if allowed
                else f"this {who} may have no visit port at all",
            )
        if len(services) > len(offered):
            has = "this server has" if allowed is None else f"this {who} may have"
            raise RefusedError(
                RefusalCode.TOO_MANY_SERVICES,
                f"{counted(len(services), 'service')} asked for, and {has} {counted(len(offered), 'visit port')}"
                f" ({PORTS.write(sorted(offered))})",
            )
        for service in services:
            if service.visit_port is not None and service.visit_port not in offered:
                whom = "" if allowed is None else f" to this {who}"
                raise RefusedError(
                    RefusalCode.PORT_NOT_OFFERED,
                    f"visit port {service.visit_port} is not one that this server offers{whom}"
                    f" ({PORTS.write(sorted(offered))})",
                )
        wanted = [service.visit_port for service in services if service.visit_port is not None]
        if len(set(wanted)) < len(wanted):
            raise RefusedError(
                RefusalCode.PORT_NOT_OFFERED, "one visit port was asked for by two services"
            )

    def take(
        self,
        services: Sequence[ServiceRequest],
        holder: LeaseKey,
        allowed: Collection[int] | None = None,
    ) -> tuple[VisitPoint, ...] | None:
        """Return a free port for each service that has no name, and the names of the others; or None while there are too few ports: then trying again later helps.

        A client gets the ports that it names, else the ones that it had before where they are free, else those that nobody
        has used for the longest time. Where the user may have the `allowed` ones alone, nobody waits for them.

        Raises:
            RefusedError: a port or a name that a service names is taken, or too many of the allowed ports are.
        """
        wanted = [service for service in services if service.has_port]
        names = [name for service in services if (name := service.hostname) is not None]
        for name in names:
            if name in self.names or name in self.elsewhere:
                raise name_taken(name)
        ports = self._take_ports(wanted, holder, allowed)
        if ports is None:
            return None
        numbered = iter(ports)
        points: list[VisitPoint] = []
        for service in services:
            if (name := service.hostname) is None:
                point: VisitPoint = next(numbered)
            else:
                point = self.names[name] = VirtualHost(name=name, last_holder=holder)
            point.take_publish(service.publish)
            points.append(point)
        return tuple(points)

    def note_held(self, points: Iterable[PointId]) -> None:
        """What `take` gave was claimed by now, with all others that have to agree."""
        for point in points:
            if isinstance(point, str) and (host := self.names.get(point)) is not None:
                host.is_held = True
                self.names_changed.notify()

    def _take_ports(
        self,
        services: Sequence[ServiceRequest],
        holder: LeaseKey,
        allowed: Collection[int] | None = None,
    ) -> tuple[VisitPort, ...] | None:
        elsewhere = self.elsewhere
        # No copy: there may be thousands, and those held elsewhere are the last ones (`remember`).
        free = (number for number in self._free if number not in elsewhere)
        if not _has(free, len(services)):
            return None
        allowed = None if allowed is None else frozenset(allowed)

        def may_have(number: int | None) -> bool:
            return (
                number in self._free
                and number not in elsewhere
                and (allowed is None or number in allowed)
            )

        if allowed is not None and not _has(filter(may_have, self._free), len(services)):
            raise RefusedError(
                RefusalCode.PORT_TAKEN, "the visit ports that this account may have are in use"
            )
        chosen: dict[int, VisitPort] = {}
        for index, service in enumerate(services):
            if service.visit_port is not None:
                if not may_have(service.visit_port):
                    raise RefusedError(
                        RefusalCode.PORT_TAKEN, f"visit port {service.visit_port} is in use"
                    )
                chosen[index] = self._free[service.visit_port]
        taken = {port.number for port in chosen.values()}
        for index, service in enumerate(services):
            preferred = service.preferred_port
            if index in chosen or preferred is None or preferred in taken:
                continue
            if may_have(preferred):
                chosen[index] = self._free[preferred]
                taken.add(preferred)
        others = (
            port
            for port in self._in_order(holder)
            if may_have(port.number) and port.number not in taken
        )
        for index in range(len(services)):
            if index not in chosen:
                chosen[index] = next(others)
        for port in chosen.values():
            self._lend(port, holder)
        return tuple(chosen[index] for index in range(len(services)))

    def _in_order(self, holder: LeaseKey) -> Iterator[VisitPort]:
        """Go through the ports in the order in which a client is to have them. As far as it is gone: there may be thousands."""
        yield from self._last_held.get(holder, {}).values()
        yield from self._unused.values()
        for port in self._free.values():
            if port.last_holder not in (None, holder):
                yield port

    def _lend(self, port: VisitPort, holder: LeaseKey) -> None:
        self.remember(port, holder)
        del self._free[port.number]

    def remember(self, port: VisitPort, holder: LeaseKey) -> None:
        """Somebody has the port now, here or elsewhere: it is the last to be had by others, and the first for the same client."""
        if port.number in self._free:
            self._free[port.number] = self._free.pop(port.number)
        self._unused.pop(port.number, None)
        if port.last_holder is not None:
            held = self._last_held[port.last_holder]
            del held[port.number]
            if not held:
                del self._last_held[port.last_holder]
        port.last_holder = holder
        self._last_held.setdefault(holder, {})[port.number] = port

    def names_in_use(self) -> list[tuple[str, str]]:
        """Return the names that somebody has, each with its user."""
        return [
            (name, host.last_holder[0])
            for name, host in self.names.items()
            if host.last_holder is not None
        ]

    def find(self, point: PointId) -> VisitPoint | None:
        """Return a port that there is, or a name that somebody has here."""
        if isinstance(point, str):
            return self.names.get(point)
        return self.ports.get(point) or self._leaving.get(point)

    def open(self, point: PointId) -> VisitPoint:
        """Return a port, or a name, which somebody has from now on."""
        if isinstance(point, int):
            return self.ports[point]
        if (host := self.names.get(point)) is None:
            host = self.names[point] = VirtualHost(name=point)
            self.names_changed.notify()
        return host

    def close(self, point: VisitPoint) -> None:
        """Nobody here is at a port or name any more, and what was counted and approved there is nobody's. Idempotent."""
        point.queue = point.publish = point.restrictions = point.requests = None
        if isinstance(point, VirtualHost) and self.names.get(point.name) is point:
            del self.names[point.name]
            self.names_changed.notify()

    def give_back(self, points: Iterable[VisitPoint]) -> None:
        """The ports and names are free again, at once."""
        for port in points:
            self.close(port)
            if not isinstance(port, VisitPort):
                continue
            if self._leaving.get(port.number) is port:
                del self._leaving[port.number]
                continue
            self._free[port.number] = port
            if port.last_holder is not None:  # among its own it is the last one by now
                held = self._last_held[port.last_holder]
                held[port.number] = held.pop(port.number)
