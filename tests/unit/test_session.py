"""A control session at the server: liveness, visitors and tunnels, drain, ends and their reasons."""

from __future__ import annotations

import logging
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import attrs
import pytest
import trio
import trio.testing

from tests.unit.memory import (
    MemoryEndpoint,
    echo,
    receive_all,
    receive_exactly,
    receive_some,
)
from tests.unit.memory_server import (
    MemoryClient,
    MemoryServer,
    MemoryStore,
    Wire,
    forwarder,
    make_user,
    open_memory_server,
    raw_tunnel,
    token_of,
)
from trionat.address import TCPAddress
from trionat.errors import StoreUnavailableError
from trionat.protocol.frames import encode_frame
from trionat.protocol.messages import (
    APPROVALS,
    CAPABILITIES,
    MOVE,
    NAMES,
    SERVICE_CHANGES,
    Ask,
    Attach,
    Change,
    Changed,
    Close,
    CloseCode,
    Demand,
    Drain,
    Expose,
    Hello,
    Join,
    Message,
    Moved,
    Ping,
    Pong,
    Publish,
    PublishKind,
    Queued,
    RefusalCode,
    Refused,
    ServiceRequest,
    Welcome,
)
from trionat.protocol.tunnel_frames import (
    PROBED_FRAME,
    Abort,
    End,
    Open,
    Probe,
)
from trionat.server.accounts.accounts import WATCH_INTERVAL
from trionat.server.sessions.native import SPARE_TUNNELS, NativeSession
from trionat.transport.channel import Channel

if TYPE_CHECKING:
    from collections.abc import Collection

    from trio.testing import MockClock

    from tests.unit.conftest import Tidy
    from trionat.store.base import User

# -- liveness ---------------------------------------------------------------------------------------------------------


async def test_silent_client_is_given_up(tidy: Tidy, autojump_clock: MockClock) -> None:
    async with open_memory_server(tidy, port_reservation=5) as server:
        client = await server.welcome()
        started = trio.current_time()
        client.deaf = True  # reads, says nothing
        assert (await client.hear(Close)).code == CloseCode.TIMEOUT
        assert 7.9 < trio.current_time() - started < 8.1
        await client.hear_end()
        await trio.testing.wait_all_tasks_blocked()
        assert server.sessions == []
        assert server.admission.leases.ports.free == 1
        await trio.sleep(6)
        assert server.admission.leases.ports.free == 2


async def test_any_message_is_a_sign_of_life(tidy: Tidy, autojump_clock: MockClock) -> None:
    async with open_memory_server(tidy) as server:
        client = await server.welcome()
        client.deaf = True
        for _ in range(10):
            await trio.sleep(7)
            await client.say(Pong(99))
        assert len(server.sessions) == 1


async def test_half_a_message_is_no_sign_of_life(tidy: Tidy, autojump_clock: MockClock) -> None:
    async with open_memory_server(tidy) as server:
        client = await server.welcome()
        client.deaf = True
        for byte in b"\0\0\0\x08\0\0":
            client.endpoint.send(bytes([byte]))
            await trio.sleep(1.2)
        assert len(server.sessions) == 1
        await trio.sleep(1)
        assert server.sessions == []


async def test_pings_are_answered_and_sent(tidy: Tidy, autojump_clock: MockClock) -> None:
    async with open_memory_server(tidy, ping_interval=2.5) as server:
        client = await server.welcome()
        await client.say(Ping(7))
        await trio.sleep(10.1)
        assert Pong(7) in client.heard
        assert [m for m in client.heard if isinstance(m, Ping)] == [Ping(n) for n in (1, 2, 3, 4)]
        session = server.sessions[0]
        assert isinstance(session, NativeSession)
        round_trip = session.link.round_trip
        assert round_trip is not None
        assert round_trip < 0.1


async def test_client_that_does_not_read(tidy: Tidy, autojump_clock: MockClock) -> None:
    """Neither memory nor time without a bound for one that only talks."""
    async with open_memory_server(tidy) as server:
        client = await server.welcome(capacity=100)
        client.vanish()
        for number in range(1000):
            if client.endpoint.peer.closed:
                break
            try:
                await Channel(client.endpoint).send(Ping(number))
            except Exception:  # noqa: BLE001 - the end that is waited for
                break
            await trio.sleep(0.1)
        assert server.sessions == []
        assert client.endpoint.most_held <= 100
        assert number < 200


