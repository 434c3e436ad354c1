"""A client at an original server: what it says, what it does for visitors, and how it ends."""

from __future__ import annotations

from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import attrs
import pytest
import trio
import trio.testing

from tests.unit.client_side import CONTROL, TUNNEL, Host, MemoryLegacyServer, Running
from tests.unit.memory import echo, receive_all, receive_exactly, receive_some
from tests.unit.memory_server import MemoryForwarder, forwarder
from trionat.address import TCPAddress, UnixAddress
from trionat.cli.connect import TextEvents
from trionat.client.app import Client
from trionat.client.forwarder import Forwarder
from trionat.client.legacy.dialer import LegacyDialer
from trionat.client.legacy.session import LegacySession
from trionat.config.client import AuthConfig, ClientConfig
from trionat.config.service import Service
from trionat.errors import (
    ConfigError,
    ConnectionLostError,
    PeerError,
    PeerTimeoutError,
    RefusedError,
    RemoteProtocolError,
)
from trionat.events import ClientEvent, Connected, Disconnected, PublicService, Queued
from trionat.protocol.dialect import Dialect
from trionat.protocol.frames import encode_frame
from trionat.protocol.legacy import (
    HEADERS,
    NO_EXPIRY,
    AuthFail,
    AuthSuccess,
    ConnectionFull,
    Credentials,
    KeepAlive,
    LegacyMessage,
    NewConnection,
    Reason,
    Refusal,
    UserInformation,
    encode,
)
from trionat.protocol.messages import RefusalCode
from trionat.server.admin.task_tree import grow, main_task
from trionat.transport.channel import LegacyChannel

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from trio.testing import MockClock

    from tests.unit.conftest import Tidy
    from tests.unit.memory import MemoryEndpoint

DIALECTS = {"nat-v1": Dialect.NAT_V1, "nat-doc": Dialect.NAT_DOC}
CREDENTIALS = Credentials(username="alice", password="geheim")
INFORMATION = UserInformation(7, 60001)
LEGACY = {"controller_addr": CONTROL, "tunnel_server_addr": TUNNEL, "dialect": "nat-v1"}

both = pytest.mark.parametrize("dialect", DIALECTS)


@attrs.define(eq=False)
class ServerSide(Running):
    """A client's session, and the server's end of its control connection in the test's hands."""

    host: Host
    dialect: Dialect
    forwarder: MemoryForwarder
    events: list[ClientEvent]
    nursery: trio.Nursery
    channel: LegacyChannel = attrs.field(init=False)

    async def answer(self) -> LegacyMessage:
        self.channel = LegacyChannel(await self.host.answer(), self.dialect)
        return await self.channel.receive()

    async def say(self, *messages: LegacyMessage) -> None:
        for message in messages:
            await self.channel.send(message)

    async def let_in(self) -> None:
        assert await self.answer() == CREDENTIALS
        await self.say(AuthSuccess(), INFORMATION)
        await trio.testing.wait_all_tasks_blocked()

    async def keep_alive(self) -> None:
        """Do as a server does for a minute, or until it is closed."""
        try:
            for _ in range(60):
                await self.say(KeepAlive())
                await trio.sleep(1)
        except PeerError:
            pass

    async def visit(self) -> MemoryEndpoint:
        """Announce a visitor, and return the server's end of its tunnel, on which only raw bytes are left to come."""
        await self.say(NewConnection())
        tunnel = await self.host.answer(TUNNEL)
        first = encode(INFORMATION, self.dialect)
        assert await receive_exactly(tunnel, len(first)) == first
        return tunnel


