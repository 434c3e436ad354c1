"""Whether the server lets this client in: a session of the doctor's own, with a service of its own, for some seconds.

What it takes to look at clocks, versions and firewalls is asked for in the same session. It evicts nobody: its identity is its own.
"""

from __future__ import annotations

import secrets
import time
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Final

import attrs
import trio

from trionat.address import TCPAddress
from trionat.client.forwarder import Forwarder
from trionat.client.native.dialer import ServerDialer
from trionat.client.native.servers import Servers
from trionat.client.native.session import NativeSession
from trionat.client.native.streams import WaitingStreams
from trionat.client.reconnect import foremost
from trionat.config.service import Service
from trionat.doctor.finding import Finding, fine, unknown, warning, wrong
from trionat.doctor.offer import wishes
from trionat.doctor.peer import Peer, Visit
from trionat.errors import PeerError, RefusedError, SessionOverError
from trionat.events import Connected, Queued
from trionat.protocol.messages import CloseCode, RefusalCode
from trionat.transport.isolation import leaves
from trionat.transport.visit import visit

if TYPE_CHECKING:
    from trionat.events import ClientEvent

LOGIN_PATIENCE: Final = 10.0
"""Seconds until the session has to be up; in a full queue nobody waits for longer."""

_EXAMINATION_PATIENCE: Final = 9.0
"""Seconds for the server's visit, which takes at most 5 s."""

SOON: Final = 7 * 86400.0
"""Seconds before a login is void at which that is told. Chosen."""

_VISIT_PATIENCE: Final = 5.0
_GOODBYE: Final = 2.0

PATIENCE: Final = LOGIN_PATIENCE + _EXAMINATION_PATIENCE + _GOODBYE + 5.0

_ASK_OPERATOR: Final = (
    "ask the server's operator for a new ticket (there: trionat user ticket {user})"
)

_RENEW: Final = "at the server: trionat user enable {user} if it is disabled, trionat user expire {user} never if it has expired"
"""One code means both, and only its text says which."""

ADVICE: Final[dict[str, str]] = {
    RefusalCode.AUTH_FAILED: f"the ticket is void, or name or password are wrong: {_ASK_OPERATOR}",
    RefusalCode.ACCOUNT_EXPIRED: _RENEW,
    CloseCode.ACCOUNT_EXPIRED: _RENEW,
    RefusalCode.BANNED: "too many logins have failed from this address: wait, and correct the ticket or password meanwhile",
    RefusalCode.QUOTA_EXCEEDED: "at the server: trionat user limit {user} --quota SIZE (or none), or wait for the next month",
    RefusalCode.STORE_UNAVAILABLE: "the server cannot ask its database: run trionat doctor there",
    RefusalCode.DRAINING: "the server stops: wait until it is up again",
    RefusalCode.UNSUPPORTED_VERSION: "update the older one of the two",
}

NARROWED_EXPIRED: Final = "a new ticket, at the server: trionat user ticket {user}; if it is the account that has run out: trionat user expire {user} never; if it is disabled: trionat user enable {user}"
"""A ticket that was narrowed to a time has mostly run out itself: what prolongs the account is of no use then."""

CANNOT_LOOK: Final[set[str]] = {
    RefusalCode.FULL,
    RefusalCode.TOO_MANY_SESSIONS,
    RefusalCode.PORT_TAKEN,
    RefusalCode.PORT_NOT_OFFERED,
    RefusalCode.NAME_NOT_OFFERED,
}
"""Who is refused so may log in, and the doctor finds no room for a session or a port besides those that are in use."""


@attrs.define(eq=False)
class _Trial:
    """The session, and what has been heard of it."""

    peer: Peer
    changed: trio.Event = attrs.field(init=False, factory=trio.Event)
    over: trio.Event = attrs.field(init=False, factory=trio.Event)
    connected: Connected | None = attrs.field(init=False, default=None)
    position: int | None = attrs.field(init=False, default=None)
    problem: PeerError | None = attrs.field(init=False, default=None)

    def tell(self, event: ClientEvent) -> None:
        if isinstance(event, Queued):
            self.position = event.position or self.position
        elif isinstance(event, Connected):
            self.connected = event
            self.changed.set()

    async def run(self, session: NativeSession) -> None:
        try:
            await session.run()
        except* PeerError as group:
            self.problem = foremost(each for each in leaves(group) if isinstance(each, PeerError))
        finally:
            self.changed.set()
            self.over.set()