# -- what a client must not say ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "message",
    [
        Queued(position=1),
        Refused(code="full", text=""),
        Demand(1),
        Hello(username="u", identity="i"),
        Attach(1, bytes(32)),
        Welcome(
            uid=1,
            secret=bytes(32),
            ports=(1,),
            host="",
            ping_interval=1,
            peer_timeout=2,
            max_tunnels=1,
        ),
    ],
    ids=lambda message: type(message).__name__,
)
async def test_messages_that_are_not_a_clients(
    tidy: Tidy, autojump_clock: MockClock, message: Message
) -> None:
    async with open_memory_server(tidy) as server:
        client, other = await server.welcome("rude"), await server.welcome("other")
        await client.say(message)
        closed = await client.hear(Close)
        assert closed.code == CloseCode.PROTOCOL
        assert type(message).__name__.upper() in closed.text
        await client.hear_end()
        assert [session.uid for session in server.sessions] == [other.welcome.uid]


async def test_garbage_in_a_session(tidy: Tidy, autojump_clock: MockClock) -> None:
    async with open_memory_server(tidy) as server:
        client = await server.welcome()
        client.endpoint.send(encode_frame(12345, b""))
        assert (await client.hear(Close)).code == CloseCode.PROTOCOL


# -- tunnels and who may bring them -----------------------------------------------------------------------------------


async def test_open_says_who_comes_and_what_for(tidy: Tidy, autojump_clock: MockClock) -> None:
    async with open_memory_server(tidy) as server:
        client = await server.welcome("two services", 60002, 60001)
        wire = await raw_tunnel(client)
        visitor = server.visit(60001, early=b"hi")
        opened = await wire.next()
        assert isinstance(opened, Open)
        assert opened.service == 1
        assert (opened.host, opened.port) == ("198.51.100.9", 1234)
        assert (opened.visit_host, opened.visit_port) == ("public.example", 60001)
        assert await wire.next() == b"hi"
        wire.data(b"there")
        wire.end()
        assert await receive_all(visitor) == b"there"


@pytest.mark.parametrize("what", ["wrong", "stale", "another session's"])
async def test_secrets(tidy: Tidy, autojump_clock: MockClock, what: str) -> None:
    async with open_memory_server(tidy) as server:
        client = await server.welcome("client")
        secret = bytes(32)
        if what == "stale":
            stale = client.welcome
            client = await server.welcome("client")
            attach = Attach(stale.uid, stale.secret)
            secret = stale.secret
        elif what == "another session's":
            secret = (await server.welcome("other")).welcome.secret
        for uid in {client.welcome.uid, 1}:
            attach = Attach(uid, secret)
            wire = Channel(server.connect())
            await wire.send(attach)
            refused = await wire.receive()
            assert isinstance(refused, Refused)
            assert refused.code == RefusalCode.UNKNOWN_SESSION
            assert await receive_all(wire.endpoint) == b""
            wire.endpoint.close()
        server.visit(client.port)
        assert await client.hear(Demand) == Demand(1)  # nobody got hold of the session


async def test_too_many_tunnels(tidy: Tidy, autojump_clock: MockClock) -> None:
    async with open_memory_server(tidy, max_visitors=3) as server:
        client = await server.welcome()
        limit = client.welcome.max_tunnels
        assert limit == 3 + SPARE_TUNNELS
        wires = [await client.attach() for _ in range(limit)]
        await trio.testing.wait_all_tasks_blocked()
        late = await client.attach()
        refused = await Channel(late).receive()
        assert isinstance(refused, Refused)
        assert refused.code == RefusalCode.UNKNOWN_SESSION
        wires[0].close()
        late.close()
        await trio.testing.wait_all_tasks_blocked()
        assert server.sessions[0].tunnels.count == limit - 1
        again = await client.attach()
        await trio.testing.wait_all_tasks_blocked()
        assert server.sessions[0].tunnels.count == limit
        again.close()


async def test_a_tunnel_that_breaks_the_law_costs_itself_only(
    tidy: Tidy, autojump_clock: MockClock
) -> None:
    async with open_memory_server(tidy) as server:
        client = await server.welcome()
        bad, good = await raw_tunnel(client), await raw_tunnel(client)
        bad.wire.send(b"\xff" * 20)
        assert await receive_all(bad.wire) == b""
        visitor = server.visit(client.port, early=b"x")
        assert isinstance(await good.next(), Open)
        assert len(server.sessions) == 1
        visitor.close()


async def test_idle_tunnels_that_nobody_needs_go_home(
    tidy: Tidy, autojump_clock: MockClock
) -> None:
    async with open_memory_server(tidy) as server:
        client = await server.welcome("client", idle_tunnels=2)
        wires = [await client.attach() for _ in range(5)]
        server.nursery.start_soon(client.ping)
        for wire in wires:
            server.nursery.start_soon(echo_probes, wire)
        await trio.sleep(100)
        assert server.sessions[0].tunnels.count == 2


async def echo_probes(wire: MemoryEndpoint) -> None:
    tunnel = Wire(wire)
    try:
        while isinstance(await tunnel.next(), Probe):
            wire.send(PROBED_FRAME)
    except AssertionError:
        wire.close()


