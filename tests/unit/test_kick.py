"""Sending somebody away: who is gone when it is done, who hears of it, and who is left alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio
import trio.testing

from tests.unit.memory import receive_exactly, receive_some
from tests.unit.memory_server import MemoryStore, forwarder, open_house
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
    async with open_house(tidy, ports=3) as house:
        guest, other = await house.welcome("one"), await house.welcome("two")
        wires = await give_tunnels(guest, 1)
        served = house.visit(guest.port)
        await trio.testing.wait_all_tasks_blocked()
        waiting = house.visit(guest.port)
        bystander = house.visit(other.port)
        start = trio.current_time()
        kicked = await kick(house.desk, KickSession(guest.welcome.uid))
        assert kicked == Kicked(sessions=(guest.welcome.uid,))
        assert trio.current_time() == start
        assert house.admission.ports.free == 2
        assert was_reset(served)
        assert was_ended(waiting)
        assert not was_reset(bystander)
        assert (await guest.hear(Close)).code == CloseCode.KICKED
        await guest.hear_end()
        assert [session.uid for session in house.sessions] == [other.welcome.uid]
        again = await house.welcome("one")  # no ban
        assert again.port != other.port
        wires[0].close()


async def test_a_client_that_does_not_listen(tidy: Tidy, autojump_clock: MockClock) -> None:
    """Others who are sent away with it do not wait for it, and whoever waits for all of them waits in peace."""
    async with open_house(tidy, ping_interval=1) as house:
        await house.welcome("listens")
        guest = await house.welcome("does not", capacity=2 * len(encode_message(Ping(1))))
        guest.vanish()
        await trio.sleep(2.5)
        start = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(kick, house.desk, KickUser(ANONYMOUS))
            await trio.testing.wait_all_tasks_blocked()
            assert house.admission.ports.free == 1
        assert trio.current_time() - start == 1  # for the last word
        assert house.admission.ports.free == 2


async def test_all_of_a_user(tidy: Tidy, autojump_clock: MockClock) -> None:
    """Sessions, places in the queue, reserved ports; and nothing of anybody else."""
    store = MemoryStore("alice", "bob")
    async with open_house(tidy, ports=4, store=store, max_tcp_conn_num=4) as house:
        up = [await come_in(house, "alice", identity=name) for name in ("a", "b")]
        lost = await come_in(house, "alice", identity="lost")
        bob = await come_in(house, "bob")
        lost.hang_up()
        queued, queued_bob = knock(house, "alice", "queued"), knock(house, "bob", "queued")
        for guest in (queued, queued_bob):
            await guest.ask()
            await guest.hear(Queued)
        kicked = await kick(house.desk, KickUser("alice"))
        assert kicked == Kicked(
            sessions=(up[0].welcome.uid, up[1].welcome.uid), queued=1, reserved=(lost.port,)
        )
        for guest in up:
            assert (await guest.hear(Close)).code == CloseCode.KICKED
        assert (await queued.hear(Refused)).code == CloseCode.KICKED
        assert (await queued_bob.hear(Queued)).position == 1
        await queued_bob.hear(Welcome)
        assert {session.username for session in house.sessions} == {"bob"}
        assert bob.ended_at is None
        assert await kick(house.desk, KickUser("alice")) == Kicked()


async def test_a_client_on_its_way_to_its_lease(tidy: Tidy, autojump_clock: MockClock) -> None:
    """It has a slot and waits for a port; then it has both, and does not know yet. Neither may be lost."""
    store = MemoryStore("alice", "bob")
    async with open_house(tidy, ports=2, store=store, max_tcp_conn_num=2) as house:
        bob = await come_in(house, "bob", None, None)
        alice = knock(house, "alice")
        await alice.ask()
        await alice.hear(Queued)
        assert (await kick(house.desk, KickUser("alice"))).queued == 1
        assert (await alice.hear(Refused)).code == CloseCode.KICKED

        for steps in range(12):
            alice = knock(house, "alice", str(steps))
            await alice.ask()
            await alice.hear(Queued)
            await kick(house.desk, KickUser("bob"))
            for _ in range(steps):
                await trio.lowlevel.checkpoint()
            assert await kick(house.desk, KickUser("alice")) != Kicked()
            await trio.testing.wait_all_tasks_blocked()
            assert house.sessions == []
            assert house.admission.ports.free == 2
            bob = await come_in(house, "bob", None, None)
        assert bob.ended_at is None


async def test_a_visitor_that_is_served(tidy: Tidy, autojump_clock: MockClock) -> None:
    async with open_house(tidy) as house:
        guest = await house.welcome()
        [wire] = await give_tunnels(guest, 1)
        visitor = house.visit(guest.port, early=b"hello")
        await trio.testing.wait_all_tasks_blocked()
        reader = TunnelReader()
        reader.feed(memoryview(await receive_some(wire)))
        opened = reader.next()
        assert isinstance(opened, Open)
        assert bytes(reader.next() or b"") == b"hello"  # type: ignore[arg-type]
        kicked = await kick(house.desk, KickVisitor(opened.visitor))
        assert kicked == Kicked(visitors=(opened.visitor,))
        assert was_reset(visitor)
        reader.feed(memoryview(await receive_some(wire)))
        assert reader.next() == Abort(
            opened.visitor, AbortReason.OTHER, "sent away by the server's operator"
        )
        assert await kick(house.desk, KickVisitor(opened.visitor + 1)) == Kicked()


async def test_the_tunnel_of_a_kicked_visitor_serves_the_next_one(
    tidy: Tidy, autojump_clock: MockClock
) -> None:
    async with open_house(tidy) as house:
        guest = await house.welcome()
        pool = guest.pool(forwarder(tidy, house.nursery))
        await trio.testing.wait_all_tasks_blocked()
        for _ in range(5):
            visitor = house.visit(guest.port)
            visitor.send(b"echo")
            assert await receive_exactly(visitor, 4) == b"echo"
            [[served]] = [session.tunnels.pairings for session in house.sessions]
            await kick(house.desk, KickVisitor(served.number))
            assert was_reset(visitor)
            await trio.testing.wait_all_tasks_blocked()
        assert house.sessions[0].tunnels.served == 5
        assert house.sessions[0].tunnels.count <= 3
        assert pool is not None


async def test_a_visitor_that_waits(tidy: Tidy, autojump_clock: MockClock) -> None:
    async with open_house(tidy) as house:
        guest = await house.welcome()
        visitors = [house.visit(guest.port) for _ in range(3)]
        line = house.sessions[0].lease.line
        numbers = [visitor.number for visitor in line.in_line]
        assert await kick(house.desk, KickVisitor(numbers[1])) == Kicked(visitors=(numbers[1],))
        assert [was_reset(visitor) for visitor in visitors] == [False, True, False]
        assert [visitor.number for visitor in line.in_line] == [numbers[0], numbers[2]]
        assert line.present == 2
        guest.hang_up()
        await trio.testing.wait_all_tasks_blocked()
        assert (
            house.sessions == []
        )  # they wait for the client to come back, and can be kicked there
        assert await kick(house.desk, KickVisitor(numbers[0])) == Kicked(visitors=(numbers[0],))
        assert was_reset(visitors[0])


async def test_a_legacy_session_and_its_visitors(tidy: Tidy, autojump_clock: MockClock) -> None:
    """It cannot be told; it is closed, and its port is not reserved for it."""
    async with open_house(tidy, ports=1) as house:
        guest = await welcome(house)
        visitors = [house.visit(guest.port) for _ in range(3)]
        tunnels = [await guest.tunnel() for _ in range(2)]
        [session] = house.sessions
        [number, _] = [visitor.number for visitor in session.tunnels.pairings]
        assert await kick(house.desk, KickVisitor(number)) == Kicked(visitors=(number,))
        await trio.testing.wait_all_tasks_blocked()
        assert sorted(map(was_reset, visitors)) == [False, False, True]
        assert sorted(map(was_reset, tunnels)) == [False, True]
        start = trio.current_time()
        assert (await kick(house.desk, KickSession(session.uid))).sessions == (session.uid,)
        assert trio.current_time() == start
        assert house.admission.ports.free == 1
        await trio.testing.wait_all_tasks_blocked()
        assert guest.ended_at == start


async def test_nobody(tidy: Tidy, autojump_clock: MockClock) -> None:
    async with open_house(tidy) as house:
        await house.welcome()
        for request in (KickSession(99), KickUser("nobody"), KickVisitor(99)):
            kicked = await kick(house.desk, request)
            assert not kicked.anybody
        assert len(house.sessions) == 1