@asynccontextmanager
async def open_server_side(
    tidy: Tidy,
    *refusals: str,
    dialect: str = "nat-v1",
    serve: Callable[[MemoryEndpoint], Awaitable[None]] = echo,
    **settings: object,
) -> AsyncIterator[ServerSide]:
    host = Host(tidy, Path())
    events: list[ClientEvent] = []
    async with trio.open_nursery() as nursery:
        made = forwarder(tidy, nursery, serve, *refusals)
        session = LegacySession(
            config=ClientConfig(dialect=dialect, **settings),  # type: ignore[arg-type]
            forwarder=made,
            tell=events.append,
            stopping=trio.Event(),
            server=MemoryLegacyServer(
                control=CONTROL,
                tunnel=TUNNEL,
                dialect=DIALECTS[dialect],
                credentials=CREDENTIALS,
                timeout=10.0,
                host=host,
            ),
        )
        server = ServerSide(session, host, DIALECTS[dialect], made, events, nursery)
        try:
            nursery.start_soon(server.run)
            yield server
        finally:
            host.go()
            nursery.cancel_scope.cancel()


# -- getting in -------------------------------------------------------------------------------------------------------


@both
async def test_comes_in(tidy: Tidy, autojump_clock: MockClock, dialect: str) -> None:
    async with open_server_side(tidy, dialect=dialect) as server:
        started = trio.current_time()
        await server.let_in()
        assert trio.current_time() == started
        assert server.events == [
            Connected(
                uid=7,
                services=(
                    PublicService(
                        name="/in/memory",
                        local=UnixAddress("/in/memory"),
                        public=TCPAddress("server.example", 60001),
                    ),
                ),
                server=CONTROL,
                tunnel=TUNNEL,
                username="alice",
                encrypted=False,
            )
        ]
        assert server.session.ports == (60001,)


async def test_what_the_user_is_told(
    tidy: Tidy, autojump_clock: MockClock, capsys: pytest.CaptureFixture[str]
) -> None:
    async with open_server_side(tidy) as server:
        await server.answer()
        await trio.sleep(3)
        await server.say(INFORMATION)
        await trio.testing.wait_all_tasks_blocked()
        for event in server.events:
            TextEvents()(event)
    told = capsys.readouterr().out.splitlines()
    assert told == [
        "no answer from the server yet: its sessions may all be taken; waiting for one",
        "server.example:60001 -> /in/memory",
        "  server   server.example:8007, logged in as alice, uid 7",
        "  tunnels  server.example:8008, NOT encrypted",
    ]


async def test_the_host_that_the_user_wants_to_be_shown(
    tidy: Tidy, autojump_clock: MockClock
) -> None:
    async with open_server_side(tidy, public_server_addr="shown.example") as server:
        await server.let_in()
        (event,) = server.events
        assert isinstance(event, Connected)
        assert event.services[0].public == TCPAddress("shown.example", 60001)


@pytest.mark.parametrize(
    ("auth", "username", "password"),
    [(AuthConfig(username="u", password="p"), "u", "p"), (AuthConfig(), "", "")],
)
def test_credentials(auth: AuthConfig, username: str, password: str) -> None:
    server = LegacyDialer.of(ClientConfig(**LEGACY), auth)  # type: ignore[arg-type]
    assert server.credentials == Credentials(
        username=username, password=password, uid=0, expiry=NO_EXPIRY
    )
    assert (server.control, server.tunnel) == (CONTROL, TUNNEL)
    assert server.dialect is Dialect.NAT_V1


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"tunnel_server_addr": None}, "nat-v1 needs TunnelServerAddr"),
        ({"controller_addr": None}, "nat-v1 needs ControllerAddr"),
        ({"ticket": "tn1_x"}, "tickets are for the native dialect"),
        ({"services": (Service(local=CONTROL), Service(local=TUNNEL))}, "one service for each"),
    ],
)
def test_what_does_not_go_together(settings: dict[str, object], reason: str) -> None:
    config = ClientConfig(**{**LEGACY, **settings})  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=reason):
        LegacyDialer.of(config, AuthConfig())


async def test_waits_for_a_slot_for_hours_and_says_so_once(
    tidy: Tidy, autojump_clock: MockClock
) -> None:
    async with open_server_side(tidy) as server:
        await server.answer()
        await trio.sleep(1.9)
        assert server.events == []
        await trio.sleep(0.2)
        assert server.events == [Queued(None)]
        await server.say(AuthSuccess())
        await trio.sleep(5 * 3600)
        assert server.events == [Queued(None)]
        assert not server.over.is_set()
        await server.say(INFORMATION)
        await trio.testing.wait_all_tasks_blocked()
        assert isinstance(server.events[-1], Connected)