# -- visitors ---------------------------------------------------------------------------------------------------------


async def test_nobody_home(tidy: Tidy, autojump_clock: MockClock) -> None:
    async with open_memory_server(tidy) as server:
        assert await receive_all(server.visit(60001)) == b""


async def test_demand_is_told_at_once_and_again(tidy: Tidy, autojump_clock: MockClock) -> None:
    async with open_memory_server(tidy) as server:
        client = await server.welcome()
        server.visit(client.port)
        started = trio.current_time()
        assert await client.hear(Demand) == Demand(1)
        assert trio.current_time() - started < 0.01
        server.visit(client.port)
        server.visit(client.port)
        assert await client.hear(Demand) == Demand(3)
        await trio.sleep(5.05)
        assert client.pending() == [Demand(3)] * 5
        await trio.sleep(3.5)  # their patience ends after 8 s
        client.pending()
        await trio.sleep(5)
        assert client.pending() == []


async def test_visitors_wait_for_eight_seconds(tidy: Tidy, autojump_clock: MockClock) -> None:
    async with open_memory_server(tidy) as server:
        client = await server.welcome()
        visitor = server.visit(client.port)
        started = trio.current_time()
        assert await receive_all(visitor) == b""
        assert 8 <= trio.current_time() - started <= 8.6
        assert server.sessions[0].lease.queue.present == 0


async def test_first_come_first_served(tidy: Tidy, autojump_clock: MockClock) -> None:
    async with open_memory_server(tidy) as server:
        client = await server.welcome()
        visitors = [server.visit(client.port, early=b"%d" % number) for number in range(3)]
        for number, visitor in enumerate(visitors):
            wire = await raw_tunnel(client)
            assert isinstance(await wire.next(), Open)
            assert await wire.next() == b"%d" % number
            visitor.close()
            assert await wire.next() == End()
            wire.end()
            wire.wire.close()
            await trio.testing.wait_all_tasks_blocked()


async def test_too_many_wait(tidy: Tidy, autojump_clock: MockClock) -> None:
    async with open_memory_server(tidy, max_waiting_visitors=2) as server:
        client = await server.welcome()
        waiting = [server.visit(client.port) for _ in range(2)]
        late = server.visit(client.port)
        assert late.recv_into(memoryview(bytearray(20_000))) == 0
        await raw_tunnel(client)
        for visitor in waiting:
            with pytest.raises(BlockingIOError):
                visitor.recv_into(memoryview(bytearray(20_000)))
        server.visit(client.port).send(b"there is room for this one")


async def test_too_many_are_there(tidy: Tidy, autojump_clock: MockClock) -> None:
    async with open_memory_server(tidy, max_visitors=3, max_waiting_visitors=3) as server:
        client = await server.welcome()
        wires = [await raw_tunnel(client) for _ in range(5)]
        visitors = [server.visit(client.port) for _ in range(4)]
        assert visitors[3].recv_into(memoryview(bytearray(20_000))) == 0
        assert server.sessions[0].lease.queue.present == 3
        visitors[0].reset()
        for wire in wires[4], wires[3], wires[2]:
            opened = await wire.next()
            assert isinstance(opened, Open)
        assert isinstance(await wires[4].next(), Abort)
        wires[4].end()
        await trio.testing.wait_all_tasks_blocked()
        again = server.visit(client.port)
        assert isinstance(await wires[4].next(), Open)
        again.close()


async def test_a_visitor_that_hangs_up_while_it_waits(
    tidy: Tidy, autojump_clock: MockClock
) -> None:
    async with open_memory_server(tidy) as server:
        client = await server.welcome()
        gone, half, stays = (server.visit(client.port, early=text) for text in (b"1", b"2", b"3"))
        gone.reset()
        half.send_eof()
        wire = await raw_tunnel(client)
        assert isinstance(await wire.next(), Open)
        assert await wire.next() == b"2"  # it has only ended its own direction
        assert await wire.next() == End()
        wire.data(b"answer")
        wire.end()
        assert await receive_all(half) == b"answer"
        assert isinstance(await wire.next(), Open)
        assert await wire.next() == b"3"
        stays.close()


# -- the real client's tunnels on the other side ----------------------------------------------------------------------


async def test_hundred_visitors_over_few_tunnels(tidy: Tidy, autojump_clock: MockClock) -> None:
    async with open_memory_server(tidy) as server:
        client = await server.welcome()
        pool = client.pool(forwarder(tidy, server.nursery))
        await trio.sleep(0.1)
        for number in range(100):
            visitor = server.visit(client.port, early=b"x" * number)
            visitor.send_eof()
            assert await receive_all(visitor) == b"x" * number
            await trio.testing.wait_all_tasks_blocked()
        session = server.sessions[0]
        assert session.tunnels.count <= 3
        assert session.tunnels.served == pool.served == 100
        assert session.tunnels.relayed == 2 * sum(range(100))
        assert session.lease.queue.present == 0


