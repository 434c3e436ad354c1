"""A server without sockets and its clients: clients, visitors and tunnels over endpoints in memory."""

from __future__ import annotations

from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import attrs
import trio

from tests.unit.memory import CAPACITY, MemoryEndpoint, echo, receive_some
from trionat.address import TCPAddress, UnixAddress
from trionat.client.forwarder import Forwarder
from trionat.client.native.tunnel_pool import TunnelPool
from trionat.config.server import ServerConfig
from trionat.config.service import Service
from trionat.errors import PeerError
from trionat.log import get_logger
from trionat.protocol.dialect import Dialect
from trionat.protocol.frames import encode_frame
from trionat.protocol.messages import (
    CAPABILITIES,
    GROUPS,
    Attach,
    Begin,
    Demand,
    Early,
    Expose,
    Hello,
    Message,
    Ping,
    Pong,
    ServiceRequest,
    Welcome,
)
from trionat.protocol.ticket import ticket_token
from trionat.protocol.tunnel_frames import DATA_ID, END_FRAME, Open, TunnelFrame, TunnelReader
from trionat.relay.client_tunnel import LocalServiceError
from trionat.server.accounts.accounts import Accounts
from trionat.server.accounts.traffic import Traffic
from trionat.server.admission.authenticator import LocalAuthenticator
from trionat.server.admission.bans import Bans
from trionat.server.admission.leases import Leases
from trionat.server.admission.queue import Admission
from trionat.server.control.context import ServerContext
from trionat.server.control.legacy_login import LegacyLogin
from trionat.server.control.native_login import NativeLogin
from trionat.server.sessions.registry import Sessions
from trionat.server.state_folder import StateFolder
from trionat.server.visitors.ports import PortPool, VisitPort
from trionat.server.visitors.visitor import Visitor
from trionat.store.base import Limits, User
from trionat.store.journal import Journal
from trionat.transport.channel import Channel
from trionat.transport.isolation import isolated

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Collection

    from tests.unit.conftest import Tidy
    from trionat.server.control.login import Login
    from trionat.server.sessions.session import Session
    from trionat.server.tally import Tally
    from trionat.store.base import Flush
    from trionat.transport.endpoint import Endpoint

MessageT = TypeVar("MessageT", bound=Message)

log = get_logger("trionat.tests.server")

HOST = "192.0.2.7"
TICKET_KEY = bytes(32)
SALT = bytes(16)


class MemoryStore:
    """Accounts in a dictionary; only what sessions ask for."""

    def __init__(self, *names: str) -> None:
        self.users = {name: make_user(name) for name in names}
        self.month: dict[str, int] = {}

    async def find_user(self, name: str) -> User | None:
        await trio.lowlevel.checkpoint()
        return self.users.get(name)

    async def find_users(self, names: Collection[str]) -> dict[str, User]:
        await trio.lowlevel.checkpoint()
        return {name: self.users[name] for name in names if name in self.users}

    async def monthly_traffic(
        self, month: str, names: Collection[str], pending: Flush | None = None
    ) -> dict[str, int]:
        await trio.lowlevel.checkpoint()
        return {name: self.month[name] for name in names if name in self.month}

    def limit(self, name: str, **limits: object) -> None:
        """As `trionat user limit` does."""
        self.users[name] = attrs.evolve(self.users[name], limits=Limits(**limits))  # type: ignore[arg-type]


def make_user(name: str, expires_at: datetime | None = None) -> User:
    return User(
        name=name,
        password="no password opens it",
        ticket_salt=SALT,
        expires_at=expires_at,
        created_at=datetime(2026, 1, 1, tzinfo=UTC),
        account_id=1,
    )


