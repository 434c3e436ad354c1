"""Sending somebody away: who is gone when it is done, who hears of it, and who is left alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio
import trio.testing

from tests.unit.memory import receive_exactly, receive_some
from tests.unit.memory_server import MemoryStore, forwarder, open_memory_server
from tests.unit.test_legacy_session import welcome
from tests.unit.test_metrics import come_in, give_tunnels, knock
from trionat.protocol.messages import (
    Close,
    CloseCode,
    Ping,
    Queued,
    Refused,
    Welcome,
    encode_message,
)
from trionat.protocol.tunnel_frames import Abort, AbortReason, Open, TunnelReader
from trionat.server.accounts.accounts import ANONYMOUS
from trionat.server.admin.kick import kick
from trionat.server.admin.messages import Kicked, KickSession, KickUser, KickVisitor

if TYPE_CHECKING:
    from trio.testing import MockClock

    from tests.unit.conftest import Tidy
    from tests.unit.memory import MemoryEndpoint


def was_reset(visitor: MemoryEndpoint) -> bool:
    return visitor.is_lost()


def was_ended(visitor: MemoryEndpoint) -> bool:
    return visitor.recv_into(memoryview(bytearray(20_000))) == 0


async def test_a_session(tidy: Tidy, autojump_clock: MockClock) -> None:
    """Told, not reserved, its visitors closed, all when the call returns; the other one does not notice."""
    async with open_memory_server(tidy, ports=3) as server:
        client, other = await server.welcome("one"), await server.welcome("two")
        wires = await give_tunnels(client, 1)
        served = server.visit(client.port)
        await trio.testing.wait_all_tasks_blocked()
        waiting = server.visit(client.port)
        bystander = server.visit(other.port)
        start = trio.current_time()
        kicked = await kick(server.context, KickSession(client.welcome.uid))
        assert kicked == Kicked(sessions=(client.welcome.uid,))
        assert trio.current_time() == start
        assert server.admission.leases.ports.free == 2
        assert was_reset(served)
        assert was_ended(waiting)
        assert not was_reset(bystander)
        assert (await client.hear(Close)).code == CloseCode.KICKED
        await client.hear_end()
        assert [session.uid for session in server.sessions] == [other.welcome.uid]
        again = await server.welcome("one")  # no ban
        assert again.port != other.port
        wires[0].close()


async def test_a_client_that_does_not_listen(tidy: Tidy, autojump_clock: MockClock) -> None:
    """Others who are sent away with it do not wait for it, and whoever waits for all of them waits in peace."""
    async with open_memory_server(tidy, ping_interval=1) as server:
        await server.welcome("listens")
        client = await server.welcome("does not", capacity=2 * len(encode_message(Ping(1))))
        client.vanish()
        await trio.sleep(2.5)
        start = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(kick, server.context, KickUser(ANONYMOUS))
            await trio.testing.wait_all_tasks_blocked()
            assert server.admission.leases.ports.free == 1
        assert trio.current_time() - start == 1  # for the last word
        assert server.admission.leases.ports.free == 2


async def test_all_of_a_user(tidy: Tidy, autojump_clock: MockClock) -> None:
    """Sessions, places in the queue, reserved ports; and nothing of anybody else."""
    store = MemoryStore("alice", "bob")
    async with open_memory_server(tidy, ports=4, store=store, max_tcp_conn_num=4) as server:
        up = [await come_in(server, "alice", identity=name) for name in ("a", "b")]
        lost = await come_in(server, "alice", identity="lost")
        bob = await come_in(server, "bob")
        lost.hang_up()
        queued, queued_bob = knock(server, "alice", "queued"), knock(server, "bob", "queued")
        for client in (queued, queued_bob):
            await client.ask()
            await client.hear(Queued)
        kicked = await kick(server.context, KickUser("alice"))
        assert kicked == Kicked(
            sessions=(up[0].welcome.uid, up[1].welcome.uid), queued=1, reserved=(lost.port,)
        )
        for client in up:
            assert (await client.hear(Close)).code == CloseCode.KICKED
        assert (await queued.hear(Refused)).code == CloseCode.KICKED
        await queued_bob.hear(Welcome)  # at once: nobody who was sent away gets a port first
        assert {session.username for session in server.sessions} == {"bob"}
        assert bob.ended_at is None
        assert await kick(server.context, KickUser("alice")) == Kicked()


async def test_a_client_on_its_way_to_its_lease(tidy: Tidy, autojump_clock: MockClock) -> None:
    """It has a slot and waits for a port; then it has both, and does not know yet. Neither may be lost."""
    store = MemoryStore("alice", "bob")
    async with open_memory_server(tidy, ports=2, store=store, max_tcp_conn_num=2) as server:
        bob = await come_in(server, "bob", None, None)
        alice = knock(server, "alice")
        await alice.ask()
        await alice.hear(Queued)
        assert (await kick(server.context, KickUser("alice"))).queued == 1
        assert (await alice.hear(Refused)).code == CloseCode.KICKED

        for steps in range(12):
            alice = knock(server, "alice", str(steps))
            await alice.ask()
            await alice.hear(Queued)
            await kick(server.context, KickUser("bob"))
            for _ in range(steps):
                await trio.lowlevel.checkpoint()
            assert await kick(server.context, KickUser("alice")) != Kicked()
            await trio.testing.wait_all_tasks_blocked()
            assert server.sessions == []
            assert server.admission.leases.ports.free == 2
            bob = await come_in(server, "bob", None, None)
        assert bob.ended_at is None


async def test_a_visitor_that_is_served(tidy: Tidy, autojump_clock: MockClock) -> None:
    async with open_memory_server(tidy) as server:
        client = await server.welcome()
        [wire] = await give_tunnels(client, 1)
        visitor = server.visit(client.port, early=b"hello")
        await trio.testing.wait_all_tasks_blocked()
        reader = TunnelReader()
        reader.feed(memoryview(await receive_some(wire)))
        opened = reader.next()
        assert isinstance(opened, Open)
        assert bytes(reader.next() or b"") == b"hello"  # type: ignore[arg-type]
        kicked = await kick(server.context, KickVisitor(opened.visitor))
        assert kicked == Kicked(visitors=(opened.visitor,))
        assert was_reset(visitor)
        reader.feed(memoryview(await receive_some(wire)))
        assert reader.next() == Abort(
            opened.visitor, AbortReason.OTHER, "sent away by the server's operator"
        )
        assert await kick(server.context, KickVisitor(opened.visitor + 1)) == Kicked()


async def test_the_tunnel_of_a_kicked_visitor_serves_the_next_one(
    tidy: Tidy, autojump_clock: MockClock
) -> None:
    async with open_memory_server(tidy) as server:
        client = await server.welcome()
        pool = client.pool(forwarder(tidy, server.nursery))
        await trio.testing.wait_all_tasks_blocked()
        for _ in range(5):
            visitor = server.visit(client.port)
            visitor.send(b"echo")
            assert await receive_exactly(visitor, 4) == b"echo"
            [[served]] = [session.tunnels.streams for session in server.sessions]
            await kick(server.context, KickVisitor(served.number))
            assert was_reset(visitor)
            await trio.testing.wait_all_tasks_blocked()
        assert server.sessions[0].tunnels.served == 5
        assert server.sessions[0].tunnels.count <= 3
        assert pool is not None


async def test_a_visitor_that_waits(tidy: Tidy, autojump_clock: MockClock) -> None:
    async with open_memory_server(tidy) as server:
        client = await server.welcome()
        visitors = [server.visit(client.port) for _ in range(3)]
        line = server.sessions[0].lease.queue
        numbers = [visitor.number for visitor in line.waiting_visitors]
        assert await kick(server.context, KickVisitor(numbers[1])) == Kicked(visitors=(numbers[1],))
        assert [was_reset(visitor) for visitor in visitors] == [False, True, False]
        assert [visitor.number for visitor in line.waiting_visitors] == [numbers[0], numbers[2]]
        assert line.present == 2
        client.hang_up()
        await trio.testing.wait_all_tasks_blocked()
        assert (
            server.sessions == []
        )  # they wait for the client to come back, and can be kicked there
        assert await kick(server.context, KickVisitor(numbers[0])) == Kicked(visitors=(numbers[0],))
        assert was_reset(visitors[0])


async def test_a_legacy_session_and_its_visitors(tidy: Tidy, autojump_clock: MockClock) -> None:
    """It cannot be told; it is closed, and its port is not reserved for it."""
    async with open_memory_server(tidy, ports=1) as server:
        client = await welcome(server)
        visitors = [server.visit(client.port) for _ in range(3)]
        tunnels = [await client.tunnel() for _ in range(2)]
        [session] = server.sessions
        [number, _] = [visitor.number for visitor in session.tunnels.streams]
        assert await kick(server.context, KickVisitor(number)) == Kicked(visitors=(number,))
        await trio.testing.wait_all_tasks_blocked()
        assert sorted(map(was_reset, visitors)) == [False, False, True]
        assert sorted(map(was_reset, tunnels)) == [False, True]
        start = trio.current_time()
        assert (await kick(server.context, KickSession(session.uid))).sessions == (session.uid,)
        assert trio.current_time() == start
        assert server.admission.leases.ports.free == 1
        await trio.testing.wait_all_tasks_blocked()
        assert client.ended_at == start


async def test_nobody(tidy: Tidy, autojump_clock: MockClock) -> None:
    async with open_memory_server(tidy) as server:
        await server.welcome()
        for request in (KickSession(99), KickUser("nobody"), KickVisitor(99)):
            kicked = await kick(server.context, request)
            assert not kicked.anybody
        assert len(server.sessions) == 1
