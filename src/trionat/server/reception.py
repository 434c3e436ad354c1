"""What happens to a new connection on the control or tunnel port: who is it, and where does it belong?"""

from __future__ import annotations

from functools import partial
from itertools import count
from typing import TYPE_CHECKING

import attrs
import structlog
import trio

from trionat.errors import PeerError, RefusedError, RemoteProtocolError
from trionat.log import get_logger
from trionat.protocol.dialect import Dialect
from trionat.protocol.messages import (
    Attach,
    CloseCode,
    Expose,
    Hello,
    Message,
    RefusalCode,
    Refused,
)
from trionat.server.accounts import ANONYMOUS
from trionat.server.admission import Applicant
from trionat.server.session import Session
from trionat.transport.channel import Channel
from trionat.transport.deadline import deadline
from trionat.transport.endpoint import close_after_last_words
from trionat.transport.isolation import isolated, leaves
from trionat.transport.tls import accept_tls, peek_dialect

if TYPE_CHECKING:
    import socket
    import ssl
    from collections.abc import Callable, Iterable
    from contextlib import AbstractContextManager

    from trionat.address import TCPAddress
    from trionat.config.schema import ServerConfig
    from trionat.server.accounts import Accounts
    from trionat.server.admission import Admission
    from trionat.transport.endpoint import Endpoint, TLSEndpoint

log = get_logger(__name__)

# Seconds between two log lines about the same shortage.
_COMPLAINT_INTERVAL = 1.0

# How long a peer that we are done with may take to read our last words.
_LAST_WORDS = 1.0


