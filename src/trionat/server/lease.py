"""What a client holds at the server: a slot, its visit ports, and the visitors that wait.

A lease outlives the control sessions that use it, one after another. When a session is lost the lease is kept for a while, so
that the client which comes back finds its ports and its visitors; when the client says goodbye, it is given back at once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs
import trio

from trionat.log import get_logger
from trionat.protocol.messages import CloseCode

if TYPE_CHECKING:
    from trionat.protocol.messages import ServiceRequest
    from trionat.server.ports import LeaseKey, VisitPort
    from trionat.server.session import Session
    from trionat.server.visitors import VisitorLine

log = get_logger(__name__)


@attrs.define(eq=False)
class Lease:
    """See the module. `session` is the one that uses it now, or None; `released` says that it is gone for good."""

    key: LeaseKey
    ports: tuple[VisitPort, ...]
    line: VisitorLine
    session: Session | None = None
    released: bool = False
    given_up: bool = False
    _changed: trio.Event = attrs.field(factory=trio.Event)

    def __attrs_post_init__(self) -> None:
        for service, port in enumerate(self.ports):
            port.service = service
            port.line = self.line

    @property
    def port_numbers(self) -> tuple[int, ...]:
        """The visit ports, in the order of the client's services."""
        return tuple(port.number for port in self.ports)

    def serves(self, services: tuple[ServiceRequest, ...]) -> bool:
        """Tell whether these services can have just these ports."""
        return len(services) == len(self.ports) and all(
            service.visit_port in (None, port.number)
            for service, port in zip(services, self.ports, strict=True)
        )

    def _change(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    def occupy(self, session: Session) -> None:
        """A session uses the lease from now on."""
        self.session = session
        self._change()

    def vacate(self) -> None:
        """Its session has ended; visitors that come now wait for the next."""
        self.session = None
        self._change()

    def give_up(self) -> None:
        """No client will come back for it: visitors that come now are closed, and it ends with its session."""
        self.given_up = True
        self.line.close("the client has left")
        self._change()

    async def wait_vacant(self, reason: str) -> None:
        """Evict whichever session uses the lease, as often as it takes."""
        while self.session is not None:
            self.session.end(CloseCode.EVICTED, reason)
            await self._changed.wait()

    async def wait_end(self, reservation: float) -> None:
        """Return when the lease has stood without a session for `reservation` seconds, or was given up.

        The first session is waited for without a limit: whoever the lease was made for occupies it or gives it up.
        """
        await self._wait_claimed()
        while self.session is not None:
            await self._wait_deserted()
            with trio.move_on_after(reservation):
                await self._wait_claimed()

    async def _wait_claimed(self) -> None:
        """Wait until there is a session, or until it is certain that there will be none."""
        while self.session is None and not self.given_up:
            await self._changed.wait()

    async def _wait_deserted(self) -> None:
        while self.session is not None:
            await self._changed.wait()
