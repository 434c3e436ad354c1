"""A client's session: what it says, what it expects to hear, and how it ends."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import attrs
import pytest
import trio
import trio.testing

from tests.unit.client_side import CONTROL, SERVER, TUNNEL, Host, Running
from tests.unit.conftest import Tidy
from tests.unit.memory import memory_pair, receive_all, receive_some
from tests.unit.memory_server import forwarder, open_memory_server
from trionat.address import TCPAddress, UnixAddress
from trionat.client.forwarder import Forwarder
from trionat.client.native.servers import Servers
from trionat.client.native.session import NativeSession
from trionat.client.reconnect import is_final
from trionat.config.client import ClientConfig
from trionat.config.service import Service
from trionat.errors import (
    ConnectionLostError,
    PeerTimeoutError,
    RefusedError,
    RemoteProtocolError,
    SessionOverError,
)
from trionat.events import ClientEvent, Connected, Draining, PublicService
from trionat.events import Queued as QueuedEvent
from trionat.protocol.frames import encode_frame
from trionat.protocol.messages import (
    APPROVALS,
    NAMES,
    NARROWED_TICKETS,
    QUEUE_TIMEOUT,
    ROUTES,
    SECRET_BYTES,
    Approve,
    Attach,
    Close,
    CloseCode,
    Demand,
    Drain,
    Expose,
    Hello,
    Message,
    Ping,
    Pong,
    Queued,
    RefusalCode,
    Refused,
    ServiceRequest,
    Welcome,
    encode_message,
)
from trionat.protocol.tunnel_frames import DATA_ID, END_FRAME, Open
from trionat.transport.channel import Channel

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from trio.testing import MockClock

    from tests.unit.memory import MemoryEndpoint
    from trionat.client.native.dialer import Server

SECRET = b"s" * SECRET_BYTES
SERVICES = (
    Service(local=UnixAddress("/in/memory"), name="web"),
    Service(local=TCPAddress("127.0.0.1", 22), visit_port=60022),
)
WELCOME = Welcome(
    uid=7,
    secret=SECRET,
    ports=(60001, 60022),
    host="public.example",
    ping_interval=2.5,
    peer_timeout=8,
    max_tunnels=50,
)


@attrs.define(eq=False)
class ServerSide(Running):
    """A client's session, and the server's end of its control connection in the test's hands."""

    host: Host
    events: list[ClientEvent]
    channel: Channel = attrs.field(init=False)

    async def answer(self) -> tuple[Hello, Expose]:
        self.channel = Channel(await self.host.answer())
        self.channel.allow_control_frames()
        hello, expose = await self.channel.receive(), await self.channel.receive()
        assert isinstance(hello, Hello)
        assert isinstance(expose, Expose)
        return hello, expose

    async def say(self, *messages: Message) -> None:
        for message in messages:
            await self.channel.send(message)

    async def welcome(self) -> None:
        await self.answer()
        await self.say(WELCOME)
        await trio.testing.wait_all_tasks_blocked()

    async def hear(self, kind: type[Message]) -> Message:
        while isinstance(message := await self.channel.receive(), Ping | Pong) and kind is not Ping:
            if isinstance(message, Ping):
                await self.say(Pong(message.number))
        assert isinstance(message, kind)
        return message


def session_at(
    host: Host,
    forwarder: Forwarder,
    *,
    tell: Callable[[ClientEvent], None] = lambda _: None,
    **settings: object,
) -> NativeSession:
    return NativeSession(
        config=ClientConfig(name="Laptop", **settings),  # type: ignore[arg-type]
        forwarder=forwarder,
        tell=tell,
        stopping=trio.Event(),
        servers=Servers((host.dialer,)),
        identity="me",
        preferred_ports=(60009, *(None,) * (len(forwarder.services) - 1)),
    )


