"""Clients of the Go program at the server: who is let in, what they are told, their visitors, their comings and goings."""

from __future__ import annotations

import logging
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, TypeVar

import attrs
import pytest
import trio
import trio.testing

from tests.unit.memory import CAPACITY, MemoryEndpoint, receive_all, receive_exactly, receive_some
from tests.unit.memory_server import HOST, MemoryServer, MemoryStore, make_user, open_memory_server
from trionat.errors import PeerError, StoreUnavailableError
from trionat.protocol.dialect import Dialect
from trionat.protocol.frames import encode_frame
from trionat.protocol.legacy import (
    AuthFail,
    AuthSuccess,
    ConnectionFull,
    Credentials,
    KeepAlive,
    LegacyMessage,
    NewConnection,
    UserInformation,
    encode,
)
from trionat.protocol.messages import Attach, Close, CloseCode, RefusalCode, Refused
from trionat.server.accounts.accounts import ANONYMOUS, WATCH_INTERVAL
from trionat.server.sessions.legacy import LegacySession
from trionat.store.passwords import hash_password
from trionat.transport.channel import Channel, LegacyChannel

if TYPE_CHECKING:
    from trio.testing import MockClock

    from tests.unit.conftest import Tidy
    from trionat.store.base import User

MessageT = TypeVar("MessageT", bound=LegacyMessage)

DIALECTS = [Dialect.NAT_DOC, Dialect.NAT_V1]


@pytest.fixture(params=DIALECTS, ids=lambda dialect: dialect.value)
def dialect(request: pytest.FixtureRequest) -> Dialect:
    found: Dialect = request.param
    return found


@attrs.define(eq=False)
class OldClient:
    """A client of the Go program as far as its control connection goes. `inbox` has all that it hears but KEEP_ALIVE."""

    server: MemoryServer
    dialect: Dialect
    host: str
    channel: LegacyChannel
    heard: list[LegacyMessage] = attrs.field(factory=list)
    information: UserInformation = attrs.field(init=False)
    ended_at: float | None = None
    _inbox_end: trio.MemorySendChannel[LegacyMessage] = attrs.field(init=False)
    _inbox: trio.MemoryReceiveChannel[LegacyMessage] = attrs.field(init=False)
    _scope: trio.CancelScope = attrs.field(factory=trio.CancelScope)

    def __attrs_post_init__(self) -> None:
        self._inbox_end, self._inbox = trio.open_memory_channel[LegacyMessage](10_000)

    @property
    def endpoint(self) -> MemoryEndpoint:
        assert isinstance(self.channel.endpoint, MemoryEndpoint)
        return self.channel.endpoint

    @property
    def port(self) -> int:
        return self.information.port

    async def listen(self) -> None:
        with self._inbox_end, self._scope, suppress(PeerError, OSError, trio.ClosedResourceError):
            while True:
                message = await self.channel.receive()
                self.heard.append(message)
                if not isinstance(message, KeepAlive):
                    self._inbox_end.send_nowait(message)
        if not self._scope.cancelled_caught:
            self.ended_at = trio.current_time()
            self.endpoint.close()

    async def hear(self, kind: type[MessageT]) -> MessageT:
        message = await self._inbox.receive()
        assert isinstance(message, kind), message
        return message

    async def hear_end(self) -> None:
        with suppress(trio.EndOfChannel):
            raise AssertionError(f"{await self._inbox.receive()} instead of the end")

    def pending(self) -> list[LegacyMessage]:
        messages: list[LegacyMessage] = []
        with suppress(trio.WouldBlock, trio.EndOfChannel):
            while True:
                messages.append(self._inbox.receive_nowait())
        return messages

    async def say(self, *messages: LegacyMessage) -> None:
        for message in messages:
            await self.channel.send(message)

    def hang_up(self) -> None:
        self.endpoint.close()

    async def tunnel(
        self, *, host: str | None = None, uid: int | None = None, early: bytes = b""
    ) -> MemoryEndpoint:
        """Return the far end of a new tunnel, announced with `early` right behind."""
        wire = self.server.connect(dialect=self.dialect, host=host or self.host)
        information = attrs.evolve(self.information, uid=uid or self.information.uid)
        wire.send(encode(information, self.dialect) + early)
        await trio.testing.wait_all_tasks_blocked()
        return wire