async def test_what_says_nothing_to_those_who_wait(tidy: Tidy, autojump_clock: MockClock) -> None:
    async with open_server_side(tidy) as server:
        await server.answer()
        await server.say(AuthSuccess(), KeepAlive(), NewConnection(), CREDENTIALS)
        server.channel.endpoint.send(encode_frame(12345, b"?", header=HEADERS[server.dialect]))
        await server.say(INFORMATION)
        await trio.testing.wait_all_tasks_blocked()
        assert isinstance(server.events[-1], Connected)
        assert server.host.waiting() == 0


@pytest.mark.parametrize(
    ("message", "code", "text"),
    [
        (AuthFail(), RefusalCode.AUTH_FAILED, "authentication failed"),
        (ConnectionFull(), RefusalCode.FULL, "the-connection-is-full."),
        (Refusal.of(Reason.USER_NOT_EXIST), RefusalCode.AUTH_FAILED, "user not exist."),
        (Refusal.of(Reason.USER_ALREADY_EXIST), RefusalCode.AUTH_FAILED, "user already exist!"),
        (Refusal.of(Reason.USER_EXPIRED), RefusalCode.ACCOUNT_EXPIRED, "USER_EXPIRED"),
        (Refusal.of(Reason.PASSWORD_INCORRET), RefusalCode.AUTH_FAILED, "password is incorrect"),
    ],
    ids=lambda value: type(value).__name__ + str(getattr(value, "id", "")),
)
@pytest.mark.parametrize("inside", [False, True])
async def test_refusals(
    tidy: Tidy,
    autojump_clock: MockClock,
    message: LegacyMessage,
    code: RefusalCode,
    text: str,
    *,
    inside: bool,
) -> None:
    async with open_server_side(tidy) as server:
        await (server.let_in if inside else server.answer)()
        await server.say(message)
        problem = await server.problem()
        assert isinstance(problem, RefusedError)
        assert problem.code == code
        assert text in problem.text


@both
@pytest.mark.parametrize("how", ["closed", "another dialect", "HTTP", "a port that is none"])
async def test_what_is_no_server_of_this_dialect(
    tidy: Tidy, autojump_clock: MockClock, dialect: str, how: str
) -> None:
    async with open_server_side(tidy, dialect=dialect) as server:
        await server.answer()
        other = Dialect.NAT_DOC if server.dialect is Dialect.NAT_V1 else Dialect.NAT_V1
        wire = {
            "closed": b"",
            "another dialect": encode(AuthSuccess(), other) + encode(INFORMATION, other),
            "HTTP": b"HTTP/1.1 400 Bad Request\r\n\r\n",
            "a port that is none": encode(UserInformation(7, 70000), server.dialect),
        }[how]
        server.channel.endpoint.send(wire)
        server.channel.endpoint.send_eof()
        problem = await server.problem()
        assert isinstance(problem, ConnectionLostError if how == "closed" else RemoteProtocolError)
        assert str(problem).endswith(f"before the server let us in: does it speak {dialect}?")
        assert server.session.up_since is None


# -- the session ------------------------------------------------------------------------------------------------------


async def test_silence(tidy: Tidy, autojump_clock: MockClock) -> None:
    async with open_server_side(tidy) as server:
        await server.let_in()
        for _ in range(100):
            await trio.sleep(7)
            await server.say(KeepAlive())
        started = trio.current_time()
        assert isinstance(await server.problem(), PeerTimeoutError)
        assert server.ended_at - started == pytest.approx(8)


async def test_what_says_nothing_in_a_session(tidy: Tidy, autojump_clock: MockClock) -> None:
    async with open_server_side(tidy) as server:
        await server.let_in()
        await server.say(AuthSuccess(), UserInformation(8, 60002), CREDENTIALS)
        server.channel.endpoint.send(encode_frame(12345, b"?", header=HEADERS[server.dialect]))
        await trio.testing.wait_all_tasks_blocked()
        assert not server.over.is_set()
        assert len(server.events) == 1


