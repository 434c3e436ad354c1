"""What a client holds at the server: a slot, its visit ports, and the visitors that wait.

A lease outlives the control sessions that use it, one after another. When a session is lost the lease is kept for a while, so
that the client which comes back finds its ports and its visitors; when the client says goodbye, it is given back at once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs
import trio

if TYPE_CHECKING:
    from collections.abc import Callable, Container

    from trionat.protocol.messages import ServiceRequest
    from trionat.server.visitors.ports import LeaseKey, VisitPort
    from trionat.server.visitors.queue import VisitorQueue


@attrs.define(eq=False)
class Lease:
    """See the module. `given_up` says that nobody will come back for it, `released` that it is gone for good.

    `services` are those of the session that uses it, or did so last; `vacant_since` is when that one ended.
    """

    key: LeaseKey
    ports: tuple[VisitPort, ...]
    visitors: VisitorQueue
    released: bool = False
    given_up: bool = False
    services: tuple[ServiceRequest, ...] = ()
    vacant_since: float | None = None
    _evict: Callable[[str], None] | None = None
    _changed: trio.Event = attrs.field(factory=trio.Event)

    def __attrs_post_init__(self) -> None:
        for service, port in enumerate(self.ports):
            port.service = service
            port.visitors = self.visitors

    @property
    def occupied(self) -> bool:
        """Whether a session uses it."""
        return self._evict is not None

    @property
    def port_numbers(self) -> tuple[int, ...]:
        """The visit ports, in the order of the client's services."""
        return tuple(port.number for port in self.ports)

    def serves(
        self, services: tuple[ServiceRequest, ...], allowed: Container[int] | None = None
    ) -> bool:
        """Tell whether these services can have just these ports, of a user who may have the `allowed` ones alone."""
        return len(services) == len(self.ports) and all(
            service.visit_port in (None, port.number)
            and (allowed is None or port.number in allowed)
            for service, port in zip(services, self.ports, strict=True)
        )

    def _change(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    def occupy(self, uid: int, evict: Callable[[str], None]) -> None:
        """The session `uid` uses the lease from now on; `evict` ends it, for the reason given."""
        self.visitors.session = uid
        self.vacant_since = None
        self._evict = evict
        self._change()

    def vacate(self) -> None:
        """Its session has ended; visitors that come now wait for the next."""
        self.visitors.session = None
        self.vacant_since = trio.current_time()
        self._evict = None
        self._change()

    def give_up(self) -> None:
        """No client will come back for it: visitors that come now are closed, and it ends with its session."""
        self.given_up = True
        self.visitors.close("the client has left")
        self._change()

    async def wait_vacant(self, reason: str) -> None:
        """Evict whichever session uses the lease, as often as it takes."""
        while self._evict is not None:
            self._evict(reason)
            await self._changed.wait()

    async def wait_end(self, reservation: float) -> None:
        """Return when the lease has stood without a session for `reservation` seconds, or was given up.

        The first session is waited for without a limit: whoever the lease was made for occupies it or gives it up.
        """
        await self._wait_claimed()
        while self.occupied:
            await self._wait_deserted()
            with trio.move_on_after(reservation):
                await self._wait_claimed()

    async def _wait_claimed(self) -> None:
        """Wait until there is a session, or until it is certain that there will be none."""
        while not self.occupied and not self.given_up:
            await self._changed.wait()

    async def _wait_deserted(self) -> None:
        while self.occupied:
            await self._changed.wait()