async def check_login(peer: Peer) -> list[Finding]:
    """Log in, ask the server what can be seen from there only, and leave."""
    user = peer.server.username or "anybody"
    token = secrets.token_hex(16)

    async def greet(stream: trio.SocketStream) -> None:
        with trio.move_on_after(_VISIT_PATIENCE):  # noqa: ASYNC912 - nothing may be left to send
            try:
                async with stream:
                    await stream.send_all(token.encode())
                    await stream.receive_some(1)  # until the visitor has heard it
            except trio.BrokenResourceError:
                pass

    trial, stopping = _Trial(peer), trio.Event()
    async with trio.open_nursery() as nursery:
        listeners: list[trio.SocketListener] = await nursery.start(
            partial(trio.serve_tcp, greet, 0, host="127.0.0.1")
        )
        port: int = listeners[0].socket.getsockname()[1]
        session = _new_session(peer, port, trial, stopping)
        async with trio.open_nursery() as running:
            running.start_soon(trial.run, session, name="the doctor's session")
            with trio.move_on_after(LOGIN_PATIENCE):
                await trial.changed.wait()
            if trial.connected is not None and trial.problem is None:
                await _look_round(peer, session, trial.connected, token)
                stopping.set()
                with trio.move_on_after(_GOODBYE):
                    await trial.over.wait()
            running.cancel_scope.cancel("all was seen")
        nursery.cancel_scope.cancel("all was seen")
    if trial.connected is None:
        return [_why_not(peer, trial, user)]
    return [fine(f"{peer.control} lets {user} in{_until(peer)}"), *_soon(peer, user)]


def _new_session(peer: Peer, port: int, trial: _Trial, stopping: trio.Event) -> NativeSession:
    server = attrs.evolve(peer.server, pin=peer.pin)
    config = attrs.evolve(
        peer.config,
        group=None,
        min_idle_tunnels=1,
        drain_grace=0.0,
        name="trionat doctor",
    )
    dialer = ServerDialer(
        server, config.connect_timeout, lambda: config.effective_state_dir, ca_file=config.ca_file
    )
    service = Service(local=TCPAddress("127.0.0.1", port), name="trionat doctor")
    return NativeSession(
        config=config,
        forwarder=Forwarder((service,), config.local_timeout),
        tell=trial.tell,
        stopping=stopping,
        servers=Servers((dialer,)),
        identity=f"doctor-{secrets.token_hex(8)}",
        preferred_ports=(None,),
        waiting_streams=WaitingStreams(config.max_tunnels),
    )


async def _look_round(peer: Peer, session: NativeSession, connected: Connected, token: str) -> None:
    """Have the server visit the doctor's service, and visit it from here."""
    peer.welcome = session.welcome

    async def ask_server() -> None:
        with trio.move_on_after(_EXAMINATION_PATIENCE):
            peer.examined = await session.examine(0, token, wishes(peer.services))
            peer.examined_at = time.time()

    public = connected.services[0].public
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask_server, name="ask the server to visit")
        peer.visit = Visit(
            address=public, failure=await visit(public, token.encode(), _VISIT_PATIENCE)
        )


def _why_not(peer: Peer, trial: _Trial, user: str) -> Finding:
    problem = trial.problem
    if problem is None:
        if trial.position is not None:
            return unknown(
                f"all sessions of {peer.control} are taken: number {trial.position} in the queue",
                "a client waits until one is free; at the server, MaxTCPConnNum and VisitPort say how many there are",
            )
        return wrong(
            f"{peer.control} does not answer the login within {LOGIN_PATIENCE:g} s",
            "all its sessions may be taken, or it is overloaded: look at its log",
        )
    code = problem.code if isinstance(problem, RefusedError | SessionOverError) else ""
    text = f"{peer.control} does not let {user} in: {problem}"
    if code in CANNOT_LOOK:
        return unknown(text, "end a client of this user for a moment, and try again")
    advice = ADVICE.get(code, "")
    if code == RefusalCode.ACCOUNT_EXPIRED and _has_an_end(peer):
        advice = NARROWED_EXPIRED
    return wrong(text, advice.format(user=user))


def _until(peer: Peer) -> str:
    """Say how long the login is good, and for what."""
    examined = peer.examined
    parts: list[str] = []
    if examined is not None and examined.expires is not None:
        parts.append(f"until {_date(examined.expires)}")
    if peer.server.caveats:
        parts.append(f"with a ticket that is narrowed: {'; '.join(peer.server.caveats)}")
    return "".join(f", {part}" for part in parts)


def _soon(peer: Peer, user: str) -> list[Finding]:
    """Warn of a login that is void before long; by the server's own clock."""
    examined = peer.examined
    if examined is None or examined.expires is None or examined.expires - examined.time > SOON:
        return []
    if _has_an_end(peer):
        advice = f"a new ticket, at the server: trionat user ticket {user}; if it is the account that runs out: trionat user expire {user} WHEN"
    else:
        advice = f"at the server: trionat user expire {user} WHEN"
    return [warning(f"the login of {user} is void from {_date(examined.expires)} on", advice)]


def _has_an_end(peer: Peer) -> bool:
    """Tell whether the ticket says itself until when it is good."""
    return any(caveat.startswith("until ") for caveat in peer.server.caveats)


def _date(moment: float) -> str:
    try:
        return f"{datetime.fromtimestamp(moment, UTC):%Y-%m-%d %H:%M} UTC"
    except (ValueError, OverflowError, OSError):  # a date that no calendar here has
        return "a day far away"