@asynccontextmanager
async def open_server_side(
    tidy: Tidy,
    folder: Path,
    *,
    forwarder: Forwarder | None = None,
    server: Server = SERVER,
    **settings: object,
) -> AsyncIterator[ServerSide]:
    host = Host(tidy, folder)
    host.dialer.server = server
    events: list[ClientEvent] = []
    session = session_at(host, forwarder or Forwarder(SERVICES, 5), tell=events.append, **settings)
    side = ServerSide(session, host, events)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(side.run)
            yield side
            nursery.cancel_scope.cancel()
    finally:
        host.go()


async def test_first_words(tidy: Tidy, autojump_clock: MockClock, tmp_path: Path) -> None:
    async with open_server_side(tidy, tmp_path, min_idle_tunnels=3) as server:
        hello, expose = await server.answer()
        assert (hello.username, hello.password, hello.token) == ("alice", "secret", None)
        assert (hello.identity, hello.name) == ("me", "Laptop")
        assert hello.software.startswith("trionat ")
        assert expose == Expose(
            services=(
                ServiceRequest(name="web", local="/in/memory", preferred_port=60009),
                ServiceRequest(name="127.0.0.1:22", local="127.0.0.1:22", visit_port=60022),
            ),
            idle_tunnels=3,
        )


NARROWED = attrs.evolve(SERVER, password=None, token=bytes(16), caveats=("only ports=60001",))


