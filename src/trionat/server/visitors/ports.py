"""The pool of visit ports: opened once at start, kept open, lent to one lease after another."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING

import attrs

from trionat.config.values import PORTS
from trionat.errors import RefusedError
from trionat.protocol.messages import RefusalCode
from trionat.text import counted

if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Iterator, Sequence

    from trionat.protocol.messages import ServiceRequest
    from trionat.server.visitors.group import Group
    from trionat.server.visitors.queue import VisitorQueue

# User name, and the client's name for itself; or, where it has none, its host and a number.
LeaseKey = tuple[str, str | tuple[str, int]]


@attrs.define(eq=False)
class VisitPort:
    """One public port. A visitor goes to the queue of the lease that holds it, or to its group; with none, it is closed at once."""

    number: int
    queue: VisitorQueue | Group | None = None
    service: int = 0
    last_holder: LeaseKey | None = None


def _by_number(ports: Iterable[VisitPort]) -> dict[int, VisitPort]:
    return {port.number: port for port in ports}


def _has(numbers: Iterable[int], count: int) -> bool:
    """Tell whether there are so many; looks at no more of them."""
    return sum(1 for _ in islice(numbers, count)) == count


@attrs.define(eq=False)
class PortPool:
    """Which ports are free, the one that has been free for the longest time first. Those that are held `elsewhere` are not."""

    ports: dict[int, VisitPort] = attrs.field(converter=_by_number)
    elsewhere: Container[int] = ()
    _free: dict[int, VisitPort] = attrs.field(init=False)
    _unused: dict[int, VisitPort] = attrs.field(init=False)
    _last_held: dict[LeaseKey, dict[int, VisitPort]] = attrs.field(init=False, factory=lambda: {})

    def __attrs_post_init__(self) -> None:
        self._free = dict(self.ports)
        self._unused = dict(self.ports)

    @property
    def free(self) -> int:
        """How many ports are free."""
        return sum(number not in self.elsewhere for number in self._free)

    def is_free(self, number: int) -> bool:
        """Tell whether nobody has this port."""
        return number in self._free

    def check(
        self, services: Sequence[ServiceRequest], allowed: Container[int] | None = None
    ) -> None:
        """Refuse what waiting would never make possible; `allowed` are the only ports that the user may have, if not None.

        Raises:
            RefusedError: more services than ports, or a port that this server does not offer or the user may not have.
        """
        offered = (
            self.ports.keys() if allowed is None else set(filter(allowed.__contains__, self.ports))
        )
        if not offered:
            raise RefusedError(
                RefusalCode.PORT_NOT_OFFERED,
                "this server offers none of the visit ports that this account may have",
            )
        if len(services) > len(offered):
            has = "this server has" if allowed is None else "this account may have"
            raise RefusedError(
                RefusalCode.TOO_MANY_SERVICES,
                f"{counted(len(services), 'service')} asked for, and {has} {counted(len(offered), 'visit port')}"
                f" ({PORTS.write(sorted(offered))})",
            )
        for service in services:
            if service.visit_port is not None and service.visit_port not in offered:
                whom = "" if allowed is None else " to this account"
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
        allowed: Container[int] | None = None,
    ) -> tuple[VisitPort, ...] | None:
        """Return a free port for each service, or None while there are too few: then trying again later helps.

        A client gets the ports that it names, else the ones that it had before where they are free, else those that nobody
        has used for the longest time. Where the user may have the `allowed` ones alone, nobody waits for them.

        Raises:
            RefusedError: a port that a service names is taken, or too many of the allowed ones are.
        """
        elsewhere = self.elsewhere
        # No copy: there may be thousands, and those held elsewhere are the last ones (`remember`).
        free = (number for number in self._free if number not in elsewhere)
        if not _has(free, len(services)):
            return None

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

    def give_back(self, ports: Iterable[VisitPort]) -> None:
        """The ports are free again, at once."""
        for port in ports:
            port.queue = None
            self._free[port.number] = port
            if port.last_holder is not None:  # among its own it is the last one by now
                held = self._last_held[port.last_holder]
                held[port.number] = held.pop(port.number)
