"""Where a client becomes a session, whatever it speaks, and which sessions are up."""

from __future__ import annotations

from functools import partial
from itertools import count
from typing import TYPE_CHECKING

import attrs
import trio

from trionat.log import bind_context
from trionat.protocol.messages import CloseCode
from trionat.server.admission.bans import Bans

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from trionat.config.sections import ServerConfig
    from trionat.server.accounts.accounts import Accounts
    from trionat.server.accounts.traffic import Traffic
    from trionat.server.admission.lease import Lease
    from trionat.server.admission.queue import Admission, QueuedClient
    from trionat.server.sessions.session import Session


@attrs.define(eq=False)
class Desk:
    """What every login works with. `sessions` has those that are up, by uid; `public_host` is what clients show as ours.

    `bans` knows where logins keep failing.
    """

    config: ServerConfig
    accounts: Accounts
    admission: Admission
    traffic: Traffic
    stopping: trio.Event
    public_host: str
    bans: Bans = attrs.field(init=False)
    sessions: dict[int, Session] = attrs.field(init=False, factory=lambda: {})
    _uids: count[int] = attrs.field(init=False, factory=lambda: count(1))
    _session_ended: trio.Event = attrs.field(init=False, factory=trio.Event)

    def __attrs_post_init__(self) -> None:
        self.bans = Bans(self.config.ban_after, self.config.ban_time)

    async def run_session(
        self, client: QueuedClient, open_session: Callable[[int, Lease], Session]
    ) -> None:
        """Let an authenticated client in when it is its turn, and run its session, made from a uid and a lease, to the end.

        Raises:
            RefusedError: it cannot be let in.
            PeerError: it has left the queue, or broke the protocol there.
        """
        lease = await self.admission.admit(client)
        # No checkpoint from here to `occupy`: the lease must not look vacant to anybody else.
        session = open_session(next(self._uids), lease)
        lease.occupy(session.uid, partial(session.end, CloseCode.EVICTED))
        self.sessions[session.uid] = session
        bind_context(session=session.uid)
        trio.lowlevel.current_task().name = f"session {session.uid} of {session.username}"
        goodbye = True
        try:
            with (
                self.bans.guest(session.address.host),
                self.traffic.metered(session.username, lambda: session.tunnels.relayed),
            ):
                goodbye = (await session.run()).goodbye
        finally:
            del self.sessions[session.uid]
            lease.vacate()
            if goodbye:
                lease.give_up()
            self._session_ended.set()
            self._session_ended = trio.Event()

    async def wait_no_sessions(self) -> None:
        """Wait until no session is up."""
        while self.sessions:
            await self._session_ended.wait()

    async def wait_gone(self, uids: Collection[int]) -> None:
        """Wait until none of these sessions is up."""
        while not self.sessions.keys().isdisjoint(uids):
            await self._session_ended.wait()