async def test_a_frame_that_is_too_long(tidy: Tidy, autojump_clock: MockClock) -> None:
    async with open_server_side(tidy) as server:
        await server.let_in()
        server.channel.endpoint.send(HEADERS[server.dialect].pack(4097, KeepAlive.id))
        assert isinstance(await server.problem(), RemoteProtocolError)


# -- visitors ---------------------------------------------------------------------------------------------------------


@both
async def test_visitors(tidy: Tidy, autojump_clock: MockClock, dialect: str) -> None:
    async with open_server_side(tidy, dialect=dialect) as server:
        await server.let_in()
        tunnels = [await server.visit() for _ in range(10)]
        for number, tunnel in enumerate(tunnels):
            tunnel.send(b"%d" % number)
        for number, tunnel in enumerate(tunnels):
            assert await receive_some(tunnel) == b"%d" % number
            tunnel.send_eof()
            assert await receive_all(tunnel) == b""
            tunnel.close()


async def test_half_close_both_ways(tidy: Tidy, autojump_clock: MockClock) -> None:
    async def service(endpoint: MemoryEndpoint) -> None:
        endpoint.send(b"first")
        endpoint.send_eof()
        heard.append(await receive_all(endpoint))

    heard: list[bytes] = []
    async with open_server_side(tidy, serve=service) as server:
        await server.let_in()
        tunnel = await server.visit()
        assert await receive_all(tunnel) == b"first"
        tunnel.send(b"answered later")
        tunnel.send_eof()
        await trio.testing.wait_all_tasks_blocked()
        assert heard == [b"answered later"]
        tunnel.close()


async def test_a_reset_goes_through(tidy: Tidy, autojump_clock: MockClock) -> None:
    ends: list[MemoryEndpoint] = []

    async def service(endpoint: MemoryEndpoint) -> None:
        ends.append(endpoint)
        await trio.sleep_forever()

    async with open_server_side(tidy, serve=service) as server:
        await server.let_in()
        first, second = await server.visit(), await server.visit()
        first.reset()
        ends[1].reset()
        await trio.testing.wait_all_tasks_blocked()
        for end in (ends[0], second):
            with pytest.raises(ConnectionResetError):
                await receive_some(end)
        assert not server.over.is_set()


async def test_local_first_then_the_tunnel(tidy: Tidy, autojump_clock: MockClock) -> None:
    async with open_server_side(tidy) as server:
        await server.let_in()
        made = len(tidy.endpoints)
        server.host.silent = True
        await server.say(NewConnection())
        await trio.testing.wait_all_tasks_blocked()
        assert len(tidy.endpoints) == made + 2  # of the local connection


@pytest.mark.parametrize("how", ["down", "silent"])
async def test_a_server_that_does_not_take_a_tunnel(
    tidy: Tidy, autojump_clock: MockClock, how: str
) -> None:
    async with open_server_side(tidy) as server:
        await server.let_in()
        server.nursery.start_soon(server.keep_alive)
        made = len(tidy.endpoints)
        setattr(server.host, how, True)
        await server.say(NewConnection())
        await trio.sleep(9.9)
        assert tidy.endpoints[made].closed == (how == "down")
        await trio.sleep(0.2)
        assert tidy.endpoints[made].closed
        setattr(server.host, how, False)
        served = await server.visit()
        served.send(b"x")
        assert await receive_some(served) == b"x"


