"""A control session: one nursery that owns all of it."""

from __future__ import annotations

import hmac
import secrets
from typing import TYPE_CHECKING

import attrs
import trio

from trionat.errors import PeerError, PeerTimeoutError, RemoteProtocolError
from trionat.log import get_logger
from trionat.protocol.messages import (
    SECRET_BYTES,
    Close,
    CloseCode,
    Demand,
    Drain,
    Welcome,
)
from trionat.server.tunnels import Tunnels
from trionat.transport.control import ControlLink
from trionat.transport.isolation import leaves

if TYPE_CHECKING:
    from trionat.address import TCPAddress
    from trionat.config.schema import ServerConfig
    from trionat.server.lease import Lease
    from trionat.transport.channel import Channel
    from trionat.transport.endpoint import Endpoint

log = get_logger(__name__)

# Demand is told again after this, in seconds, while it lasts: the client may have failed to open some tunnels.
_DEMAND_AGAIN = 1.0

# What a client that leaves has sent last is still on its tunnels, which it has closed; CLOSE, on another connection, may be
# faster by this much, in seconds. Whatever else is on a tunnel ends with it and takes no time.
_LAST_BYTES = 1.0

# Tunnels that a session may have beyond its visitors: idle ones.
SPARE_TUNNELS = 64


@attrs.frozen
class SessionEnd:
    """Why a session ended. `tell` says whether the client does not know yet, `goodbye` whether its ports are given back."""

    code: str
    text: str
    tell: bool
    goodbye: bool


# The server is stopped at once, or a bug of ours has ended the session.
_CUT_OFF = SessionEnd("cancelled", "the session was cut off", tell=False, goodbye=True)


@attrs.define(eq=False)
class Session:
    """One client's authenticated control connection and everything that it owns here.

    `run` is all of it: when it returns or is cancelled no task, tunnel or visitor of the session is left. The channel belongs
    to the caller, and so does the lease.
    """

    uid: int
    config: ServerConfig
    lease: Lease
    channel: Channel
    address: TCPAddress
    username: str
    client_name: str
    keep_idle: int
    stopping: trio.Event
    public_host: str = ""
    account_id: int = 0
    since: float = attrs.field(init=False, factory=trio.current_time)
    tunnels: Tunnels = attrs.field(init=False)
    link: ControlLink = attrs.field(init=False)
    _secret: bytes = attrs.field(
        init=False, repr=False, factory=lambda: secrets.token_bytes(SECRET_BYTES)
    )
    _scope: trio.CancelScope = attrs.field(init=False, factory=trio.CancelScope)
    _end: SessionEnd | None = attrs.field(init=False, default=None)

    def __attrs_post_init__(self) -> None:
        self.link = ControlLink(
            self.channel, "the client", self.config.ping_interval, self.config.peer_timeout
        )
        self.tunnels = Tunnels(
            line=self.lease.line,
            limit=self.config.max_visitors + SPARE_TUNNELS,
            keep_idle=self.keep_idle,
        )

    def end(self, code: CloseCode, text: str) -> None:
        """End the session from outside, and tell the client why."""
        goodbye = code is not CloseCode.EVICTED
        self._finish(SessionEnd(code, text, tell=True, goodbye=goodbye))

    def attach(self, wire: Endpoint, secret: bytes) -> bool:
        """Take over a tunnel's wire if the secret is right and there is room; otherwise the caller keeps it."""
        return hmac.compare_digest(secret, self._secret) and self.tunnels.attach(wire)

    async def run(self) -> SessionEnd:
        """Run until the client leaves or is lost, or `end` is called; return why."""
        log.info(
            "session up",
            client=self.client_name,
            address=str(self.address),
            ports=self.lease.port_numbers,
        )
        try:
            try:
                with self._scope:
                    async with trio.open_nursery() as nursery:
                        self.link.post(self._welcome())
                        nursery.start_soon(self.link.run, name="control link")
                        nursery.start_soon(self._tell_demand, name="demand")
                        nursery.start_soon(self._drain_at_stop, name="drain")
                        nursery.start_soon(self.tunnels.run, name="tunnels")
                        self._finish(await self._read())
            except* RemoteProtocolError as group:
                self._note(SessionEnd(CloseCode.PROTOCOL, _first(group), tell=True, goodbye=False))
            except* PeerTimeoutError as group:
                self._note(SessionEnd(CloseCode.TIMEOUT, _first(group), tell=True, goodbye=False))
            except* PeerError as group:
                self._note(SessionEnd("lost", _first(group), tell=False, goodbye=False))
            end = self._end or _CUT_OFF
            if end.tell:
                await self.link.say_last(Close(code=end.code, text=end.text))
            return end
        finally:
            end = self._end or _CUT_OFF
            log.info(
                "session closed",
                reason=end.text,
                code=end.code,
                visitors=self.tunnels.served,
                bytes=self.tunnels.relayed,
                seconds=round(trio.current_time() - self.since, 3),
            )

    def _welcome(self) -> Welcome:
        return Welcome(
            uid=self.uid,
            secret=self._secret,
            ports=self.lease.port_numbers,
            host=self.public_host,
            ping_interval=self.config.ping_interval,
            peer_timeout=self.config.peer_timeout,
            max_tunnels=self.tunnels.limit,
        )

    def _note(self, end: SessionEnd) -> None:
        if self._end is None:
            self._end = end

    def _finish(self, end: SessionEnd) -> None:
        self._note(end)
        self._scope.cancel(end.text)

    # -- the tasks of the nursery ------------------------------------------------------------------------------------

    async def _read(self) -> SessionEnd:
        while True:
            match message := await self.link.receive():
                case Drain(seconds=seconds):
                    log.info("the client is leaving", seconds=seconds)
                    self.lease.give_up()
                case Close(text=text):
                    end = SessionEnd(
                        "left", f"the client has left: {text}", tell=False, goodbye=True
                    )
                    self._note(end)
                    self.lease.give_up()
                    with trio.move_on_after(_LAST_BYTES):
                        await self.lease.line.wait_empty()
                    return end
                case _:
                    raise RemoteProtocolError(
                        f"{type(message).__name__.upper()} from a client in a session"
                    )

    async def _tell_demand(self) -> None:
        line = self.lease.line
        while True:
            if not line.waiting:
                line.wanted = trio.Event()
                await line.wanted.wait()
            if line.waiting:
                self.link.post(Demand(line.waiting))
            line.wanted = trio.Event()
            with trio.move_on_after(_DEMAND_AGAIN):
                await line.wanted.wait()

    async def _drain_at_stop(self) -> None:
        await self.stopping.wait()
        self.link.post(Drain(seconds=self.config.drain_grace))
        with trio.move_on_after(self.config.drain_grace):
            await self.lease.line.wait_empty()
        self.end(CloseCode.STOPPED, "the server stops")


def _first(group: BaseExceptionGroup[BaseException]) -> str:
    return str(next(leaves(group)))