async def test_burst_of_visitors(tidy: Tidy, autojump_clock: MockClock) -> None:
    async with open_memory_server(tidy) as server:
        client = await server.welcome()
        client.pool(forwarder(tidy, server.nursery), limit=200)
        visitors = [server.visit(client.port, early=b"%d" % number) for number in range(150)]
        for number, visitor in enumerate(visitors):
            assert await receive_some(visitor) == b"%d" % number
        for visitor in visitors:
            visitor.close()
        await trio.sleep(1)
        assert server.sessions[0].tunnels.served == 150


async def test_refused_local_service(tidy: Tidy, autojump_clock: MockClock) -> None:
    async with open_memory_server(tidy) as server:
        client = await server.welcome()
        client.pool(forwarder(tidy, server.nursery, echo, "cannot be reached"))
        started = trio.current_time()
        assert await receive_all(server.visit(client.port)) == b""
        assert trio.current_time() - started < 0.1
        visitor = server.visit(client.port, early=b"works again")
        assert await receive_some(visitor) == b"works again"


# -- tunnels that die -------------------------------------------------------------------------------------------------


async def test_tunnel_lost_before_a_word(tidy: Tidy, autojump_clock: MockClock) -> None:
    """A visitor of which the service has got nothing goes to another tunnel, also where streams are not resumed."""
    async with open_memory_server(tidy) as server:
        client = await server.welcome()
        first = await raw_tunnel(client)
        visitor = server.visit(client.port)
        assert isinstance(await first.next(), Open)
        first.wire.reset()
        await trio.testing.wait_all_tasks_blocked()
        assert await client.hear(Demand) == Demand(1)
        second = await raw_tunnel(client)
        assert isinstance(await second.next(), Open)
        visitor.send(b"question")
        visitor.send_eof()
        assert await second.next() == b"question"
        assert await second.next() == End()
        second.data(b"answer")
        second.end()
        assert await receive_all(visitor) == b"answer"
        await trio.testing.wait_all_tasks_blocked()
        assert server.sessions[0].tunnels.served == 1
        assert server.sessions[0].tunnels.relayed == len(b"question" + b"answer")


async def test_tunnel_lost_behind_a_word(tidy: Tidy, autojump_clock: MockClock) -> None:
    """Nothing is given to a service twice: without `resume` the visitor is reset."""
    async with open_memory_server(tidy) as server:
        client = await server.welcome()
        first = await raw_tunnel(client)
        visitor = server.visit(client.port, early=b"question")
        assert isinstance(await first.next(), Open)
        assert await first.next() == b"question"
        first.wire.reset()
        with pytest.raises(ConnectionResetError):
            await receive_some(visitor)
        await trio.testing.wait_all_tasks_blocked()
        assert server.sessions[0].tunnels.relayed == len(b"question")


async def test_tunnel_lost_after_an_answer(tidy: Tidy, autojump_clock: MockClock) -> None:
    async with open_memory_server(tidy) as server:
        client = await server.welcome()
        first, second = await raw_tunnel(client), await raw_tunnel(client)
        visitor = server.visit(client.port, early=b"question")
        assert isinstance(await second.next(), Open)
        second.data(b"half an ans")
        assert await receive_some(visitor) == b"half an ans"
        second.wire.reset()
        with pytest.raises(ConnectionResetError):
            await receive_some(visitor)
        other = server.visit(client.port)
        assert isinstance(await first.next(), Open)
        other.close()


async def test_a_visitor_that_kills_tunnels_gets_only_so_many(
    tidy: Tidy, autojump_clock: MockClock
) -> None:
    async with open_memory_server(tidy) as server:
        client = await server.welcome()
        visitor = server.visit(client.port)
        for _ in range(3):
            wire = await raw_tunnel(client)
            assert isinstance(await wire.next(), Open)
            wire.wire.close()
            await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(ConnectionResetError):
            await receive_some(visitor)
        assert server.sessions[0].lease.queue.present == 0


@pytest.mark.parametrize("dead", [1, 6])
async def test_dead_idle_tunnels_do_not_cost_a_visitor(
    tidy: Tidy, autojump_clock: MockClock, dead: int
) -> None:
    """Tunnels whose other ends are silently gone: they are probed with OPEN, and the visitor goes to one that lives.

    However many there are: when the first is probed, so are all.
    """
    async with open_memory_server(tidy) as server:
        client = await server.welcome()
        good = await client.attach()
        gone = [await raw_tunnel(client) for _ in range(dead)]
        server.nursery.start_soon(serve_greeting, good)
        await trio.sleep(5)
        visitor = server.visit(client.port)
        started = trio.current_time()
        assert await receive_some(visitor) == b"hello"
        assert 3 < trio.current_time() - started < 7
        assert await gone[-1].next() == Probe()
        assert isinstance(await gone[-1].next(), Open)


