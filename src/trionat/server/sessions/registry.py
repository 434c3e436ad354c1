"""Which sessions are up."""

from __future__ import annotations

from functools import partial
from itertools import count
from typing import TYPE_CHECKING

import attrs
import trio

from trionat.log import bind_context
from trionat.protocol.messages import CloseCode
from trionat.server.sessions.session import CUT_OFF
from trionat.signals import Signal

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator
    from contextlib import AbstractContextManager

    from trionat.server.admission.lease import Lease
    from trionat.server.sessions.session import Session


@attrs.define(eq=False)
class Sessions:
    """Runs sessions, each in the task of its control connection, within what `accounted` gives for it. `by_uid` has those that are up.

    `uids` are the numbers of those to come.
    """

    accounted: Callable[[Session], AbstractContextManager[None]]
    uids: Iterator[int] = attrs.field(factory=lambda: count(1))
    by_uid: dict[int, Session] = attrs.field(init=False, factory=lambda: {})
    _ended: Signal = attrs.field(init=False, factory=Signal)

    async def run(self, lease: Lease, open_session: Callable[[int, Lease], Session]) -> None:
        """Run a session, made from a uid and a lease that no session uses, to its end.

        There is no checkpoint before it uses the lease. Afterwards the lease is vacant, and given up for the reason of a session that ended for good.
        """
        session = open_session(next(self.uids), lease)
        lease.occupy(
            session.uid,
            partial(session.end, CloseCode.EVICTED),
            partial(session.end, CloseCode.STOPPED),
        )
        self.by_uid[session.uid] = session
        bind_context(session=session.uid)
        trio.lowlevel.current_task().name = f"session {session.uid} of {session.username}"
        end = CUT_OFF
        try:
            with self.accounted(session):
                end = await session.run()
        finally:
            del self.by_uid[session.uid]
            if end.goodbye:
                lease.give_up(end.text)
            lease.vacate()
            self._ended.notify()

    async def wait_none(self) -> None:
        """Wait until no session is up."""
        while self.by_uid:
            await self._ended.wait()

    async def wait_gone(self, uids: Collection[int]) -> None:
        """Wait until none of these sessions is up."""
        while not self.by_uid.keys().isdisjoint(uids):
            await self._ended.wait()
