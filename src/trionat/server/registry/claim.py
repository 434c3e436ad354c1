"""A wish for ports, and the claim that it becomes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import attrs

from trionat.config.values import PORTS
from trionat.errors import RefusedError, TrionatError
from trionat.protocol.messages import RefusalCode
from trionat.text import counted

if TYPE_CHECKING:
    from collections.abc import Sequence

    from trionat.protocol.messages import ServiceRequest
    from trionat.server.visitors.ports import LeaseKey, PointId
    from trionat.store.base import Limits

GROUP_NUMBER: Final = -1
"""In place of a legacy client's number."""


def group_key(user: str, group: str) -> LeaseKey:
    """Return the key of a user's group, which no client can have as its own."""
    return user, (f"group {group}", GROUP_NUMBER)


def is_group(key: LeaseKey) -> bool:
    """Tell whether a key is a group's."""
    return isinstance(key[1], tuple) and key[1][1] == GROUP_NUMBER


@attrs.frozen(kw_only=True)
class Wish:
    """What a client asks for: a visit port or a name for each service, under the key of its user and identity. All names are whole ones by now.

    `limits` are those of the user's account: the ports that it may have, and how many sessions at once. `group` is with which of the user's clients it
    shares its ports.
    """

    key: LeaseKey
    services: tuple[ServiceRequest, ...]
    limits: Limits
    group: str | None = None

    @property
    def ports_key(self) -> LeaseKey:
        """As whose the ports are remembered: its own, or its group's."""
        return self.key if self.group is None else group_key(self.key[0], self.group)

    @property
    def ports_wanted(self) -> int:
        """How many visit ports it takes."""
        return sum(service.has_port for service in self.services)

    def check_fits(self, points: Sequence[PointId]) -> None:
        """Check that the client can share those ports and names of its group.

        Raises:
            RefusedError: it has other services or wants other ports or names, or its user may not have them any more.
        """
        if len(self.services) != len(points):
            raise RefusedError(
                RefusalCode.PORT_TAKEN,
                f"the group {self.group} has {counted(len(points), 'service')}, and this client {len(self.services)}",
            )
        for point, service in zip(points, self.services, strict=True):
            if not service.fits(point):
                here = point if isinstance(point, str) else f"visit port {point}"
                raise RefusedError(
                    RefusalCode.NAME_TAKEN if isinstance(point, str) else RefusalCode.PORT_TAKEN,
                    f"the group {self.group} is at {here}, and not at {service.hostname or service.visit_port or 'a port'}",
                )
        ports = [point for point in points if isinstance(point, int)]
        allowed = self.limits.visit_ports
        if allowed is not None and not all(number in allowed for number in ports):
            raise RefusedError(
                RefusalCode.PORT_TAKEN,
                f"the group {self.group} is at {PORTS.write(sorted(ports))}, which this account may not have any more",
            )


@attrs.frozen(kw_only=True)
class Claim:
    """A wish that was granted: `holder` has these ports and names, one for each service in their order, and one session slot; all claims of a group share both.

    `fence` only grows: of two claims of one key, or of one port or name, the higher one is right. `holder` is the word by which a process is
    known (its route); empty where there is only one.
    """

    wish: Wish
    points: tuple[PointId, ...]
    fence: int
    holder: str

    @property
    def key(self) -> LeaseKey:
        """Whose it is."""
        return self.wish.key

    @property
    def ports(self) -> tuple[int, ...]:
        """The visit ports among its points."""
        return tuple(point for point in self.points if isinstance(point, int))


class TakenError(TrionatError):
    """Another process holds the key; `holder` is its word."""

    def __init__(self, holder: str) -> None:
        super().__init__(f"another process holds it: {holder}")
        self.holder = holder