@attrs.define(eq=False)
class MemoryServer:
    """A server: its real logins, admission, ports, queues and sessions."""

    config: ServerConfig
    tidy: Tidy
    admission: Admission
    context: ServerContext
    traffic: Traffic
    stopping: trio.Event
    nursery: trio.Nursery
    clients: list[MemoryClient] = attrs.field(factory=list)
    outside: list[MemoryEndpoint] = attrs.field(factory=list)
    _numbers: count[int] = attrs.field(factory=lambda: count(1))

    def connect(
        self, capacity: int = CAPACITY, *, dialect: Dialect = Dialect.NATIVE, host: str = HOST
    ) -> MemoryEndpoint:
        """Return the far end of a new connection, encrypted already where the dialect is."""
        far, near = self.tidy.pair(capacity)
        self.outside.append(far)
        address = TCPAddress(host, next(self._numbers))
        login = (
            NativeLogin(self.context, near, address, lambda: None)
            if dialect is Dialect.NATIVE
            else LegacyLogin(self.context, near, address, lambda: None, dialect=dialect)
        )
        self.nursery.start_soon(self._serve, login)
        return far

    async def _serve(self, login: Login) -> None:
        with isolated(log, "connection closed"):
            await login.serve()

    def client(
        self, identity: str = "client", *, capacity: int = CAPACITY, **hello: object
    ) -> MemoryClient:
        """Return a client that is connected and has said nothing yet."""
        client = MemoryClient(self, Channel(self.connect(capacity)), identity, hello)
        self.clients.append(client)
        self.nursery.start_soon(client.listen)
        return client

    async def welcome(
        self,
        identity: str = "client",
        *services: int | None,
        idle_tunnels: int = 0,
        capacity: int = CAPACITY,
        group: str | None = None,
    ) -> MemoryClient:
        """Return a client whose session is up."""
        client = self.client(identity, capacity=capacity)
        await client.ask(*services, idle_tunnels=idle_tunnels, group=group)
        client.welcome = await client.hear(Welcome)
        return client

    def visit(self, port: int, capacity: int = CAPACITY, early: bytes = b"") -> MemoryEndpoint:
        """Return the far end of a visitor's connection to a visit port."""
        far, near = self.tidy.pair(capacity)
        self.outside.append(far)
        if early:
            assert far.send(early) == len(early)
        visited = self.admission.leases.ports.ports[port]
        if visited.queue is None:
            near.close()
        else:
            visited.queue.put(
                Visitor(
                    number=next(self._numbers),
                    endpoint=near,
                    address=TCPAddress("198.51.100.9", 1234),
                    service=visited.service,
                    visited=TCPAddress("public.example", port),
                    tally=self.context.tally,
                )
            )
        return far

    @property
    def sessions(self) -> list[Session]:
        return list(self.context.sessions.by_uid.values())

    def counted(self) -> dict[str, int]:
        """Return the bytes that are counted so far, by user; the server has no store to bring them to."""
        self.traffic._count()
        return self.traffic.journal.unsettled()

    async def drain(self) -> None:
        """The planned stop, in the order of `serve`."""
        self.stopping.set()
        self.admission.drain()
        await self.context.sessions.wait_none()


@asynccontextmanager
async def open_memory_server(
    tidy: Tidy,
    ports: int = 2,
    store: MemoryStore | None = None,
    tally: Tally | None = None,
    **settings: object,
) -> AsyncIterator[MemoryServer]:
    """Run a server with the visit ports 60001, 60002, ... until the end of the block; then everybody goes home."""
    numbers = tuple(range(60001, 60001 + ports))
    config = ServerConfig(visit_port=numbers, start_auth=store is not None, **settings)  # type: ignore[arg-type]
    leases = Leases(config, PortPool([VisitPort(number) for number in numbers]))
    admission = tidy.watch(Admission(config, leases, config.other_servers))
    state = StateFolder(folder=Path("unused"), fingerprint=bytes(32), ticket_key=TICKET_KEY)
    stopping = trio.Event()
    traffic = Traffic(state.folder, store or MemoryStore(), Journal(), lambda: datetime.now(UTC))  # type: ignore[arg-type]
    accounts = Accounts(state, store, traffic)  # type: ignore[arg-type]
    bans = Bans(config.ban_after, config.ban_time)
    context = ServerContext(
        config=config,
        authenticator=LocalAuthenticator(accounts, bans),
        refusals=leases.refusals,
        bans=bans,
        leases=leases,
        admission=admission,
        sessions=Sessions(traffic.accounted, tally=tally),
        stopping=stopping,
        public_host="public.example",
        tally=tally,
    )
    outside: list[MemoryEndpoint] = []
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(admission.run)
            nursery.start_soon(leases.expire_visitors)
            nursery.start_soon(accounts.watch, context.sessions.by_uid)
            server = MemoryServer(
                config, tidy, admission, context, traffic, stopping, nursery, outside=outside
            )
            yield server
            nursery.cancel_scope.cancel()
    finally:
        for endpoint in outside:
            endpoint.close()
    assert not context.sessions.by_uid