@attrs.define(eq=False)
class Reception:
    """Serves every connection in a task of its own. `sessions` has those that are up, by uid.

    At most `MaxHandshakes` connections may be there of which it is not known yet whose they are.
    """

    config: ServerConfig
    tls: ssl.SSLContext
    accounts: Accounts
    admission: Admission
    stopping: trio.Event
    public_host: str
    sessions: dict[int, Session] = attrs.field(init=False, factory=lambda: {})
    _uids: count[int] = attrs.field(init=False, factory=lambda: count(1))
    _strangers: dict[TCPAddress, trio.CancelScope] = attrs.field(init=False, factory=lambda: {})
    _complained: float = attrs.field(init=False, default=float("-inf"))
    _session_ended: trio.Event = attrs.field(init=False, factory=trio.Event)

    async def wait_no_sessions(self) -> None:
        """Wait until no session is up."""
        while self.sessions:
            self._session_ended = trio.Event()
            await self._session_ended.wait()

    def acceptor(self, nursery: trio.Nursery) -> Callable[[socket.socket, TCPAddress], None]:
        """Return what a listener calls for each connection; it is served in `nursery`."""

        def accept(connection: socket.socket, address: TCPAddress) -> None:
            if len(self._strangers) >= self.config.max_handshakes:
                self._send_oldest_stranger_away()
            scope = self._strangers[address] = trio.CancelScope()
            nursery.start_soon(
                self.receive, connection, address, scope, name=f"connection from {address}"
            )

        return accept

    def _send_oldest_stranger_away(self) -> None:
        """Make room, so that a crowd of silent peers cannot keep those out who have something to say."""
        address = next(iter(self._strangers))
        self._strangers.pop(address).cancel("too many strangers")
        now = trio.current_time()
        if now - self._complained >= _COMPLAINT_INTERVAL:
            self._complained = now
            log.warning(
                "too many connections that have not said who they are: closing the oldest (MaxHandshakes)",
                address=str(address),
                limit=self.config.max_handshakes,
            )

    async def receive(
        self, connection: socket.socket, address: TCPAddress, scope: trio.CancelScope
    ) -> None:
        """Serve one connection from its first byte to its end. Whatever the peer does, only this connection suffers.

        `scope` is cancelled to make room for others, as long as it is not known whose connection it is.
        """
        with isolated(log, "connection closed", address=str(address)), scope:
            try:
                with self._deadline("the TLS handshake"):
                    endpoint = await self._secure(connection)
                await self.serve(endpoint, address)
            finally:
                self._strangers.pop(address, None)

    async def _secure(self, connection: socket.socket) -> TLSEndpoint:
        try:
            dialect = await peek_dialect(connection)
            if dialect is not Dialect.NATIVE:
                raise RemoteProtocolError(
                    f"this port speaks TLS, and the peer spoke {dialect.value}"
                )
        except BaseException:
            connection.close()
            raise
        return await accept_tls(connection, self.tls)

    async def serve(self, endpoint: Endpoint, address: TCPAddress) -> None:
        """Serve one encrypted connection: a control connection until it ends, a tunnel until its session has it.

        Closes the endpoint, unless a session has taken it over.

        Raises:
            PeerError: as a group or bare; what the peer did.
        """
        channel = Channel(endpoint)
        attached = False
        refusals: list[RefusedError] = []
        try:
            match first := await self._expect(channel, "its first message"):
                case Attach():
                    if channel.trailing:
                        raise RemoteProtocolError("bytes behind ATTACH, before any OPEN")
                    attached = self._attach(endpoint, first)
                    if not attached:
                        raise RefusedError(
                            RefusalCode.UNKNOWN_SESSION,
                            "no such session, or it has too many tunnels",
                        )
                case Hello():
                    await self._serve_client(channel, first, address)
                case _:
                    raise RemoteProtocolError(
                        f"{type(first).__name__.upper()} as the first message"
                    )
        except* RefusedError as group:
            refusals = [error for error in leaves(group) if isinstance(error, RefusedError)]
            raise
        finally:
            if not attached:
                with trio.move_on_after(_LAST_WORDS, shield=True):
                    await self._tell(channel, refusals)
                with trio.move_on_after(_LAST_WORDS, shield=True):
                    await close_after_last_words(endpoint, grace=_LAST_WORDS)

    async def _expect(self, channel: Channel, what: str) -> Message:
        with self._deadline(what):
            return await channel.receive()

    def _deadline(self, what: str) -> AbstractContextManager[None]:
        seconds = self.config.handshake_timeout
        return deadline(seconds, f"the peer did not finish {what} within {seconds:g} s")

    def _attach(self, endpoint: Endpoint, attach: Attach) -> bool:
        session = self.sessions.get(attach.uid)
        return session is not None and session.attach(endpoint, attach.secret)

    async def _serve_client(self, channel: Channel, hello: Hello, address: TCPAddress) -> None:
        structlog.contextvars.bind_contextvars(user=hello.username)
        user = await self.accounts.authenticate(hello)
        if user is None:
            hello = attrs.evolve(hello, username=ANONYMOUS)
            structlog.contextvars.bind_contextvars(user=ANONYMOUS)
        self._strangers.pop(address, None)
        if self.stopping.is_set():
            raise RefusedError(RefusalCode.DRAINING, "the server stops")
        channel.allow_control_frames()
        expose = await self._expect(channel, "the list of its services")
        if not isinstance(expose, Expose):
            raise RemoteProtocolError(f"{type(expose).__name__.upper()} instead of EXPOSE")
        lease = await self.admission.admit(Applicant(channel, hello, expose))
        # No checkpoint from here to `occupy`: the lease must not look vacant to anybody else.
        session = Session(
            uid=next(self._uids),
            config=self.config,
            lease=lease,
            channel=channel,
            address=address,
            username=hello.username,
            client_name=hello.name,
            keep_idle=expose.idle_tunnels,
            account_id=0 if user is None else user.account_id,
            stopping=self.stopping,
            public_host=self.public_host,
        )
        lease.occupy(session.uid, partial(session.end, CloseCode.EVICTED))
        self.sessions[session.uid] = session
        structlog.contextvars.bind_contextvars(session=session.uid)
        goodbye = True
        try:
            goodbye = (await session.run()).goodbye
        finally:
            del self.sessions[session.uid]
            lease.vacate()
            if goodbye:
                lease.give_up()
            self._session_ended.set()

    async def _tell(self, channel: Channel, refusals: Iterable[RefusedError]) -> None:
        try:
            for refusal in refusals:
                await channel.send(Refused(code=refusal.code, text=refusal.text))
        except PeerError:
            log.debug("the peer did not hear the refusal")