async def serve_greeting(wire: MemoryEndpoint) -> None:
    """What a client does: answer probes, and greet who comes."""
    tunnel = Wire(wire)
    with suppress(AssertionError):  # the wire has ended
        while True:
            match await tunnel.next():
                case Probe():
                    wire.send(PROBED_FRAME)
                case Open():
                    tunnel.data(b"hello")
                case _:
                    pass


async def test_unanswered_probe_of_an_idle_tunnel(tidy: Tidy, autojump_clock: MockClock) -> None:
    async with open_memory_server(tidy) as server:
        client = await server.welcome()
        dead = await raw_tunnel(client)
        started = trio.current_time()
        assert await dead.next() == Probe()
        assert 14 < trio.current_time() - started < 17
        with pytest.raises(ConnectionResetError):  # the other end may be busy writing elsewhere
            await receive_all(dead.wire)
        assert trio.current_time() - started < 23
        await trio.testing.wait_all_tasks_blocked()
        assert server.sessions[0].tunnels.count == 0


# -- loss and return of the session -----------------------------------------------------------------------------------


async def test_visitors_wait_for_the_client_to_come_back(
    tidy: Tidy, autojump_clock: MockClock
) -> None:
    async with open_memory_server(tidy, port_reservation=30) as server:
        old = await server.welcome("same")
        wire = await raw_tunnel(old)
        silent = server.visit(old.port)
        assert isinstance(await wire.next(), Open)
        waiting = server.visit(old.port, early=b"waiting")
        await trio.testing.wait_all_tasks_blocked()
        old.hang_up()
        await receive_all(wire.wire)
        await trio.sleep(1)
        silent.send(b"silent")
        late = server.visit(old.port, early=b"late")
        await trio.sleep(1)
        new = await server.welcome("same")
        assert await new.hear(Demand) == Demand(3)
        new.pool(forwarder(tidy, server.nursery))
        for visitor, text in (
            (silent, b"silent"),
            (waiting, b"waiting"),
            (late, b"late"),
        ):
            assert await receive_exactly(visitor, len(text)) == text
        # Each byte once each way, whichever session took it.
        assert server.counted() == {"anonymity": 2 * len(b"silent" + b"waiting" + b"late")}


async def test_visitors_that_were_answered_are_reset_with_their_session(
    tidy: Tidy, autojump_clock: MockClock
) -> None:
    async with open_memory_server(tidy) as server:
        client = await server.welcome()
        client.pool(forwarder(tidy, server.nursery))
        visitor = server.visit(client.port, early=b"x")
        assert await receive_some(visitor) == b"x"
        server.sessions[0].end(CloseCode.ACCOUNT_REMOVED, "gone")
        with pytest.raises(ConnectionResetError):
            await receive_some(visitor)
        assert (await client.hear(Close)).code == CloseCode.ACCOUNT_REMOVED


async def test_reservation_that_expires_dismisses_who_waits(
    tidy: Tidy, autojump_clock: MockClock
) -> None:
    async with open_memory_server(tidy, port_reservation=3) as server:
        client = await server.welcome()
        client.hang_up()
        await trio.sleep(1)
        visitor = server.visit(client.port)
        assert await receive_all(visitor) == b""
        assert await receive_all(server.visit(client.port)) == b""  # at once: nobody's port


async def test_goodbye_dismisses_who_waits(tidy: Tidy, autojump_clock: MockClock) -> None:
    async with open_memory_server(tidy) as server:
        client = await server.welcome()
        visitor = server.visit(client.port)
        started = trio.current_time()
        await client.say(Close(code="stopped", text="bye"))
        assert await receive_all(visitor) == b""
        assert trio.current_time() - started < 0.1


# -- the planned stop -------------------------------------------------------------------------------------------------


async def test_drain_lets_visitors_finish(tidy: Tidy, autojump_clock: MockClock) -> None:
    async with open_memory_server(tidy, drain_grace=30) as server:
        client, idle = await server.welcome("busy"), await server.welcome("idle")
        client.pool(forwarder(tidy, server.nursery))
        visitor = server.visit(client.port, early=b"x")
        assert await receive_some(visitor) == b"x"
        async with trio.open_nursery() as nursery:
            nursery.start_soon(server.drain)
            started = trio.current_time()
            for other in (client, idle):
                assert await other.hear(Drain) == Drain(seconds=30)
            assert (await idle.hear(Close)).code == CloseCode.STOPPED
            await trio.sleep(10)
            visitor.send(b"still served")
            assert await receive_some(visitor) == b"still served"
            visitor.close()
        assert (await client.hear(Close)).code == CloseCode.STOPPED
        assert trio.current_time() - started < 12