@attrs.define(eq=False)
class MemoryClient:
    """A client as far as its control connection goes. It answers pings unless it is `deaf`; `inbox` has all the rest.

    `heard` are all messages, pings too. `on_early` takes what is said about visitors that begin on the control connection. When the server hangs up the inbox ends.
    """

    server: MemoryServer
    channel: Channel
    identity: str = "client"
    hello: dict[str, object] = attrs.field(factory=dict)
    deaf: bool = False
    heard: list[Message] = attrs.field(factory=list)
    welcome: Welcome = attrs.field(init=False)
    ended_at: float | None = None
    on_early: Callable[[Begin | Early], None] | None = None
    _inbox_end: trio.MemorySendChannel[Message] = attrs.field(init=False)
    _inbox: trio.MemoryReceiveChannel[Message] = attrs.field(init=False)
    _scope: trio.CancelScope = attrs.field(factory=trio.CancelScope)

    def __attrs_post_init__(self) -> None:
        self._inbox_end, self._inbox = trio.open_memory_channel[Message](10_000)
        self.channel.allow_control_frames()

    @property
    def endpoint(self) -> MemoryEndpoint:
        assert isinstance(self.channel.endpoint, MemoryEndpoint)
        return self.channel.endpoint

    @property
    def port(self) -> int:
        return self.welcome.ports[0]

    async def listen(self) -> None:
        with self._inbox_end, self._scope, suppress(PeerError, OSError, trio.ClosedResourceError):
            while True:
                message = await self.channel.receive()
                self.heard.append(message)
                if isinstance(message, Ping) and not self.deaf:
                    await self.channel.send(Pong(message.number))
                elif isinstance(message, Begin | Early) and self.on_early is not None:
                    self.on_early(message)
                elif isinstance(
                    message, Begin
                ):  # it has heard of the visitor, and says nothing about it
                    await self.channel.send(Early(Open.decode(message.open).visitor, 0, b""))
                elif not isinstance(message, Ping | Pong):
                    self._inbox_end.send_nowait(message)
        if not self._scope.cancelled_caught:
            self.ended_at = trio.current_time()
            self.endpoint.close()

    async def say(self, *messages: Message) -> None:
        for message in messages:
            await self.channel.send(message)

    async def ask(
        self,
        *services: int | None,
        idle_tunnels: int = 0,
        preferred: int | None = None,
        group: str | None = None,
    ) -> None:
        """Say HELLO and EXPOSE; each of `services` is the port that it must have, or None."""
        hello = {
            "username": "anybody",
            "identity": self.identity,
            "name": "MemoryClient",
            **({} if group is None else {"capabilities": (*CAPABILITIES, GROUPS)}),
        } | self.hello
        requests = tuple(
            ServiceRequest(visit_port=port, preferred_port=preferred)
            for port in services or (None,)
        )
        await self.say(
            Hello(**hello),  # type: ignore[arg-type]
            Expose(services=requests, idle_tunnels=idle_tunnels, group=group),
        )

    async def hear(self, kind: type[MessageT]) -> MessageT:
        """Return the next message, which must be of this kind; a DEMAND may come at any time."""
        message = await self._inbox.receive()
        while isinstance(message, Demand) and kind is not Demand:
            message = await self._inbox.receive()
        assert isinstance(message, kind), message
        return message

    async def hear_end(self) -> None:
        """Wait until the server hangs up without another word."""
        with suppress(trio.EndOfChannel):
            while isinstance(message := await self._inbox.receive(), Demand):
                pass
            raise AssertionError(f"{message} instead of the end")

    def pending(self) -> list[Message]:
        """Return what was heard and not looked at."""
        messages: list[Message] = []
        with suppress(trio.WouldBlock, trio.EndOfChannel):
            while True:
                messages.append(self._inbox.receive_nowait())
        return messages

    def hang_up(self) -> None:
        self.endpoint.close()

    def vanish(self) -> None:
        """Fall silent, and leave the connection open."""
        self._scope.cancel()

    async def ping(self) -> None:
        """Let itself be heard, for ever."""
        while True:
            await trio.sleep(2.5)
            with suppress(PeerError, trio.ClosedResourceError):
                await self.say(Ping(0))

    async def attach(self, capacity: int = CAPACITY) -> MemoryEndpoint:
        """Return the wire of a new tunnel of this session."""
        wire = self.server.connect(capacity)
        await Channel(wire).send(Attach(self.welcome.uid, self.welcome.secret))
        return wire

    def pool(self, forwarder: Forwarder, least_idle: int = 1, limit: int = 100) -> TunnelPool:
        """Return a real client's pool of tunnels for this session; it runs until the server ends."""
        pool = TunnelPool(self.attach, forwarder, limit, least_idle)
        self.server.nursery.start_soon(pool.run)
        return pool


