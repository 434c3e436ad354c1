"""What `/metrics` read of a server: the same as a snapshot has, and counts that stay when a session has ended."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from tests.unit.memory import receive_some
from tests.unit.memory_server import MemoryStore, open_memory_server
from tests.unit.test_metrics import come_in, give_tunnels, knock, observe
from trionat.address import TCPAddress
from trionat.protocol.conversation import Side
from trionat.protocol.frames import encode_frame
from trionat.protocol.messages import Queued
from trionat.protocol.tunnel_frames import DATA_ID, END_FRAME
from trionat.relay.raw_tunnel import RawTunnel
from trionat.server.admin.readings import Present
from trionat.server.admission.authenticator import LocalAuthenticator
from trionat.server.handshakes import PendingHandshakes
from trionat.server.tally import DONE, FAILED, Tally
from trionat.server.visitors.visitor import Visitor
from trionat.transport.endpoint import send_all

if TYPE_CHECKING:
    from trio.testing import MockClock

    from tests.unit.conftest import Tidy
    from trionat.server.admin.readings import Readings
    from trionat.server.admin.snapshot import Snapshot


def present_of(snapshot: Snapshot) -> Present:
    """Count in a snapshot."""
    visitors = [visitor for session in snapshot.sessions for visitor in session.visitors]
    return Present(
        sessions=len(snapshot.sessions),
        served=sum(not visitor.waiting for visitor in visitors),
        waiting=sum(visitor.waiting for visitor in visitors)
        + sum(each.waiting for each in snapshot.reserved),
        reserved=len(snapshot.reserved),
        queued=len(snapshot.queue),
        idle=sum(session.tunnels_idle for session in snapshot.sessions),
        busy=sum(session.tunnels_busy for session in snapshot.sessions),
    )


def bytes_of(snapshot: Snapshot) -> dict[str, tuple[int, int]]:
    return {
        session.user: (session.received, session.sent)
        for session in snapshot.sessions
        if session.received or session.sent
    }


async def test_it_is_what_a_snapshot_has(tidy: Tidy, autojump_clock: MockClock) -> None:
    store = MemoryStore("alice", "bob", "carol", "dave")
    async with open_memory_server(
        tidy, ports=4, store=store, max_tcp_conn_num=3, visitor_wait=100, tally=Tally()
    ) as server:
        metrics = observe(server)
        alice = await come_in(server, "alice", 60003, 60001)
        bob = await come_in(server, "bob", 60002)
        await bob.attach()
        bob.hang_up()
        await trio.testing.wait_all_tasks_blocked()
        dave = await come_in(server, "dave", 60004)
        await dave.attach()
        carol = knock(server, "carol")
        await carol.ask()
        assert (await carol.hear(Queued)).position == 1
        wires = await give_tunnels(alice, 2)
        for port in (60001, 60003, 60003, 60002):
            server.visit(port, early=b"12345")
        await trio.testing.wait_all_tasks_blocked()
        wires[0].send(encode_frame(DATA_ID, b"123"))
        await trio.testing.wait_all_tasks_blocked()
        snapshot, readings = await metrics.snapshot(), await metrics.readings()
        assert readings.present == present_of(snapshot)
        assert readings.present == Present(
            sessions=2, served=2, waiting=2, reserved=1, queued=1, idle=1, busy=2
        )
        assert dict(readings.traffic.shown) == bytes_of(snapshot) == {"alice": (10, 3)}
        assert (readings.sessions, readings.refused) == (3, snapshot.refused)
        assert readings.server.ports_held == snapshot.server.ports_held


async def test_no_count_goes_down_when_a_session_ends(
    tidy: Tidy, autojump_clock: MockClock
) -> None:
    async with open_memory_server(
        tidy, store=MemoryStore("alice"), port_reservation=0, tally=Tally()
    ) as server:
        metrics = observe(server)
        seen: list[Readings] = []
        for round_ in range(3):
            client = await come_in(server, "alice", identity=str(round_))
            [wire] = await give_tunnels(client, 1)
            visitor = server.visit(client.port, early=b"1234")
            await trio.sleep(2)
            wire.send(encode_frame(DATA_ID, b"123456"))
            await trio.sleep(1)
            seen.append(await metrics.readings())
            wire.send(encode_frame(DATA_ID, b"12"))  # which nobody looks at before the end
            await trio.sleep(1)
            if round_ == 1:
                wire.send(END_FRAME)
                visitor.send_eof()
            client.hang_up()
            await trio.sleep(1)
            seen.append(await metrics.readings())
        assert [reading.present.sessions for reading in seen] == [1, 0] * 3
        assert [reading.traffic.total for reading in seen] == [
            (4, 6),
            (4, 8),
            (8, 14),
            (8, 16),
            (12, 22),
            (12, 24),
        ]
        assert [reading.traffic.shown["alice"] for reading in seen] == [
            reading.traffic.total for reading in seen
        ]
        assert [reading.sessions for reading in seen] == [1, 1, 2, 2, 3, 3]
        last = seen[-1]
        assert sum(last.first_byte.counts) == 3
        assert last.first_byte.seconds == pytest.approx(6)
        assert sum(last.visitor_duration.counts) == 3


async def test_a_first_byte_counts_once_and_only_where_it_comes(
    tidy: Tidy, autojump_clock: MockClock
) -> None:
    async with open_memory_server(tidy, tally=(tally := Tally())) as server:
        client = await server.welcome()
        wires = await give_tunnels(client, 2)
        answered, silent = server.visit(client.port), server.visit(client.port)
        await trio.sleep(0.3)
        for _ in range(3):
            wires[1].send(encode_frame(DATA_ID, b"123456"))
            await trio.sleep(1)
        assert sum(tally.first_byte.figures.counts) == 1
        assert tally.first_byte.figures.seconds == pytest.approx(0.3)
        assert sum(tally.visitor_duration.figures.counts) == 0
        for visitor in (answered, silent):
            visitor.reset()
        await trio.sleep(2)
        assert sum(tally.first_byte.figures.counts) == 1


async def test_who_waited_in_vain_has_lived_as_well(tidy: Tidy, autojump_clock: MockClock) -> None:
    async with open_memory_server(tidy, visitor_wait=3, tally=(tally := Tally())) as server:
        client = await server.welcome()
        server.visit(client.port)
        await trio.sleep(10)
        assert sum(tally.first_byte.figures.counts) == 0
        assert sum(tally.visitor_duration.figures.counts) == 1
        assert 3 <= tally.visitor_duration.figures.seconds <= 4


async def test_nothing_is_counted_where_metrics_are_off(tidy: Tidy) -> None:
    async with open_memory_server(tidy) as server:
        client = await server.welcome()
        [wire] = await give_tunnels(client, 1)
        server.visit(client.port)
        await trio.testing.wait_all_tasks_blocked()
        [session] = server.sessions
        [(visitor, stream)] = session.tunnels.streams.items()
        assert (visitor.tally, stream.on_answer) == (None, None)
        wire.send(encode_frame(DATA_ID, b"123456"))
        await trio.testing.wait_all_tasks_blocked()
        assert stream.given == 6


async def test_quotas_are_those_of_who_is_there(tidy: Tidy, autojump_clock: MockClock) -> None:
    store = MemoryStore("alice", "bob")
    store.limit("alice", monthly_quota=100)
    store.month = {"alice": 60, "bob": 5}
    async with open_memory_server(tidy, store=store, tally=Tally()) as server:
        authenticator = server.context.authenticator
        assert isinstance(authenticator, LocalAuthenticator)
        quotas = authenticator.accounts.quotas
        alice = await come_in(server, "alice")
        await come_in(server, "bob")
        assert quotas == {"alice": (60, 100)}
        store.month["alice"] = 70
        await trio.sleep(3)
        assert quotas == {"alice": (70, 100)}
        store.limit("bob", monthly_quota=10)
        await trio.sleep(3)
        assert quotas == {"alice": (70, 100), "bob": (5, 10)}
        alice.hang_up()
        await trio.sleep(3)
        assert quotas == {"bob": (5, 10)}
        store.limit("bob")
        await trio.sleep(3)
        assert quotas == {}


async def test_a_visitor_of_an_old_client_is_counted_as_well(tidy: Tidy) -> None:
    """Its tunnel has no frames, and bytes are given to it at another place."""
    tally = Tally()
    (visitor_far, plain), (far, wire) = tidy.pair(), tidy.pair()
    visitor = Visitor(
        number=1,
        endpoint=plain,
        address=TCPAddress("198.51.100.9", 1234),
        service=0,
        visited=TCPAddress("public.example", 60001),
        tally=tally,
    )
    async with trio.open_nursery() as nursery:
        nursery.start_soon(RawTunnel(wire, visitor.new_stream(), Side.SERVER).run)
        for _ in range(2):
            await send_all(far, b"123")
            assert await receive_some(visitor_far) == b"123"
        assert sum(tally.first_byte.figures.counts) == 1
        nursery.cancel_scope.cancel()
    far.close()
    visitor_far.close()


async def test_handshakes_are_counted_by_their_first_end() -> None:
    tally = Tally()
    handshakes = PendingHandshakes(3, 3, tally=tally)
    scopes = [trio.CancelScope() for _ in range(4)]
    for number, scope in enumerate(scopes[:3]):
        handshakes.add(scope, f"host{number}")
    assert tally.pending_handshakes == 3
    handshakes.add(scopes[3], "host3")  # the oldest makes room
    assert (tally.pending_handshakes, tally.handshakes) == (3, {FAILED: 1})
    handshakes.fail(scopes[0])
    handshakes.finish(scopes[1])
    handshakes.fail(scopes[1])
    handshakes.fail(scopes[2])
    handshakes.remove(scopes[3])
    assert (tally.pending_handshakes, tally.handshakes) == (0, {FAILED: 2, DONE: 1})
