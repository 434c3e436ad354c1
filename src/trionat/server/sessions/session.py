"""A control session: one nursery that owns all of it. What is the same in all dialects."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Final

import attrs
import trio

from trionat.errors import PeerError, PeerTimeoutError, RemoteProtocolError
from trionat.log import get_logger
from trionat.protocol.messages import CloseCode
from trionat.transport.isolation import leaves

if TYPE_CHECKING:
    from collections.abc import Callable

    from trionat.address import TCPAddress
    from trionat.config.server import ServerConfig
    from trionat.server.accounts.credential import Credential
    from trionat.server.accounts.limits import UserLimits
    from trionat.server.admission.lease import Lease
    from trionat.server.sessions.tunnels import Tunnels

log = get_logger(__name__)

_TO_MOVE: Final = 5.0
"""Seconds that a client has to be up at another server when this one stops, also where no visitor is there: some tries. Chosen."""

_NEWS: Final = 2.0
"""Seconds within which a node hears that another one has what a client has taken along. It takes some milliseconds, unless the link to Redis has just broken."""


@attrs.frozen
class SessionEnd:
    """Why a session ended. `tell` says whether the client does not know yet, `goodbye` whether its ports are given back."""

    code: str
    text: str
    tell: bool
    goodbye: bool


UPGRADE: Final = "a new process takes the place of this one"

CUT_OFF: Final = SessionEnd("cancelled", "the session was cut off", tell=False, goodbye=True)
"""The server is stopped at once, or a bug of ours has ended the session."""


@attrs.define(eq=False, kw_only=True)
class Session(ABC):
    """One client's authenticated control connection and everything that it owns here.

    `run` is all of it: when it returns or is cancelled no task, tunnel or visitor of the session is left. The connection
    belongs to the caller, and so does the lease. `dialect` is for the log, and `restrictions` as well: the caveats of the ticket that
    the client has logged in with. `elsewhere` are the other servers that the client is told of when this one
    stops, or is drained: then `moved` is set when the client is up at one of them.
    """

    uid: int
    config: ServerConfig
    lease: Lease
    address: TCPAddress
    username: str
    client_name: str
    stopping: trio.Event
    account_id: int = 0
    credential: Credential | None = None
    elsewhere: Callable[[], tuple[TCPAddress, ...]] = lambda: ()
    restrictions: tuple[str, ...] = ()
    since: float = attrs.field(init=False, factory=trio.current_time)
    tunnels: Tunnels = attrs.field(init=False)
    moved: trio.Event = attrs.field(init=False, factory=trio.Event)
    _leaving: trio.Event = attrs.field(init=False, factory=trio.Event)
    _moved_to: str = attrs.field(init=False, default="")
    _scope: trio.CancelScope = attrs.field(init=False, factory=trio.CancelScope)
    _end: SessionEnd | None = attrs.field(init=False, default=None)

    @property
    @abstractmethod
    def dialect(self) -> str:
        """What the client speaks."""

    @property
    def round_trip(self) -> float | None:
        """How long a word to the client and back takes, in seconds; None: not known, or not asked in this dialect."""
        return None

    @property
    def moves(self) -> bool:
        """Whether the client can be up at another server before this session has ended."""
        return False

    def send_elsewhere(self) -> None:
        """The server is drained: the client is to go to another one. One that cannot do so beforehand is sent away when its visitors have gone.

        Called again where there are others by now (`elsewhere`).
        """
        if self._leaving.is_set():
            self._tell_drain()
        self._leaving.set()

    @property
    def user_limits(self) -> UserLimits:
        """What all sessions of its user share."""
        return self.lease.queue.user_limits

    def let_go(self) -> None:
        """End the session as if its client were lost, which comes back at once, and finds what it has at the process that goes on with it."""
        self._finish(SessionEnd("upgrade", UPGRADE, tell=False, goodbye=False))

    def end(self, code: CloseCode, text: str) -> None:
        """End the session from outside, and tell the client why."""
        goodbye = code is not CloseCode.EVICTED
        self._finish(SessionEnd(code, text, tell=True, goodbye=goodbye))

    async def run(self) -> SessionEnd:
        """Run until the client leaves or is lost, or `end` is called; return why."""
        log.info(
            "session up",
            client=self.client_name,
            dialect=self.dialect,
            address=str(self.address),
            ports=self.lease.point_ids,
            **({"restrictions": self.restrictions} if self.restrictions else {}),
        )
        try:
            try:
                with self._scope:
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(self._drain_at_stop, name="drain")
                        nursery.start_soon(self._move_when_asked, name="move")
                        nursery.start_soon(self.tunnels.run, name="tunnels")
                        self._finish(await self._converse(nursery))
            except* RemoteProtocolError as group:
                self._note(SessionEnd(CloseCode.PROTOCOL, _first(group), tell=True, goodbye=False))
            except* PeerTimeoutError as group:
                self._note(SessionEnd(CloseCode.TIMEOUT, _first(group), tell=True, goodbye=False))
            except* PeerError as group:
                self._note(SessionEnd("lost", _first(group), tell=False, goodbye=False))
            end = self._end or CUT_OFF
            if end.tell:
                await self._tell_end(end)
            return end
        finally:
            end = self._end or CUT_OFF
            log.info(
                "session closed",
                reason=end.text,
                code=end.code,
                dialect=self.dialect,
                visitors=self.tunnels.served,
                bytes=self.tunnels.relayed,
                seconds=round(trio.current_time() - self.since, 3),
            )

    def _note(self, end: SessionEnd) -> None:
        if self._end is None:
            self._end = end

    def _finish(self, end: SessionEnd) -> None:
        self._note(end)
        self._scope.cancel(end.text)

    async def _drain_at_stop(self) -> None:
        await self.stopping.wait()
        if not self._leaving.is_set():  # else the client knows
            self._tell_drain()
        with trio.move_on_after(self.config.drain_grace):
            if self.moves and self.elsewhere():
                with trio.move_on_after(_TO_MOVE):
                    await self.moved.wait()
                    await self._hand_over()
            await self.lease.queue.wait_empty()
        self.end(CloseCode.STOPPED, self._moved_to or "the server stops")

    async def _move_when_asked(self) -> None:
        """End when the client is up at another server, and the visitors that are here have gone."""
        await self._leaving.wait()
        self._tell_drain()
        if self.moves:
            await self.moved.wait()
            await self._hand_over()
        with trio.move_on_after(self.config.drain_grace):
            await self.lease.queue.wait_empty()
        self.end(CloseCode.STOPPED, self._moved_to or "the server is drained")

    async def _hand_over(self) -> None:
        """New visitors go to where the client is by now. Where that is another node, it has the ports already, and the news of it are on their way."""
        self._moved_to = "the client has moved to another server"
        with trio.move_on_after(_NEWS):
            await self.lease.handed_over.wait()
        self.lease.hand_over()

    # -- what the dialects do differently ----------------------------------------------------------------------------

    @abstractmethod
    async def _converse(self, nursery: trio.Nursery) -> SessionEnd:
        """Welcome the client, start in the session's nursery what talks to it, and listen to it until it leaves.

        Raises:
            PeerError: the client is lost, or broke the protocol.
        """

    @abstractmethod
    def _tell_drain(self) -> None:
        """Tell the client that the server stops, soon, without waiting."""

    @abstractmethod
    async def _tell_end(self, end: SessionEnd) -> None:
        """Tell the client why its session has ended, even when cancelled; gives up after a second."""


def _first(group: BaseExceptionGroup[BaseException]) -> str:
    return str(next(leaves(group)))