async def test_drain_ends_with_its_grace(tidy: Tidy, autojump_clock: MockClock) -> None:
    async with open_memory_server(tidy, drain_grace=30) as server:
        client = await server.welcome()
        client.pool(forwarder(tidy, server.nursery))
        visitor = server.visit(client.port, early=b"x")
        assert await receive_some(visitor) == b"x"
        started = trio.current_time()
        await server.drain()
        assert 29.9 < trio.current_time() - started < 32
        with pytest.raises(ConnectionResetError):
            await receive_some(visitor)
        await trio.testing.wait_all_tasks_blocked()
        assert server.admission.leases.ports.free == 2


OTHERS = (TCPAddress("b.example", 8007),)


async def test_who_can_go_to_another_server_is_told_of_it_and_has_time_for_it(
    tidy: Tidy, autojump_clock: MockClock
) -> None:
    async with open_memory_server(tidy, drain_grace=30, other_servers=OTHERS) as server:
        moves = server.client("moves", capabilities=(*CAPABILITIES, MOVE))
        await moves.ask()
        await moves.hear(Welcome)
        older = await server.welcome("older")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(server.drain)
            started = trio.current_time()
            assert await older.hear(Drain) == Drain(seconds=30)
            assert (await older.hear(Close)).code == CloseCode.STOPPED
            assert trio.current_time() - started < 1
            assert await moves.hear(Drain) == Drain(seconds=30, servers=OTHERS)
            await trio.sleep(4)
            assert len(server.sessions) == 1
            await moves.say(Moved())
            assert (await moves.hear(Close)).text == "the client has moved to another server"
        assert 4 <= trio.current_time() - started < 7


async def test_who_does_not_go_is_waited_for_a_few_seconds(
    tidy: Tidy, autojump_clock: MockClock
) -> None:
    async with open_memory_server(tidy, drain_grace=30, other_servers=OTHERS) as server:
        moves = server.client("moves", capabilities=(*CAPABILITIES, MOVE))
        await moves.ask()
        assert MOVE in (await moves.hear(Welcome)).capabilities
        started = trio.current_time()
        await server.drain()
        assert 5 <= trio.current_time() - started < 6
        await moves.hear(Drain)
        assert (await moves.hear(Close)).code == CloseCode.STOPPED


async def test_nobody_moves_unasked(tidy: Tidy, autojump_clock: MockClock) -> None:
    async with open_memory_server(tidy, drain_grace=30, other_servers=OTHERS) as server:
        client = server.client("moves", capabilities=(*CAPABILITIES, MOVE))
        await client.ask()
        await client.hear(Welcome)
        await client.say(Moved())
        assert (await client.hear(Close)).code == CloseCode.PROTOCOL


