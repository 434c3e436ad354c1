"""Emptying a server that goes on running: nobody new is let in, and clients go to other servers, some at a time.

A client is told, is up at another server, and says so; only then its session here ends, when the visitors that it has here have gone. One that reaches no
other server stays as it is, with new visitors too, and keeps trying. So nobody is ever cut off to get on with it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import attrs
import trio

from trionat.log import get_logger
from trionat.server.admin.messages import Drained
from trionat.text import counted

if TYPE_CHECKING:
    from trionat.address import TCPAddress
    from trionat.server.control.context import ServerContext
    from trionat.server.sessions.session import Session

log = get_logger(__name__)

_AT_ONCE: Final = 16
"""Clients that are on their way to another server. Chosen: a handshake and a login cost each of the others some milliseconds."""

_PATIENCE: Final = 10.0
"""Seconds after which a client that has not moved holds up the next ones no more."""

_LOOK_AGAIN: Final = 0.1
"""Seconds between two looks at who has moved."""


@attrs.frozen
class _Told:
    """When a client was told to go, and to which servers."""

    since: float
    others: tuple[TCPAddress, ...]


@attrs.define(eq=False)
class Drain:
    """See the module. `begin` may be called again; `run` has to run.

    With `waits`, in a cluster, nobody is sent away before `name_others` was called: a client that comes to another node sooner would end its session here.
    """

    context: ServerContext
    waits: bool = False
    _begun: trio.Event = attrs.field(init=False, factory=trio.Event)
    _told: dict[Session, _Told] = attrs.field(init=False, factory=lambda: {})

    def begin(self) -> None:
        """Let nobody in any more, and begin to send clients elsewhere."""
        if not self._begun.is_set():
            log.info("draining", sessions=len(self.context.sessions.by_uid))
            self.context.admission.close()
            self._begun.set()

    async def run(self) -> None:
        """Send clients elsewhere, once it has begun; until cancelled, since one that was lost may come back for what it has here."""
        await self._begun.wait()
        while True:
            if not self.waits:
                self._tell_next()
            await trio.sleep(_LOOK_AGAIN if self.context.sessions.by_uid else 1.0)

    def name_others(self, others: tuple[TCPAddress, ...]) -> None:
        """Name these servers to clients from now on, also at a planned stop. In a cluster where there are none, nobody is sent away."""
        self.context.admission.elsewhere = others
        self.waits = not others

    def _tell_next(self) -> None:
        others, now = self.context.admission.elsewhere, trio.current_time()
        up = set(self.context.sessions.by_uid.values())
        self._told = {session: told for session, told in self._told.items() if session in up}
        under_way = sum(
            not session.moved.is_set() and now - told.since < _PATIENCE
            for session, told in self._told.items()
        )
        for session in up:
            if under_way >= _AT_ONCE:
                break
            told = self._told.get(session)
            is_stuck = told is not None and not session.moved.is_set() and told.others != others
            if told is None or (is_stuck and now - told.since >= _PATIENCE):
                session.send_elsewhere()
                self._told[session] = _Told(now, others)
                under_way += 1

    def look(self) -> Drained:
        """Return how far it has come."""
        context = self.context
        up = list(context.sessions.by_uid.values())
        return Drained(
            sessions=len(up),
            moved=sum(session.moved.is_set() for session in up),
            visitors=sum(session.lease.queue.present for session in up),
            reserved=sum(not lease.occupied and not lease.given_up for lease in context.leases),
            others=tuple(map(str, context.admission.elsewhere)),
        )


def describe(drained: Drained) -> str:
    """Say in a line who is left."""
    if drained.is_done:
        return "nobody is left"
    parts = [f"{counted(drained.sessions, 'client')} left"]
    if drained.moved:
        parts.append(f"{drained.moved} of them elsewhere by now, with visitors that finish here")
    if drained.visitors:
        parts.append(counted(drained.visitors, "visitor"))
    if drained.reserved:
        parts.append(f"ports of {counted(drained.reserved, 'lost client')} reserved")
    if drained.waits_for is not None:
        parts.append(f"waiting for {drained.waits_for}")
    return ", ".join(parts)