async def test_a_service_that_is_down_costs_its_visitor_only(
    tidy: Tidy, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_server_side(tidy, "the local service is down") as server:
        await server.let_in()
        refused = await server.visit()
        assert await receive_all(refused) == b""  # at once: the server need not wait for it
        assert "the local service is down" in caplog.text
        served = await server.visit()
        served.send(b"x")
        assert await receive_some(served) == b"x"


async def test_no_more_than_max_tunnels(
    tidy: Tidy, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_server_side(tidy, max_tunnels=3, min_idle_tunnels=1) as server:
        await server.let_in()
        first = await server.visit()
        await server.say(*[NewConnection()] * 100)
        await trio.testing.wait_all_tasks_blocked()
        assert server.host.waiting() == 2
        assert "MaxTunnels" in caplog.text
        for _ in range(2):
            await server.host.answer(TUNNEL)
        first.close()
        await trio.testing.wait_all_tasks_blocked()
        (await server.visit()).close()


async def test_a_reset_that_nobody_reads_of_is_noticed(
    tidy: Tidy, autojump_clock: MockClock
) -> None:
    """The service has ended its direction and the visitor is silent: only the sweep looks."""
    ends: list[MemoryEndpoint] = []

    async def service(endpoint: MemoryEndpoint) -> None:
        ends.append(endpoint)
        endpoint.send_eof()
        await trio.sleep_forever()

    async with open_server_side(tidy, serve=service) as server:
        await server.let_in()
        server.nursery.start_soon(server.keep_alive)
        tunnel = await server.visit()
        await trio.sleep(1)
        ends[0].reset()
        await trio.sleep(1.5)
        assert tunnel.is_lost()


# -- the end ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["loss", "silence", "refusal", "cancelled"])
async def test_visitors_end_with_their_session(
    tidy: Tidy, autojump_clock: MockClock, how: str
) -> None:
    async with open_server_side(tidy) as server:
        await server.let_in()
        tunnel = await server.visit()
        match how:
            case "loss":
                server.channel.endpoint.reset()
            case "refusal":
                await server.say(AuthFail())
            case "cancelled":
                server.nursery.cancel_scope.cancel()
        await server.over.wait()
        with trio.CancelScope(shield=True), pytest.raises(ConnectionResetError):
            await receive_some(tunnel)


async def test_stop_without_visitors(tidy: Tidy, autojump_clock: MockClock) -> None:
    async with open_server_side(tidy) as server:
        await server.let_in()
        started = trio.current_time()
        server.session.stopping.set()
        await server.over.wait()
        assert server.problems == []
        assert server.ended_at == started
        assert server.channel.endpoint.recv_into(memoryview(bytearray(20000))) == 0


async def test_stop_lets_visitors_finish_and_takes_no_new_ones(
    tidy: Tidy, autojump_clock: MockClock
) -> None:
    async with open_server_side(tidy, drain_grace=30) as server:
        await server.let_in()
        server.nursery.start_soon(server.keep_alive)
        visitors = [await server.visit() for _ in range(2)]
        server.session.stopping.set()
        await trio.sleep(20)
        await server.say(NewConnection())
        await trio.sleep(1)
        assert server.host.waiting() == 0
        for visitor in visitors:
            assert not server.over.is_set()
            visitor.send(b"still served")
            assert await receive_some(visitor) == b"still served"
            visitor.close()
            await trio.testing.wait_all_tasks_blocked()
        assert server.over.is_set()
        assert server.problems == []


async def test_stop_does_not_wait_for_ever(tidy: Tidy, autojump_clock: MockClock) -> None:
    async with open_server_side(tidy, drain_grace=30) as server:
        await server.let_in()
        server.nursery.start_soon(server.keep_alive)
        visitor = await server.visit()
        started = trio.current_time()
        server.session.stopping.set()
        await server.over.wait()
        assert server.ended_at - started == pytest.approx(30)
        assert server.problems == []
        with pytest.raises(ConnectionResetError):
            await receive_some(visitor)


# -- as a whole -------------------------------------------------------------------------------------------------------


@attrs.define(eq=False)
class World:
    """A client and a host that it can reach."""

    client: Client
    host: Host
    events: list[ClientEvent]
    problem: PeerError | None = None
    over: trio.Event = attrs.field(factory=trio.Event)

    async def run(self) -> None:
        try:
            await self.client.run()
        except PeerError as problem:
            self.problem = problem
        finally:
            self.over.set()

    async def answer(self, *messages: LegacyMessage) -> LegacyChannel:
        channel = LegacyChannel(await self.host.answer(), Dialect.NAT_V1)
        assert await channel.receive() == CREDENTIALS
        for message in messages:
            await channel.send(message)
        await trio.testing.wait_all_tasks_blocked()
        return channel


@asynccontextmanager
async def open_world(
    tidy: Tidy, monkeypatch: pytest.MonkeyPatch, **settings: object
) -> AsyncIterator[World]:
    host = Host(tidy, Path())
    original = LegacyDialer.of

    def of(config: ClientConfig, auth: AuthConfig) -> LegacyDialer:
        server = original(config, auth)
        return MemoryLegacyServer(**attrs.asdict(server, recurse=False), host=host)

    monkeypatch.setattr(LegacyDialer, "of", of)
    monkeypatch.setattr(Forwarder, "check", MemoryForwarder.check)  # it is there
    config = ClientConfig(
        **LEGACY,  # type: ignore[arg-type]
        services=(Service(local=UnixAddress("/in/memory")),),
        **settings,  # type: ignore[arg-type]
    )
    events: list[ClientEvent] = []
    auth = AuthConfig(username="alice", password="geheim")
    async with trio.open_nursery() as nursery:
        world = World(Client(config, auth, events.append), host, events)
        nursery.start_soon(world.run)
        try:
            yield world
        finally:
            host.go()
            nursery.cancel_scope.cancel()


async def test_the_traffic_can_be_read_and_that_is_said_once(
    tidy: Tidy,
    autojump_clock: MockClock,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with open_world(tidy, monkeypatch) as world:
        for _ in range(3):
            (await world.answer(INFORMATION)).endpoint.close()
            await trio.sleep(1)
    warnings = [record for record in caplog.records if record.levelname == "WARNING"]
    assert len(warnings) == 1
    assert "no encryption" in warnings[0].getMessage()
    assert "geheim" not in caplog.text


async def test_nothing_waits_for_another_tunnel(
    tidy: Tidy, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An original server goes on with no stream, so there is no task that looks after those."""
    async with open_world(tidy, monkeypatch) as world:
        await world.answer(INFORMATION)
        tree = str(await grow(main_task()))
    assert "stop before it is up" in tree
    assert "waiting streams" not in tree


async def test_comes_back_at_once_and_tells(
    tidy: Tidy, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_world(tidy, monkeypatch) as world:
        server = await world.answer(INFORMATION)
        (service,) = world.client.services
        assert service.public == TCPAddress("server.example", 60001)
        await trio.sleep(2)
        lost = trio.current_time()
        server.endpoint.reset()
        await world.answer(UserInformation(8, 60002))
        assert trio.current_time() == lost
        (service,) = world.client.services
        assert service.public == TCPAddress("server.example", 60002)
        kinds = [type(event) for event in world.events]
        assert kinds == [Connected, Disconnected, Connected]


async def test_a_full_server_is_tried_again(
    tidy: Tidy, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_world(tidy, monkeypatch) as world:
        for times in range(1, 8):
            (await world.answer(ConnectionFull())).endpoint.close()
            last = world.events[-1]
            assert isinstance(last, Disconnected)
            assert last.reason == "the server is full: the-connection-is-full."
            assert last.retry_in is not None
            assert 0 < last.retry_in <= 5
            assert len(world.events) == times
        await world.answer(INFORMATION)
        assert isinstance(world.events[-1], Connected)


@pytest.mark.parametrize("message", [AuthFail(), *map(Refusal.of, Reason)], ids=repr)
async def test_refusals_that_are_final(
    tidy: Tidy,
    autojump_clock: MockClock,
    monkeypatch: pytest.MonkeyPatch,
    message: LegacyMessage,
) -> None:
    async with open_world(tidy, monkeypatch) as world:
        await world.answer(message)
        await world.over.wait()
        assert isinstance(world.problem, RefusedError)
        assert world.events == [Disconnected(reason=str(world.problem), retry_in=None)]


async def test_stop_in_the_queue(
    tidy: Tidy, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_world(tidy, monkeypatch) as world:
        server = await world.answer(AuthSuccess())
        await trio.sleep(60)
        world.client.stopping.set()
        await world.over.wait()
        assert world.problem is None
        assert await receive_all(server.endpoint) == b""