async def test_a_narrowed_ticket_is_told_with_its_caveats(
    tidy: Tidy, autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with open_server_side(tidy, tmp_path, server=NARROWED) as server:
        hello, _ = await server.answer()
        assert (hello.token, hello.caveats) == (bytes(16), ("only ports=60001",))
        assert NARROWED_TICKETS in hello.capabilities
        capabilities = (*WELCOME.capabilities, NARROWED_TICKETS)
        await server.say(attrs.evolve(WELCOME, capabilities=capabilities))
        await trio.testing.wait_all_tasks_blocked()
        assert [type(event) for event in server.events] == [Connected]


async def test_a_server_that_does_not_keep_to_caveats_is_left(
    tidy: Tidy, autojump_clock: MockClock, tmp_path: Path
) -> None:
    """One of 0.1 that asks nobody for a credential: it has never looked at the token, and gives everything to everybody."""
    async with open_server_side(tidy, tmp_path, server=NARROWED) as server:
        await server.welcome()
        problem = await server.problem()
        assert isinstance(problem, RefusedError)
        assert problem.code == RefusalCode.UNSUPPORTED_VERSION
        assert str(problem).startswith("this server would not keep to the restrictions of the")
        assert server.events == []
        assert is_final(problem, connected_before=False)
    async with open_server_side(tidy, tmp_path) as server:
        hello, _ = await server.answer()
        assert hello.caveats == ()
        assert NARROWED_TICKETS not in hello.capabilities


NAMED = attrs.evolve(SERVICES[0], http="shop", approve=True)
URLS = ("https://shop.tunnel.test",)


@pytest.mark.parametrize(
    ("capabilities", "urls", "missing"),
    [
        ((APPROVALS,), URLS, "the server does not know names"),
        ((NAMES, APPROVALS), None, "the server does not know names"),
        ((NAMES,), URLS, "the server does not ask about visitors"),
    ],
)
async def test_a_server_that_does_not_know_what_the_service_needs_is_left(
    tidy: Tidy,
    autojump_clock: MockClock,
    tmp_path: Path,
    capabilities: tuple[str, ...],
    urls: tuple[str, ...] | None,
    missing: str,
) -> None:
    """Nobody may visit it there before the client has gone, and without being asked about."""
    async with open_server_side(tidy, tmp_path, forwarder=Forwarder((NAMED,), 5)) as server:
        await server.answer()
        welcome = attrs.evolve(WELCOME, ports=(60001,), urls=urls)
        await server.say(attrs.evolve(welcome, capabilities=capabilities))
        with trio.fail_after(1):
            close = await server.hear(Close)
            problem = await server.problem()
        assert isinstance(problem, RefusedError)
        assert problem.code == RefusalCode.NAME_NOT_OFFERED
        assert str(problem).startswith(missing)
        assert close == Close(code=CloseCode.STOPPED, text=str(problem))
        assert is_final(problem, connected_before=False)
        assert server.events == []


async def test_a_server_that_is_left_need_not_read(
    tidy: Tidy, autojump_clock: MockClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last word does not fit into what is on the way."""
    monkeypatch.setattr(Tidy, "pair", lambda self: memory_pair(self.endpoints, 64))
    async with open_server_side(tidy, tmp_path, forwarder=Forwarder((NAMED,), 5)) as server:
        await server.answer()
        await server.say(attrs.evolve(WELCOME, ports=(60001,)))
        said = trio.current_time()
        with trio.fail_after(60):
            problem = await server.problem()
        assert isinstance(problem, RefusedError)
        assert str(problem).startswith("the server does not know names")
        assert trio.current_time() - said == pytest.approx(1.0)


async def test_a_server_that_reads_nothing(
    tidy: Tidy, autojump_clock: MockClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """HELLO and EXPOSE do not fit into what is on the way."""
    monkeypatch.setattr(Tidy, "pair", lambda self: memory_pair(self.endpoints, 64))
    async with open_server_side(tidy, tmp_path) as server:
        with trio.fail_after(60):
            problem = await server.problem()
        assert isinstance(problem, PeerTimeoutError)
        assert str(problem) == f"the server has read nothing for {QUEUE_TIMEOUT:g} s"
        assert server.ended_at == pytest.approx(trio.current_time())


async def test_welcome(tidy: Tidy, autojump_clock: MockClock, tmp_path: Path) -> None:
    async with open_server_side(tidy, tmp_path, min_idle_tunnels=3) as server:
        await server.welcome()
        assert server.events == [
            Connected(
                uid=7,
                services=(
                    PublicService(
                        name="web",
                        local=UnixAddress("/in/memory"),
                        public=TCPAddress("public.example", 60001),
                    ),
                    PublicService(
                        name="127.0.0.1:22",
                        local=TCPAddress("127.0.0.1", 22),
                        public=TCPAddress("public.example", 60022),
                    ),
                ),
                server=CONTROL,
                tunnel=TUNNEL,
                username="alice",
                encrypted=True,
            )
        ]
        assert server.session.ports == (60001, 60022)
        for _ in range(3):
            wire = Channel(await server.host.answer(TUNNEL))
            assert await wire.receive() == Attach(7, SECRET)
        await server.say(Demand(2))
        await trio.testing.wait_all_tasks_blocked()
        assert server.host.waiting() == 2


async def test_its_tunnels_take_its_own_route(
    tidy: Tidy, autojump_clock: MockClock, tmp_path: Path
) -> None:
    """Also when the next session is on its way to another node, behind the same address."""
    async with open_server_side(tidy, tmp_path, min_idle_tunnels=1) as server:
        await server.answer()
        await server.say(attrs.evolve(WELCOME, capabilities=(ROUTES,), route="n1"))
        await server.host.answer(TUNNEL)
        server.host.dialer.route = None
        await server.say(Demand(2))
        await server.host.answer(TUNNEL)
        await server.host.answer(TUNNEL)
        assert server.host.dialer.asked_for == [None, "n1", "n1", "n1"]


@pytest.mark.parametrize(
    ("shown", "host", "expected"),
    [
        ("shown.example", "public.example", "shown.example"),
        ("shown.example:1", "public.example", "shown.example"),
        (None, "public.example", "public.example"),
        (None, "", "server.example"),
    ],
)
async def test_public_host(
    tidy: Tidy,
    autojump_clock: MockClock,
    tmp_path: Path,
    shown: str | None,
    host: str,
    expected: str,
) -> None:
    async with open_server_side(tidy, tmp_path, public_server_addr=shown) as server:
        await server.answer()
        await server.say(attrs.evolve(WELCOME, host=host))
        await trio.testing.wait_all_tasks_blocked()
        (event,) = server.events
        assert isinstance(event, Connected)
        assert {service.public.host for service in event.services} == {expected}


async def test_queued_is_told_once_for_each_position_and_pings_go_out(
    tidy: Tidy, autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with open_server_side(tidy, tmp_path) as server:
        await server.answer()
        started = trio.current_time()
        for position in (3, 3, 2, 2, 1):
            await server.say(Queued(position=position))
            assert await server.hear(Ping) == Ping(0)
        assert trio.current_time() - started == pytest.approx(12.5)
        assert server.events == [QueuedEvent(3), QueuedEvent(2), QueuedEvent(1)]
        await server.say(WELCOME)
        await trio.testing.wait_all_tasks_blocked()
        assert isinstance(server.events[-1], Connected)


async def test_each_answer_of_the_owner_is_sent(
    tidy: Tidy, autojump_clock: MockClock, tmp_path: Path
) -> None:
    """Also where a script gives several in one moment; of those about one address, the last one counts."""
    async with open_server_side(tidy, tmp_path) as server:
        await server.answer()
        await server.say(attrs.evolve(WELCOME, capabilities=(APPROVALS,)))
        await trio.testing.wait_all_tasks_blocked()
        session = server.session
        assert isinstance(session, NativeSession)
        for host, approved in (("192.0.2.1", True), ("192.0.2.2", False), ("192.0.2.1", False)):
            session.approve(0, host, approved=approved)
        session.approve(1, "192.0.2.1", approved=True)
        with trio.fail_after(1):
            heard = [await server.hear(Approve) for _ in range(3)]
        assert heard == [
            Approve(service=0, host="192.0.2.1", approved=False),
            Approve(service=0, host="192.0.2.2", approved=False),
            Approve(service=1, host="192.0.2.1", approved=True),
        ]


async def test_refused(tidy: Tidy, autojump_clock: MockClock, tmp_path: Path) -> None:
    async with open_server_side(tidy, tmp_path) as server:
        await server.answer()
        await server.say(Refused(code="full", text="come back later"))
        server.channel.endpoint.close()
        problem = await server.problem()
        assert isinstance(problem, RefusedError)
        assert (problem.code, problem.text) == ("full", "come back later")


@pytest.mark.parametrize(
    "message",
    [
        Demand(1),
        Drain(seconds=1),
        Close(code="stopped", text=""),
        Attach(1, SECRET),
        Hello(username="u", identity="i"),
        attrs.evolve(WELCOME, ports=(60001,)),
        attrs.evolve(WELCOME, ports=(1, 2, 3)),
    ],
    ids=lambda message: f"{type(message).__name__}{getattr(message, 'ports', '')}",
)
async def test_what_no_server_says_before_welcome(
    tidy: Tidy, autojump_clock: MockClock, tmp_path: Path, message: Message
) -> None:
    async with open_server_side(tidy, tmp_path) as server:
        await server.answer()
        await server.say(message)
        assert isinstance(await server.problem(), RemoteProtocolError)
        assert server.session.up_since is None
        assert server.events == []


@pytest.mark.parametrize(
    "message",
    [WELCOME, Queued(position=1), Refused(code="full", text=""), Attach(1, SECRET)],
    ids=lambda message: type(message).__name__,
)
async def test_what_no_server_says_in_a_session(
    tidy: Tidy, autojump_clock: MockClock, tmp_path: Path, message: Message
) -> None:
    async with open_server_side(tidy, tmp_path) as server:
        await server.welcome()
        await server.say(message)
        problem = await server.problem()
        assert isinstance(problem, RemoteProtocolError)
        assert type(message).__name__.upper() in str(problem)


async def test_silence_before_welcome(
    tidy: Tidy, autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with open_server_side(tidy, tmp_path) as server:
        started = trio.current_time()
        await server.answer()
        assert isinstance(await server.problem(), PeerTimeoutError)
        assert server.ended_at - started == pytest.approx(
            10
        )  # nobody waits for words that it may still say


async def test_silence_in_the_session(
    tidy: Tidy, autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with open_server_side(tidy, tmp_path) as server:
        await server.welcome()
        started = trio.current_time()
        assert isinstance(await server.problem(), PeerTimeoutError)
        assert server.ended_at - started == pytest.approx(8)


async def test_pings_keep_it_up(tidy: Tidy, autojump_clock: MockClock, tmp_path: Path) -> None:
    async with open_server_side(tidy, tmp_path) as server:
        await server.welcome()
        for number in range(20):
            await trio.sleep(7)
            await server.say(Ping(number))
        assert not server.over.is_set()


async def test_the_servers_last_words(
    tidy: Tidy, autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with open_server_side(tidy, tmp_path) as server:
        await server.welcome()
        await server.say(Drain(seconds=30))
        await trio.testing.wait_all_tasks_blocked()
        assert server.events[-1] == Draining(30)
        assert not server.over.is_set()
        await server.say(Close(code=CloseCode.STOPPED, text="the server stops"))
        server.channel.endpoint.send_eof()
        await server.over.wait()
        assert any(
            isinstance(problem, SessionOverError) and problem.code == CloseCode.STOPPED
            for problem in server.problems
        )


async def test_loss(tidy: Tidy, autojump_clock: MockClock, tmp_path: Path) -> None:
    async with open_server_side(tidy, tmp_path) as server:
        await server.welcome()
        server.channel.endpoint.reset()
        assert isinstance(await server.problem(), ConnectionLostError)
        assert server.session.up_since is not None


async def test_cancelled_leaves_at_once(
    tidy: Tidy, autojump_clock: MockClock, tmp_path: Path
) -> None:
    started = 0.0
    async with open_server_side(tidy, tmp_path, min_idle_tunnels=5) as server:
        await server.welcome()
        started = trio.current_time()
    assert trio.current_time() == started


# -- the planned stop -------------------------------------------------------------------------------------------------


async def test_stop(tidy: Tidy, autojump_clock: MockClock, tmp_path: Path) -> None:
    async with open_server_side(tidy, tmp_path, drain_grace=10) as server:
        await server.welcome()
        server.session.stopping.set()
        assert await server.hear(Drain) == Drain(seconds=10)
        assert await server.hear(Close) == Close(code="stopped", text="it was stopped")
        server.channel.endpoint.close()
        await server.over.wait()
        assert server.problems == []


async def test_stop_lets_visitors_finish(
    tidy: Tidy, autojump_clock: MockClock, tmp_path: Path
) -> None:
    """Both real sides: the client drains, the server lets nobody new in, and ports are free at once afterwards."""
    async with open_memory_server(tidy, port_reservation=30) as server:
        host = Host(tidy, tmp_path)
        host.dialer.dial = lambda _: server.connect()
        session = session_at(host, forwarder(tidy, server.nursery), drain_grace=10)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(session.run)
            await trio.sleep(0.1)
            (port,) = session.ports or ()
            visitor = server.visit(port, early=b"x")
            assert await receive_some(visitor) == b"x"
            session.stopping.set()
            await trio.sleep(1)
            assert await receive_all(server.visit(port)) == b""
            visitor.send(b"still served")
            assert await receive_some(visitor) == b"still served"
            stopped = trio.current_time()
            visitor.close()
        assert trio.current_time() - stopped < 1.5
        assert server.sessions == []
        assert server.admission.leases.ports.free == 2


async def test_what_a_stopping_server_sent_last_arrives(
    tidy: Tidy, autojump_clock: MockClock, tmp_path: Path
) -> None:
    """CLOSE comes on another connection than the last bytes, and may be faster."""
    received: list[bytes] = []

    async def service(endpoint: MemoryEndpoint) -> None:
        endpoint.send_eof()
        received.append(await receive_all(endpoint))

    async with trio.open_nursery() as nursery:
        made = attrs.evolve(forwarder(tidy, nursery, service), capacity=500)
        async with open_server_side(tidy, tmp_path, forwarder=made, min_idle_tunnels=1) as server:
            await server.answer()
            await server.say(attrs.evolve(WELCOME, ports=(60001,)))
            wire = await server.host.answer(TUNNEL)
            assert await Channel(wire).receive() == Attach(7, SECRET)
            opening = Open(
                visitor=1, service=0, host="v", port=1, visit_host="s", visit_port=2
            ).encode()
            wire.send(opening)
            assert await receive_some(wire) == END_FRAME
            wire.send(encode_frame(DATA_ID, bytes(50_000)) + END_FRAME)
            wire.send_eof()
            await server.say(Close(code=CloseCode.STOPPED, text="the server stops"))
            server.channel.endpoint.send_eof()
            await server.over.wait()
            assert [type(problem) for problem in server.problems] == [SessionOverError]
            assert received == [bytes(50_000)]


async def test_stop_does_not_wait_for_ever(
    tidy: Tidy, autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with open_memory_server(tidy) as server:
        host = Host(tidy, tmp_path)
        host.dialer.dial = lambda _: server.connect()
        session = session_at(host, forwarder(tidy, server.nursery), drain_grace=10)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(session.run)
            await trio.sleep(0.1)
            (port,) = session.ports or ()
            visitor = server.visit(port, early=b"x")
            assert await receive_some(visitor) == b"x"
            started = trio.current_time()
            session.stopping.set()
        assert 10 <= trio.current_time() - started < 12
        with pytest.raises(ConnectionResetError):
            await receive_some(visitor)


async def test_the_wire_is_closed_where_attach_cannot_be_sent(
    tidy: Tidy, autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with open_server_side(tidy, tmp_path) as server:

        def dial_a_dead_one(_: TCPAddress) -> MemoryEndpoint:
            near, far = tidy.pair()
            far.reset()
            return near

        await server.answer()
        server.host.dialer.dial = dial_a_dead_one
        await server.say(WELCOME)
        await trio.sleep(3)
        assert not server.over.is_set()
        assert all(end.closed for end in tidy.endpoints[2:])


def test_the_attach_frame_fits_any_buffer() -> None:
    assert len(encode_message(Attach(1, SECRET))) == 48
    assert SERVER.password is not None
    assert "secret" not in repr(SERVER)


async def test_a_server_that_wants_pings_without_a_pause(
    tidy: Tidy, tmp_path: Path, autojump_clock: MockClock
) -> None:
    """It gets ten a second, which is the most that a server's configuration can ask for."""
    async with open_server_side(tidy, tmp_path) as server:
        await server.answer()
        await server.say(attrs.evolve(WELCOME, ping_interval=0, peer_timeout=0))
        pings = 0
        with trio.move_on_after(3):
            while True:
                if isinstance(message := await server.channel.receive(), Ping):
                    pings += 1
                    await server.say(Pong(message.number))
        assert 25 <= pings <= 31


async def test_a_drain_that_is_told_again_and_again(
    tidy: Tidy, tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with open_server_side(tidy, tmp_path) as server:
        await server.welcome()
        for _ in range(1000):
            await server.say(Drain(seconds=5))
        await trio.testing.wait_all_tasks_blocked()
        assert [event for event in server.events if isinstance(event, Draining)] == [Draining(5.0)]


async def test_of_positions_that_come_too_fast_the_last_is_told_a_second_later(
    tidy: Tidy, tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with open_server_side(tidy, tmp_path) as server:
        await server.answer()
        began = trio.current_time()
        await server.say(Queued(position=1000))
        await trio.testing.wait_all_tasks_blocked()
        for position in range(999, 0, -1):
            await server.say(Queued(position=position))
        await trio.sleep(1)
        await trio.testing.wait_all_tasks_blocked()
        assert server.events[0] == QueuedEvent(1000)
        assert server.events[-1] == QueuedEvent(1)
        assert len(server.events) <= 1 + trio.current_time() - began
