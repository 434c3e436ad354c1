"""Which sessions are up."""

from __future__ import annotations

from functools import partial
from itertools import count
from typing import TYPE_CHECKING, Any, Final

import attrs
import trio

from trionat.log import bind_context
from trionat.protocol.messages import CloseCode
from trionat.server.events.event import session_back, session_ended, session_lost, session_up
from trionat.server.events.hub import Hub
from trionat.server.sessions.session import CUT_OFF
from trionat.signals import Signal

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator
    from contextlib import AbstractContextManager

    from trionat.server.admission.lease import Lease
    from trionat.server.sessions.session import Session, SessionEnd
    from trionat.server.tally import Tally

TO_LET_GO: Final = 5.0
"""Seconds for all sessions to end before another process takes over: it takes milliseconds, and nobody is accepted meanwhile. Those that have not are cut off then."""


@attrs.define(eq=False)
class Sessions:
    """Runs sessions, each in the task of its control connection, within what `accounted` gives for it. `by_uid` has those that are up.

    `uids` are the numbers of those to come; with a `tally` they are counted there. `events` is told of all.
    """

    accounted: Callable[[Session], AbstractContextManager[None]]
    uids: Iterator[int] = attrs.field(factory=lambda: count(1))
    tally: Tally | None = None
    events: Hub = attrs.field(factory=Hub, kw_only=True)
    by_uid: dict[int, Session] = attrs.field(init=False, factory=lambda: {})
    _ended: Signal = attrs.field(init=False, factory=Signal)

    async def run(self, lease: Lease, open_session: Callable[[int, Lease], Session]) -> None:
        """Run a session, made from a uid and a lease that no session uses, to its end.

        There is no checkpoint before it uses the lease. Afterwards the lease is vacant, and given up for the reason of a session that ended for good.
        """
        session = open_session(next(self.uids), lease)
        is_back = lease.vacant_since is not None
        lease.occupy(
            session.uid,
            partial(session.end, CloseCode.EVICTED),
            partial(session.end, CloseCode.STOPPED),
        )
        self.by_uid[session.uid] = session
        bind_context(session=session.uid)
        trio.lowlevel.current_task().name = f"session {session.uid} of {session.username}"
        if self.tally is not None:
            self.tally.begin_session(session.uid)
        end = CUT_OFF
        try:
            with self.accounted(session):
                if self.events.is_on:  # behind the session itself: a parent finds out whose it is
                    self.events.publish(
                        (session_back if is_back else session_up)(**_facts(session))
                    )
                end = await session.run()
        finally:
            del self.by_uid[session.uid]
            if self.tally is not None:
                tunnels = session.tunnels
                self.tally.end_session(
                    session.uid, session.username, tunnels.received, tunnels.sent
                )
            if self.events.is_on:
                self._tell_end(session, end)
            if end.goodbye:
                lease.give_up(end.text)
            lease.vacate()
            self._ended.notify()

    def _tell_end(self, session: Session, end: SessionEnd) -> None:
        lease, facts = session.lease, _facts(session)
        facts["seconds"] = round(trio.current_time() - session.since, 3)
        facts["relayed"] = session.tunnels.relayed
        if end.goodbye or lease.given_up or lease.released:
            self.events.publish(session_ended(code=end.code, reason=end.text, **facts))
            return

        def tell_gone(reason: str) -> None:
            self.events.publish(session_ended(code="gone", reason=reason, **facts))

        lease.on_gone = tell_gone
        self.events.publish(session_lost(code=end.code, reason=end.text, **facts))

    async def wait_none(self) -> None:
        """Wait until no session is up."""
        while self.by_uid:
            await self._ended.wait()

    async def let_go(self) -> None:
        """End all sessions as if their clients were lost, and wait until none is up; there may be some that come up meanwhile."""
        while self.by_uid:
            for session in list(self.by_uid.values()):
                session.let_go()
            await self._ended.wait()

    async def wait_gone(self, uids: Collection[int]) -> None:
        """Wait until none of these sessions is up."""
        while not self.by_uid.keys().isdisjoint(uids):
            await self._ended.wait()


def _facts(session: Session) -> dict[str, Any]:
    """Return what events say of a session."""
    return {
        "uid": session.uid,
        "user": session.username,
        "client": session.client_name,
        "address": str(session.address),
        "points": session.lease.point_ids,
    }
