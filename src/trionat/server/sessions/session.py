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
    from trionat.address import TCPAddress
    from trionat.config.server import ServerConfig
    from trionat.server.accounts.credential import Credential
    from trionat.server.accounts.limits import UserLimits
    from trionat.server.admission.lease import Lease
    from trionat.server.sessions.tunnels import Tunnels

log = get_logger(__name__)


@attrs.frozen
class SessionEnd:
    """Why a session ended. `tell` says whether the client does not know yet, `goodbye` whether its ports are given back."""

    code: str
    text: str
    tell: bool
    goodbye: bool


CUT_OFF: Final = SessionEnd("cancelled", "the session was cut off", tell=False, goodbye=True)
"""The server is stopped at once, or a bug of ours has ended the session."""


@attrs.define(eq=False, kw_only=True)
class Session(ABC):
    """One client's authenticated control connection and everything that it owns here.

    `run` is all of it: when it returns or is cancelled no task, tunnel or visitor of the session is left. The connection
    belongs to the caller, and so does the lease. `dialect` is for the log.
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
    since: float = attrs.field(init=False, factory=trio.current_time)
    tunnels: Tunnels = attrs.field(init=False)
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
    def _to_move(self) -> float:
        """Seconds that the client is left when this server stops and no visitor is there: to be up at another server first."""
        return 0.0

    @property
    def user_limits(self) -> UserLimits:
        """What all sessions of its user share."""
        return self.lease.queue.user_limits

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
            ports=self.lease.port_numbers,
        )
        try:
            try:
                with self._scope:
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(self._drain_at_stop, name="drain")
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
        self._tell_drain()
        with trio.move_on_after(self.config.drain_grace):
            await self.lease.queue.wait_empty()
            await trio.sleep(self._to_move)
        self.end(CloseCode.STOPPED, "the server stops")

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