def arrive(
    server: MemoryServer,
    dialect: Dialect = Dialect.NAT_V1,
    *,
    host: str = HOST,
    capacity: int = CAPACITY,
) -> OldClient:
    """Return a client that is connected and has said nothing yet."""
    wire = server.connect(capacity, dialect=dialect, host=host)
    client = OldClient(server, dialect, host, LegacyChannel(wire, dialect))
    server.nursery.start_soon(client.listen)
    return client


async def ask(
    server: MemoryServer,
    dialect: Dialect = Dialect.NAT_V1,
    *,
    username: str = "anybody",
    password: str = "secret",
    host: str = HOST,
    capacity: int = CAPACITY,
) -> OldClient:
    """Return a client that has sent its credentials."""
    client = arrive(server, dialect, host=host, capacity=capacity)
    await client.say(Credentials(username=username, password=password))
    return client


async def welcome(
    server: MemoryServer,
    dialect: Dialect = Dialect.NAT_V1,
    *,
    host: str = HOST,
    capacity: int = CAPACITY,
) -> OldClient:
    """Return a client whose session is up, at a server without logins."""
    client = await ask(server, dialect, host=host, capacity=capacity)
    client.information = await client.hear(UserInformation)
    return client


async def queue(
    server: MemoryServer, position: int, dialect: Dialect = Dialect.NAT_V1
) -> OldClient:
    client = await ask(server, dialect)
    await trio.testing.wait_all_tasks_blocked()
    assert len(server.admission.queue) == position
    return client


# -- the control connection -------------------------------------------------------------------------------------------