async def test_a_drain_that_is_told_again_and_again_is_one_line(
    tidy: Tidy, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with open_memory_server(tidy) as server:
        client = await server.welcome()
        for _ in range(1000):
            await client.say(Drain(seconds=10))
        await trio.testing.wait_all_tasks_blocked()
        await client.say(Close(code="stopped", text="bye"))
        await client.hear_end()
    assert sum("the client is leaving" in message for message in caplog.messages) == 1


async def test_client_drains(tidy: Tidy, autojump_clock: MockClock) -> None:
    async with open_memory_server(tidy) as server:
        client = await server.welcome()
        client.pool(forwarder(tidy, server.nursery))
        visitor = server.visit(client.port, early=b"x")
        assert await receive_some(visitor) == b"x"
        await client.say(Drain(seconds=10))
        await trio.testing.wait_all_tasks_blocked()
        assert await receive_all(server.visit(client.port)) == b""
        visitor.send(b"still served")
        assert await receive_some(visitor) == b"still served"
        visitor.close()
        await client.say(Close(code="stopped", text="bye"))
        await client.hear_end()
        await trio.testing.wait_all_tasks_blocked()
        assert server.admission.leases.ports.free == 2


async def test_what_a_leaving_client_sent_last_arrives(
    tidy: Tidy, autojump_clock: MockClock
) -> None:
    """CLOSE comes on another connection than the last bytes, and may be faster."""
    async with open_memory_server(tidy) as server:
        client = await server.welcome()
        wire = await raw_tunnel(client)
        visitor = server.visit(client.port, capacity=500)
        waiting = server.visit(client.port)
        visitor.send_eof()
        assert isinstance(await wire.next(), Open)
        assert await wire.next() == End()
        wire.data(bytes(50_000))
        wire.end()
        wire.wire.send_eof()
        await client.say(Close(code="stopped", text="bye"))
        assert await receive_all(visitor) == bytes(50_000)
        assert await receive_all(waiting) == b""
        started = trio.current_time()
        await client.hear_end()
        await trio.testing.wait_all_tasks_blocked()
        assert trio.current_time() - started < 0.1
        assert server.admission.leases.ports.free == 2


async def test_a_leaving_client_is_not_waited_for(tidy: Tidy, autojump_clock: MockClock) -> None:
    async with open_memory_server(tidy) as server:
        client = await server.welcome()
        await raw_tunnel(client)
        visitor = server.visit(client.port)
        await client.say(Close(code="stopped", text="bye"))
        started = trio.current_time()
        with pytest.raises(ConnectionResetError):
            await receive_some(visitor)
        assert trio.current_time() - started < 1.1
        await client.hear_end()
        await trio.testing.wait_all_tasks_blocked()
        assert server.admission.leases.ports.free == 2


# -- accounts ---------------------------------------------------------------------------------------------------------


async def log_in(server: MemoryServer, name: str) -> MemoryClient:
    client = server.client(name, username=name, token=token_of(name))
    await client.ask()
    client.welcome = await client.hear(Welcome)
    return client


async def test_login(tidy: Tidy, autojump_clock: MockClock) -> None:
    store = MemoryStore("alice", "bob")
    store.users["carol"] = make_user("carol", datetime.now(UTC) - timedelta(seconds=1))
    async with open_memory_server(tidy, store=store) as server:
        await log_in(server, "alice")
        for name, token, code in (
            ("bob", token_of("alice"), RefusalCode.AUTH_FAILED),
            ("nobody", token_of("nobody"), RefusalCode.AUTH_FAILED),
            ("carol", token_of("carol"), RefusalCode.ACCOUNT_EXPIRED),
        ):
            client = server.client(name, username=name, token=token)
            await client.ask()
            assert (await client.hear(Refused)).code == code
            await client.hear_end()
        assert [session.username for session in server.sessions] == ["alice"]


@pytest.mark.parametrize("what", ["removed", "made anew", "disabled", "expired"])
async def test_account_that_ends_ends_its_sessions(
    tidy: Tidy, autojump_clock: MockClock, what: str
) -> None:
    store = MemoryStore("alice", "bob")
    async with open_memory_server(tidy, store=store) as server:
        alice, bob = await log_in(server, "alice"), await log_in(server, "bob")
        visitor = server.visit(alice.port)
        await trio.sleep(3)
        assert len(server.sessions) == 2
        if what == "removed":
            del store.users["alice"]
            code = CloseCode.ACCOUNT_REMOVED
        elif what == "made anew":  # of the same name, for somebody else
            store.users["alice"] = attrs.evolve(make_user("alice"), account_id=2)
            code = CloseCode.ACCOUNT_REMOVED
        elif what == "disabled":
            store.users["alice"] = attrs.evolve(store.users["alice"], disabled=True)
            code = CloseCode.ACCOUNT_EXPIRED
        else:
            store.users["alice"] = make_user("alice", datetime.now(UTC))
            code = CloseCode.ACCOUNT_EXPIRED
        started = trio.current_time()
        alice.pending()
        closed = await alice.hear(Close)
        assert closed.code == code
        assert "alice" in closed.text
        assert trio.current_time() - started <= WATCH_INTERVAL
        await alice.hear_end()
        assert await receive_all(visitor) == b""
        await trio.testing.wait_all_tasks_blocked()
        assert server.admission.leases.ports.free == 1
        assert [session.username for session in server.sessions] == ["bob"]
        assert bob.pending() == []


async def test_a_store_that_is_down_ends_no_session(
    tidy: Tidy, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    class Failing(MemoryStore):
        down = False

        async def find_users(self, names: Collection[str]) -> dict[str, User]:
            users = await super().find_users(names)
            if self.down:
                raise StoreUnavailableError("database 192.0.2.1:3306: Connection refused")
            return users

    caplog.set_level(logging.INFO, "trionat")
    store = Failing("alice")
    async with open_memory_server(tidy, store=store) as server:
        alice = await log_in(server, "alice")
        for _ in range(2):
            store.down = True
            await trio.sleep(5 * WATCH_INTERVAL)
            store.down = False
            await trio.sleep(2 * WATCH_INTERVAL)
        assert alice.pending() == []
        assert len(server.sessions) == 1
        assert caplog.text.count("sessions go on") == caplog.text.count("asked again") == 2
        del store.users["alice"]
        assert (await alice.hear(Close)).code == CloseCode.ACCOUNT_REMOVED


async def test_same_identity_of_two_users(tidy: Tidy, autojump_clock: MockClock) -> None:
    async with open_memory_server(tidy, store=MemoryStore("alice", "bob")) as server:
        for name in ("alice", "bob"):
            client = server.client("same", username=name, token=token_of(name))
            await client.ask()
            await client.hear(Welcome)
        assert len(server.sessions) == 2


# -- cancellation -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ticks", range(0, 90, 4))
async def test_cancelled_at_any_point(tidy: Tidy, autojump_clock: MockClock, ticks: int) -> None:
    with trio.CancelScope() as scope:

        async def cancel() -> None:
            for _ in range(ticks):
                await trio.lowlevel.checkpoint()
            scope.cancel()

        async with open_memory_server(tidy, ports=1) as server:
            server.nursery.start_soon(cancel)
            client = await server.welcome("one")
            client.pool(forwarder(tidy, server.nursery))
            other = server.client("two")
            await other.ask()
            for _ in range(20):
                visitor = server.visit(client.port, early=b"hello")
                with suppress(OSError):  # reset, when the end comes now
                    visitor.send_eof()
                    await receive_all(visitor)
    assert scope.cancelled_caught


@pytest.mark.parametrize("ticks", range(0, 60, 3))
async def test_session_ended_at_any_point(
    tidy: Tidy, autojump_clock: MockClock, ticks: int
) -> None:
    async with open_memory_server(tidy, ports=1, port_reservation=0) as server:
        client = await server.welcome("one")
        client.pool(forwarder(tidy, server.nursery))
        visitors = [server.visit(client.port, early=b"hello") for _ in range(3)]
        for _ in range(ticks):
            await trio.lowlevel.checkpoint()
        server.sessions[0].end(CloseCode.ACCOUNT_REMOVED, "gone")
        await trio.sleep(3)
        assert server.sessions == []
        assert server.admission.leases.ports.free == 1
        for visitor in visitors:
            assert visitor.peer.closed


async def test_numbers_of_plain_tunnels(tidy: Tidy, autojump_clock: MockClock) -> None:
    """Each is good once, in any order within a window; a session that is to use TLS takes none."""
    async with open_memory_server(tidy) as server:
        client = await server.welcome("client")
        uid, secret = client.welcome.uid, client.welcome.secret
        session = server.context.sessions.by_uid[uid]
        assert isinstance(session, NativeSession)

        def joins(number: int) -> bool:
            wire, other_end = tidy.pair()
            taken = session.attach_plain(wire, Join.prove(uid, number, secret))
            other_end.close()
            if not taken:
                wire.close()
            return taken

        assert not joins(1)
        session.plain_tunnels = True
        assert [joins(number) for number in (1, 3, 2, 3, 1)] == [True, True, True, False, False]
        assert joins(5000)
        assert not joins(3975)
        assert joins(3976)
        assert not joins(3976)


# -- approvals --------------------------------------------------------------------------------------------------------


async def test_each_question_to_the_owner_is_asked(tidy: Tidy, autojump_clock: MockClock) -> None:
    """Also where several come in one moment, as when a client is back; the oldest comes first."""
    async with open_memory_server(tidy, domain="tunnel.test") as server:
        client = server.client()
        publish = Publish(kind=PublishKind.HTTPS, approve=True)
        hello = Hello(username="anybody", identity="me", capabilities=(NAMES, APPROVALS))
        await client.say(hello, Expose(services=(ServiceRequest(publish=publish),) * 2))
        welcome = await client.hear(Welcome)
        await trio.testing.wait_all_tasks_blocked()
        hosts = [f"192.0.2.{number}" for number in (3, 1, 2)]
        for port in welcome.ports:
            restrictions = server.admission.leases.ports.ports[port].restrictions
            assert restrictions is not None
            for host in hosts:
                restrictions.ask(host, "GET /")
        with trio.fail_after(1):
            asked = [await client.hear(Ask) for _ in range(6)]
        for service in (0, 1):
            assert [ask.host for ask in asked if ask.service == service] == hosts
        client.hang_up()


async def test_changes_without_a_pause_get_no_more_than_a_few_answers_a_second(
    tidy: Tidy, autojump_clock: MockClock
) -> None:
    """Each is logged, and may ask the store: a client must not fill the one, or keep the other busy. The first one has its answer at once."""
    async with open_memory_server(tidy) as server:
        client = server.client()
        hello = Hello(username="anybody", identity="me", capabilities=(SERVICE_CHANGES,))
        await client.say(hello, Expose(services=(ServiceRequest(),)))
        await client.hear(Welcome)
        began = trio.current_time()
        nobody_left = Change(removed=(0,), added=())
        for number, change in enumerate((nobody_left, Change(removed=(), added=())) * 3):
            await client.say(change)
            await client.hear(Changed)
            assert (trio.current_time() - began < 0.1) is (number == 0)
        assert trio.current_time() - began > 1
        client.hang_up()