class Wire:
    """The client's end of a tunnel in the test's hands."""

    def __init__(self, wire: MemoryEndpoint) -> None:
        self.wire = wire
        self.reader = TunnelReader()

    async def next(self) -> bytes | TunnelFrame:
        while (event := self.reader.next()) is None:
            piece = await receive_some(self.wire)
            assert piece, "the wire has ended"
            self.reader.feed(memoryview(piece))
        return bytes(event) if isinstance(event, memoryview) else event

    async def opened(self) -> Open:
        """Return the OPEN that comes next."""
        frame = await self.next()
        assert isinstance(frame, Open)
        return frame

    def data(self, data: bytes) -> None:
        self.wire.send(encode_frame(DATA_ID, data))

    def end(self) -> None:
        self.wire.send(END_FRAME)


async def raw_tunnel(client: MemoryClient) -> Wire:
    wire = Wire(await client.attach())
    await trio.testing.wait_all_tasks_blocked()
    return wire


@attrs.define(eq=False)
class MemoryForwarder(Forwarder):
    """Connects to a local service in memory, which `serve` is: by default it echoes."""

    tidy: Tidy = attrs.field(kw_only=True)
    nursery: trio.Nursery = attrs.field(kw_only=True)
    serve: Callable[[MemoryEndpoint], Awaitable[None]] = attrs.field(default=echo, kw_only=True)
    refusals: list[str] = attrs.field(factory=list, kw_only=True)
    capacity: int = attrs.field(default=CAPACITY, kw_only=True)

    async def check(self) -> None:
        """It is there."""
        await trio.lowlevel.checkpoint()

    async def open(self, number: int, *_: object) -> Endpoint:
        await trio.lowlevel.checkpoint()
        if number >= len(self.services):
            raise LocalServiceError("there is no such service")
        if self.refusals:
            raise LocalServiceError(self.refusals.pop(0))
        near, far = self.tidy.pair(self.capacity)
        self.nursery.start_soon(self._serve, far)
        return near

    async def _serve(self, endpoint: MemoryEndpoint) -> None:
        try:
            await self.serve(endpoint)
        finally:
            endpoint.close()


def forwarder(
    tidy: Tidy,
    nursery: trio.Nursery,
    serve: Callable[[MemoryEndpoint], Awaitable[None]] = echo,
    *refusals: str,
) -> MemoryForwarder:
    services = (Service(local=UnixAddress("/in/memory")),)
    return MemoryForwarder(
        services, 5.0, tidy=tidy, nursery=nursery, serve=serve, refusals=list(refusals)
    )


def token_of(name: str) -> bytes:
    """The credential of an account's ticket."""
    return ticket_token(TICKET_KEY, name, SALT)