async def test_number_port_and_a_word_a_second(
    tidy: Tidy, autojump_clock: MockClock, dialect: Dialect, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with open_memory_server(tidy) as server:
        client = await welcome(server, dialect)
        other = await welcome(server, dialect)
        assert client.information == UserInformation(1, 60001)
        assert other.information == UserInformation(2, 60002)
        assert client.heard == [client.information]
        await trio.sleep(100.5)
        assert client.heard == [client.information] + [KeepAlive()] * 100
        assert {session.username for session in server.sessions} == {ANONYMOUS}
    assert f"dialect={dialect.value}" in next(text for text in caplog.messages if "up" in text)


async def test_known_frames_are_ignored_in_a_session(
    tidy: Tidy, autojump_clock: MockClock, dialect: Dialect
) -> None:
    async with open_memory_server(tidy) as server:
        client = await welcome(server, dialect)
        for _ in range(20):
            await client.say(KeepAlive(), Credentials(username="again", password="again"))
        await trio.sleep(2)
        assert len(server.sessions) == 1
        assert client.ended_at is None


@pytest.mark.parametrize("garbage", [b"\xff" * 20, encode_frame(12345, b""), b"GET / HTTP/1.1\r\n"])
async def test_garbage_ends_a_session(
    tidy: Tidy, autojump_clock: MockClock, garbage: bytes
) -> None:
    async with open_memory_server(tidy) as server:
        client, other = await welcome(server), await welcome(server)
        client.endpoint.send(garbage)
        await client.hear_end()
        assert [session.uid for session in server.sessions] == [other.information.uid]


async def test_a_client_that_does_not_read(tidy: Tidy, autojump_clock: MockClock) -> None:
    async with open_memory_server(tidy, peer_timeout=8) as server:
        client = await welcome(server, capacity=100)
        client._scope.cancel()  # reads no more
        await trio.sleep(8)
        assert len(server.sessions) == 1
        await trio.sleep(100 / 12 + 2)  # it takes 12 bytes a second until it is full
        assert server.sessions == []


async def test_the_kernel_is_asked_to_notice_a_dead_client(
    tidy: Tidy, autojump_clock: MockClock
) -> None:
    async with open_memory_server(tidy, peer_timeout=7.5) as server:
        await welcome(server)
        (session,) = server.sessions
        assert isinstance(session, LegacySession)
        assert isinstance(session.channel.endpoint, MemoryEndpoint)
        assert session.channel.endpoint.silence_limit == 7.5


# -- logging in -------------------------------------------------------------------------------------------------------


async def account(name: str, **changes: object) -> User:
    return attrs.evolve(make_user(name), password=await hash_password("secret"), **changes)  # type: ignore[arg-type]


async def test_login(tidy: Tidy, autojump_clock: MockClock, dialect: Dialect) -> None:
    store = MemoryStore("locked")
    store.users["alice"] = await account("alice")
    store.users["carol"] = await account("carol", expires_at=datetime.now(UTC) - timedelta(1))
    async with open_memory_server(tidy, store=store) as server:
        for name, password in (
            ("alice", "wrong"),
            ("alice", ""),
            ("nobody", "secret"),
            ("", ""),
            ("locked", "secret"),
            ("carol", "secret"),
        ):
            client = await ask(server, dialect, username=name, password=password)
            await client.hear(AuthFail)
            await client.hear_end()
        assert server.sessions == []
        client = await ask(server, dialect, username="alice")
        await client.hear(AuthSuccess)
        assert (await client.hear(UserInformation)).port == 60001
        assert [session.username for session in server.sessions] == ["alice"]


async def test_a_store_that_is_down_is_told_as_a_full_queue(
    tidy: Tidy, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    class Down(MemoryStore):
        async def find_user(self, name: str) -> User | None:
            await trio.lowlevel.checkpoint()
            raise StoreUnavailableError("it is down")

    caplog.set_level(logging.INFO)
    async with open_memory_server(tidy, store=Down()) as server:
        client = await ask(server)
        await client.hear(ConnectionFull)
        await client.hear_end()
    assert any("cannot check accounts" in message for message in caplog.messages)


@pytest.mark.parametrize("what", ["removed", "expired"])
async def test_an_account_that_ends_ends_its_session(
    tidy: Tidy, autojump_clock: MockClock, what: str
) -> None:
    store = MemoryStore()
    store.users["alice"] = await account("alice")
    async with open_memory_server(tidy, store=store) as server:
        client = await ask(server, username="alice")
        await client.hear(AuthSuccess)
        client.information = await client.hear(UserInformation)
        visitor = server.visit(client.port)
        await trio.sleep(WATCH_INTERVAL + 0.1)
        assert len(server.sessions) == 1
        if what == "removed":
            del store.users["alice"]
        else:
            store.users["alice"] = attrs.evolve(store.users["alice"], expires_at=datetime.now(UTC))
        await client.hear(NewConnection)
        started = trio.current_time()
        await client.hear_end()
        assert trio.current_time() - started <= WATCH_INTERVAL + 0.1
        assert await receive_all(visitor) == b""
        await trio.testing.wait_all_tasks_blocked()
        assert server.admission.leases.ports.free == 2  # nobody comes back for it


@pytest.mark.parametrize(
    "first",
    [
        encode(KeepAlive(), Dialect.NAT_V1),
        encode_frame(60001, b"\0" * 20),
        encode_frame(60001, b"\0" * 5000),
        encode_frame(20002, b"\0" * 11),
        b"\xff" * 8,
        b"\0",
    ],
)
async def test_first_messages_that_are_none(
    tidy: Tidy, autojump_clock: MockClock, first: bytes
) -> None:
    async with open_memory_server(tidy, handshake_timeout=10) as server:
        client = arrive(server)
        client.endpoint.send(first)
        started = trio.current_time()
        await client.hear_end()
        assert client.heard == []
        assert trio.current_time() - started < 10.1
        assert server.admission.leases.ports.free == 2


# -- the queue --------------------------------------------------------------------------------------------------------


async def test_queue_in_silence_and_first_come_first_served(
    tidy: Tidy, autojump_clock: MockClock, dialect: Dialect
) -> None:
    async with open_memory_server(tidy, ports=1, port_reservation=0) as server:
        inside = await welcome(server, dialect)
        waiting = [await queue(server, number, dialect) for number in range(1, 4)]
        await trio.sleep(1000)
        assert not any(client.heard for client in waiting)
        for client in waiting:
            inside.hang_up()
            client.information = await client.hear(UserInformation)
            inside = client
        assert [client.information.uid for client in waiting] == [2, 3, 4]


async def test_full(tidy: Tidy, autojump_clock: MockClock, dialect: Dialect) -> None:
    async with open_memory_server(tidy, ports=1, max_conn_num=1) as server:
        await welcome(server, dialect)
        waiting = await queue(server, 1, dialect)
        late = await ask(server, dialect)
        await late.hear(ConnectionFull)
        await late.hear_end()
        assert len(server.admission.queue) == 1
        assert waiting.heard == []


async def test_who_hangs_up_leaves_the_queue_at_once(tidy: Tidy, autojump_clock: MockClock) -> None:
    async with open_memory_server(tidy, ports=1) as server:
        await welcome(server)
        one, two = await queue(server, 1), await queue(server, 2)
        one.hang_up()
        await trio.testing.wait_all_tasks_blocked()
        assert len(server.admission.queue) == 1
        two.endpoint.reset()
        await trio.testing.wait_all_tasks_blocked()
        assert len(server.admission.queue) == 0


@pytest.mark.parametrize("said", [[KeepAlive()] * 20, [Credentials(username="x", password="y")]])
async def test_only_so_much_may_be_said_in_the_queue(
    tidy: Tidy, autojump_clock: MockClock, said: list[LegacyMessage]
) -> None:
    async with open_memory_server(tidy, ports=1) as server:
        await welcome(server)
        client = await queue(server, 1)
        with suppress(PeerError):
            await client.say(*said)
        await trio.testing.wait_all_tasks_blocked()
        assert len(server.admission.queue) == (0 if len(said) > 1 else 1)


async def test_garbage_in_the_queue(tidy: Tidy, autojump_clock: MockClock) -> None:
    async with open_memory_server(tidy, ports=1) as server:
        await welcome(server)
        client = await queue(server, 1)
        client.endpoint.send(b"\xff" * 8)
        await client.hear_end()
        assert len(server.admission.queue) == 0


async def test_old_and_new_clients_share_queue_and_ports(
    tidy: Tidy, autojump_clock: MockClock
) -> None:
    async with open_memory_server(tidy, ports=2, port_reservation=0) as server:
        native = await server.welcome("native")
        old = await welcome(server)
        assert (native.port, old.port) == (60001, 60002)
        waiting = await queue(server, 1)
        await native.say(Close(code="stopped", text="bye"))
        assert (await waiting.hear(UserInformation)).port == 60001
        native.hang_up()
        pool = (again := server.client("native"))
        await pool.ask()
        old.hang_up()
        server.nursery.start_soon(again.ping)
        await trio.sleep(1)
        assert [session.dialect for session in server.sessions] == ["nat-v1", "native"]


# -- visitors ---------------------------------------------------------------------------------------------------------


async def test_one_word_one_tunnel_and_raw_bytes_for_each_visitor(
    tidy: Tidy, autojump_clock: MockClock, dialect: Dialect
) -> None:
    async with open_memory_server(tidy) as server:
        client = await welcome(server, dialect)
        for number in range(1, 4):
            visitor = server.visit(client.port, early=b"question")
            assert await client.hear(NewConnection) == NewConnection()
            wire = await client.tunnel()
            assert await receive_exactly(wire, 8) == b"question"
            wire.send(b"an answer")
            assert await receive_exactly(visitor, 9) == b"an answer"
            visitor.send_eof()
            assert await receive_all(wire) == b""
            wire.send(b", and more")
            wire.close()
            assert await receive_all(visitor) == b", and more"
            await trio.testing.wait_all_tasks_blocked()
            (session,) = server.sessions
            assert (session.tunnels.count, session.tunnels.served) == (0, number)
            assert session.tunnels.relayed == number * len(b"questionan answer, and more")
            assert session.lease.queue.present == 0
        await trio.sleep(5)
        assert client.pending() == []


async def test_bytes_behind_the_first_frame_are_the_visitors(
    tidy: Tidy, autojump_clock: MockClock, dialect: Dialect
) -> None:
    async with open_memory_server(tidy) as server:
        client = await welcome(server, dialect)
        visitor = server.visit(client.port)
        wire = await client.tunnel(early=b"220 ready")
        wire.send(b"\r\n")
        assert await receive_exactly(visitor, 9) == b"220 ready"
        assert await receive_exactly(visitor, 2) == b"\r\n"
        assert server.sessions[0].tunnels.relayed == 11


async def test_who_has_waited_longest_gets_the_tunnel(
    tidy: Tidy, autojump_clock: MockClock
) -> None:
    async with open_memory_server(tidy) as server:
        client = await welcome(server)
        gone, *visitors = [server.visit(client.port, early=b"%d" % number) for number in range(4)]
        gone.reset()
        for number in range(1, 4):
            assert await receive_some(await client.tunnel()) == b"%d" % number
        assert await receive_all(await client.tunnel()) == b""  # nobody waits any more
        assert client.pending() == [NewConnection()] * 4
        assert server.sessions[0].tunnels.count == 3
        for visitor in visitors:
            visitor.close()


async def test_an_unneeded_tunnel_is_closed_at_once(tidy: Tidy, autojump_clock: MockClock) -> None:
    async with open_memory_server(tidy) as server:
        client = await welcome(server)
        started = trio.current_time()
        assert await receive_all(await client.tunnel()) == b""
        assert trio.current_time() - started < 0.1
        assert server.sessions[0].tunnels.count == 0


async def test_visitors_wait_for_eight_seconds(tidy: Tidy, autojump_clock: MockClock) -> None:
    async with open_memory_server(tidy) as server:
        client = await welcome(server)
        started = trio.current_time()
        assert await receive_all(server.visit(client.port)) == b""
        assert 8 <= trio.current_time() - started <= 8.6


@pytest.mark.parametrize("who", ["visitor", "client"])
async def test_a_reset_is_passed_on(tidy: Tidy, autojump_clock: MockClock, who: str) -> None:
    async with open_memory_server(tidy) as server:
        client = await welcome(server)
        visitor = server.visit(client.port, early=b"x")
        wire = await client.tunnel()
        assert await receive_some(wire) == b"x"
        one, two = (visitor, wire) if who == "visitor" else (wire, visitor)
        one.reset()
        with pytest.raises(ConnectionError):
            await receive_some(two)


async def test_a_reset_that_nobody_touches_is_swept(tidy: Tidy, autojump_clock: MockClock) -> None:
    async with open_memory_server(tidy) as server:
        client = await welcome(server)
        visitor = server.visit(client.port)
        wire = await client.tunnel()
        wire.send_eof()
        assert await receive_all(visitor) == b""
        wire.reset()
        await trio.sleep(1.5)
        assert server.sessions[0].tunnels.count == 0
        assert server.sessions[0].lease.queue.present == 0


async def test_too_many_tunnels(tidy: Tidy, autojump_clock: MockClock) -> None:
    async with open_memory_server(tidy, max_visitors=3) as server:
        client = await welcome(server)
        visitors = [server.visit(client.port) for _ in range(3)]
        wires = [await client.tunnel() for _ in range(3)]
        assert await receive_all(await client.tunnel()) == b""
        assert await receive_all(server.visit(client.port)) == b""
        for end in (*visitors, *wires):
            with pytest.raises(BlockingIOError):
                end.recv_into(memoryview(bytearray(20_000)))
        assert server.sessions[0].tunnels.count == 3


@pytest.mark.parametrize("what", ["unknown", "another address", "native", "gone", "negative"])
async def test_whose_tunnel_it_is_not(
    tidy: Tidy,
    autojump_clock: MockClock,
    dialect: Dialect,
    what: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    async with open_memory_server(tidy, ports=3) as server:
        client = await welcome(server, dialect)
        visitor = server.visit(client.port, early=b"not for everybody")
        uid, host = client.information.uid, client.host
        if what == "another address":
            host = "192.0.2.8"
        elif what == "native":
            uid = (await server.welcome("native")).welcome.uid
        elif what == "gone":
            other = await welcome(server, dialect)
            uid = other.information.uid
            other.hang_up()
            await trio.testing.wait_all_tasks_blocked()
        else:
            uid = -1 if what == "negative" else 99
        wire = await client.tunnel(host=host, uid=uid, early=b"mine")
        assert await receive_all(wire) == b""
        await trio.sleep(2)
        assert any(f"session {uid}" in message for message in caplog.messages)
        rightful = await client.tunnel()
        assert await receive_some(rightful) == b"not for everybody"
        visitor.close()


async def test_a_native_tunnel_cannot_be_of_a_legacy_session(
    tidy: Tidy, autojump_clock: MockClock
) -> None:
    async with open_memory_server(tidy) as server:
        client = await welcome(server)
        wire = Channel(server.connect())
        await wire.send(Attach(client.information.uid, bytes(32)))
        refused = await wire.receive()
        assert isinstance(refused, Refused)
        assert refused.code == RefusalCode.UNKNOWN_SESSION
        wire.endpoint.close()


async def test_visitors_come_while_the_client_is_slow(
    tidy: Tidy, autojump_clock: MockClock
) -> None:
    """A word for each of them, none lost and none twice, whatever room there is on the way."""
    async with open_memory_server(tidy) as server:
        client = await welcome(server, capacity=50)
        visitors = []
        for _ in range(100):
            visitors.append(server.visit(client.port))
            if len(visitors) % 7 == 0:
                await trio.sleep(0.01)
        await trio.sleep(3)
        assert client.pending() == [NewConnection()] * 100
        for visitor in visitors:
            visitor.close()


# -- loss and return --------------------------------------------------------------------------------------------------


async def test_a_lost_client_finds_its_port_and_its_visitors(
    tidy: Tidy, autojump_clock: MockClock, dialect: Dialect
) -> None:
    async with open_memory_server(tidy, ports=3, port_reservation=30) as server:
        await server.welcome("native")
        old = await welcome(server, dialect)
        served = server.visit(old.port, early=b"served")
        wire = await old.tunnel()
        assert await receive_some(wire) == b"served"
        waiting = server.visit(old.port, early=b"waiting")
        old.hang_up()
        with pytest.raises(ConnectionError):  # of what it was sent nobody knows how far it went
            await receive_some(served)
        await trio.sleep(1)
        late = server.visit(old.port, early=b"late")
        await trio.sleep(1)
        new = await welcome(server, dialect)
        assert new.port == old.port == 60002
        assert new.information.uid != old.information.uid
        for text in (b"waiting", b"late"):
            assert await new.hear(NewConnection) == NewConnection()
            assert await receive_some(await new.tunnel()) == text
        await trio.sleep(2)
        assert new.pending() == []
        for visitor in (waiting, late):
            visitor.close()


async def test_a_port_is_kept_for_so_long(tidy: Tidy, autojump_clock: MockClock) -> None:
    async with open_memory_server(tidy, ports=1, port_reservation=30) as server:
        (await welcome(server)).hang_up()
        await trio.sleep(29)
        assert server.admission.leases.ports.free == 0
        await trio.sleep(2)
        assert server.admission.leases.ports.free == 1


async def test_back_before_it_was_missed(tidy: Tidy, autojump_clock: MockClock) -> None:
    """A client that hangs up and comes again, so many scheduling steps apart."""
    for steps in range(20):
        async with open_memory_server(tidy, ports=2) as server:
            old = await welcome(server)
            old.hang_up()
            for _ in range(steps):
                await trio.lowlevel.checkpoint()
            new = await welcome(server)
            assert new.port == old.port
            await trio.testing.wait_all_tasks_blocked()
            assert len(server.sessions) == len(server.admission.leases.by_key) == 1


async def test_clients_at_one_address_are_two(tidy: Tidy, autojump_clock: MockClock) -> None:
    """Also when they come back, be it that they change ports then: nobody can tell them apart."""
    async with open_memory_server(tidy, ports=4) as server:
        pair = [await welcome(server) for _ in range(2)]
        assert [client.port for client in pair] == [60001, 60002]
        await trio.sleep(60)
        assert len(server.sessions) == 2
        for client in pair:
            client.hang_up()
        await trio.sleep(1)
        again = [await welcome(server) for _ in range(2)]
        assert sorted(client.port for client in again) == [60001, 60002]
        again[1].hang_up()
        await trio.sleep(1)
        assert (await welcome(server)).port == again[1].port
        assert (await welcome(server)).port == 60003


async def test_many_come_at_once(tidy: Tidy, autojump_clock: MockClock) -> None:
    async with open_memory_server(tidy, ports=4) as server:
        old = [await welcome(server) for _ in range(2)]
        for client in old:
            client.hang_up()
        await trio.sleep(1)
        clients = [await ask(server) for _ in range(6)]
        await trio.sleep(1)
        informed = [message for client in clients for message in client.pending()]
        assert (
            len({message.uid for message in informed if isinstance(message, UserInformation)}) == 4
        )
        assert (
            len({message.port for message in informed if isinstance(message, UserInformation)}) == 4
        )
        assert len(server.admission.queue) == 2


async def test_another_address_or_another_user_is_another_client(
    tidy: Tidy, autojump_clock: MockClock
) -> None:
    store = MemoryStore()
    for name in ("alice", "bob"):
        store.users[name] = await account(name)
    async with open_memory_server(tidy, ports=4, store=store) as server:
        ports = []
        for name, host in (("alice", HOST), ("bob", HOST), ("alice", "192.0.2.8"), ("alice", HOST)):
            client = await ask(server, username=name, host=host)
            await client.hear(AuthSuccess)
            ports.append((await client.hear(UserInformation)).port)
            client.hang_up()
            await trio.testing.wait_all_tasks_blocked()
        assert ports == [60001, 60002, 60003, 60001]


async def test_a_native_client_cannot_claim_a_legacy_ones_lease(
    tidy: Tidy, autojump_clock: MockClock
) -> None:
    async with open_memory_server(tidy, ports=4) as server:
        old = await welcome(server)
        for name in (f"{HOST} #1", str((HOST, 1)), ""):
            assert (await server.welcome(name)).port != old.port
        assert server.sessions[0].dialect == "nat-v1"
        old.hang_up()
        await trio.sleep(1)
        assert (await welcome(server)).port == old.port


@pytest.mark.parametrize("silence", [1.9, 2.1])
async def test_a_client_whose_machine_is_gone_makes_room(
    tidy: Tidy, autojump_clock: MockClock, silence: float
) -> None:
    async with open_memory_server(tidy, ports=3) as server:
        other, old = await welcome(server), await welcome(server)
        session = server.context.sessions.by_uid[old.information.uid]
        assert isinstance(session, LegacySession)
        assert isinstance(session.channel.endpoint, MemoryEndpoint)
        session.channel.endpoint.silence = silence
        new = await welcome(server)
        if silence < 2:
            assert new.port == 60003
            assert len(server.sessions) == 3
        else:
            assert new.port == old.port
            await old.hear_end()
            assert [session.uid for session in server.sessions] == [
                other.information.uid,
                new.information.uid,
            ]


async def test_a_vacant_lease_goes_first(tidy: Tidy, autojump_clock: MockClock) -> None:
    """Nobody is evicted as long as something is free."""
    async with open_memory_server(tidy, ports=3) as server:
        silent, lost = await welcome(server), await welcome(server)
        session = server.context.sessions.by_uid[silent.information.uid]
        assert isinstance(session, LegacySession)
        assert isinstance(session.channel.endpoint, MemoryEndpoint)
        session.channel.endpoint.silence = 100
        lost.hang_up()
        await trio.sleep(1)
        assert (await welcome(server)).port == lost.port
        assert len(server.sessions) == 2


# -- the planned stop, and cancellation -------------------------------------------------------------------------------


async def test_drain_lets_visitors_finish(tidy: Tidy, autojump_clock: MockClock) -> None:
    async with open_memory_server(tidy, drain_grace=30) as server:
        busy, idle = await welcome(server), await welcome(server)
        visitor = server.visit(busy.port, early=b"x")
        wire = await busy.tunnel()
        assert await receive_some(wire) == b"x"
        started = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(server.drain)
            await idle.hear_end()
            assert trio.current_time() - started < 0.1
            late = await ask(server)
            await late.hear(ConnectionFull)
            await trio.sleep(10)
            visitor.send(b"still served")
            assert await receive_some(wire) == b"still served"
            visitor.close()
            wire.close()
        assert busy.pending() == [NewConnection()]
        assert trio.current_time() - started < 11


async def test_drain_ends_with_its_grace(tidy: Tidy, autojump_clock: MockClock) -> None:
    async with open_memory_server(tidy, drain_grace=30) as server:
        client = await welcome(server)
        visitor = server.visit(client.port, early=b"x")
        wire = await client.tunnel()
        assert await receive_some(wire) == b"x"
        started = trio.current_time()
        await server.drain()
        assert 29.9 < trio.current_time() - started < 32
        for end in (visitor, wire):
            with pytest.raises(ConnectionError):
                await receive_some(end)


async def test_who_waits_when_the_server_stops(tidy: Tidy, autojump_clock: MockClock) -> None:
    async with open_memory_server(tidy, ports=1) as server:
        await welcome(server)
        waiting = await queue(server, 1)
        await server.drain()
        await waiting.hear(ConnectionFull)
        await waiting.hear_end()


async def everything(server: MemoryServer, client: OldClient) -> list[MemoryEndpoint]:
    """Visitors in every state."""
    ends = [server.visit(client.port, early=b"hello") for _ in range(4)]
    ends += [await client.tunnel(early=b"x") for _ in range(2)]
    half = await client.tunnel()
    half.send_eof()
    return [*ends, half]


@pytest.mark.parametrize("ticks", range(0, 90, 4))
async def test_cancelled_at_any_point(tidy: Tidy, autojump_clock: MockClock, ticks: int) -> None:
    with trio.CancelScope() as scope:

        async def cancel() -> None:
            for _ in range(ticks):
                await trio.lowlevel.checkpoint()
            scope.cancel()

        async with open_memory_server(tidy, ports=1) as server:
            server.nursery.start_soon(cancel)
            client = await welcome(server)
            await ask(server)
            await everything(server, client)
            await trio.sleep(1000)
    assert scope.cancelled_caught


@pytest.mark.parametrize("ticks", range(0, 30, 3))
async def test_session_ended_at_any_point(
    tidy: Tidy, autojump_clock: MockClock, ticks: int
) -> None:
    async with open_memory_server(tidy, ports=1, port_reservation=0) as server:
        client = await welcome(server)
        ends = await everything(server, client)
        for _ in range(ticks):
            await trio.lowlevel.checkpoint()
        server.sessions[0].end(CloseCode.ACCOUNT_REMOVED, "gone")
        await trio.sleep(3)
        assert server.sessions == []
        assert server.admission.leases.ports.free == 1
        for end in ends:
            assert end.peer.closed
