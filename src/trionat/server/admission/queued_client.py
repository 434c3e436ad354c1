"""An authenticated client that has no session yet; what is the same in all dialects."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

import attrs
import trio

from trionat.log import get_logger
from trionat.server.accounts.scope import Scope
from trionat.signals import Signal

if TYPE_CHECKING:
    from collections.abc import Collection

    from trionat.address import TCPAddress
    from trionat.errors import RefusedError
    from trionat.protocol.messages import ServiceRequest
    from trionat.server.accounts.name_owners import Reservation
    from trionat.server.admission.lease import Lease
    from trionat.server.visitors.ports import LeaseKey, PointId
    from trionat.store.base import Limits

log = get_logger(__name__)


@attrs.define(eq=False, kw_only=True)
class QueuedClient(ABC):
    """Wants a lease; it gets `lease` or `refusal`, or leaves.

    `key` says whose it is, and `account_id` of which account of that user's name; `limits` are its user's, with the ports of `scope`, which says what it may claim. `group` is with which others it shares its ports, `Scope.key_of` its name.
    `reservations` are of names that have become its user's, and that it has not got yet.
    `position` counts from 1; 0 means that it does not stand in the queue. `reclaiming` is round the wait for a lease of its own
    that another connection of it still uses. `follows_routes` says that it can be sent to another process of the server.
    """

    key: LeaseKey
    client_name: str
    address: TCPAddress
    services: tuple[ServiceRequest, ...]
    limits: Limits
    account_id: int = 0
    scope: Scope = attrs.field(factory=Scope)
    follows_routes: bool = False
    group: str | None = None
    reservations: list[Reservation] = attrs.field(init=False, factory=lambda: [])
    since: float = attrs.field(init=False, factory=trio.current_time)
    lease: Lease | None = attrs.field(init=False, default=None)
    refusal: RefusedError | None = attrs.field(init=False, default=None)
    position: int = attrs.field(init=False, default=0)
    reclaiming: trio.CancelScope = attrs.field(init=False, factory=trio.CancelScope)
    changed: Signal = attrs.field(init=False, factory=Signal)

    @abstractmethod
    async def send_position(self) -> None:
        """Tell the client where it stands; called again and again, also when nothing has changed.

        Raises:
            PeerError: the client is gone, or does not read.
        """

    @abstractmethod
    async def listen(self) -> None:
        """Listen to the waiting client for ever.

        Raises:
            PeerError: it has left, or sent what it must not.
        """

    @property
    def answered(self) -> bool:
        """Whether it has a lease, or a refusal."""
        return self.lease is not None or self.refusal is not None

    async def wait_answer(self) -> None:
        """Wait for a lease or a refusal."""
        while not self.answered:
            await self.changed.wait()

    async def wait_news(self, told: int) -> None:
        """Wait until it is answered, or stands elsewhere than the position that it was `told`."""
        while not self.answered and self.position == told:
            await self.changed.wait()

    def settle(self, points: Collection[PointId]) -> None:
        """It has got these names, so that their reservations stand."""
        left = (
            attrs.evolve(each, names=tuple(name for name in each.names if name not in points))
            for each in self.reservations
        )
        self.reservations = [each for each in left if each.names]

    def grant(self, lease: Lease) -> None:
        """Give it a lease."""
        log.debug("client let in", user=self.key[0], ports=lease.point_ids)
        self.lease = lease
        self.changed.notify()

    def refuse(self, refusal: RefusedError) -> None:
        """Send it away. A lease that it was granted in this very moment stays, for the connection that takes its place."""
        log.debug("client refused", user=self.key[0], code=refusal.code, reason=refusal.text)
        self.refusal = refusal
        self.lease = None
        self.reclaiming.cancel("the client was refused")
        self.changed.notify()
