"""Snapshots of a server: every value of them, on a clock that stands still while nothing happens."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import attrs
import trio
import trio.testing

from tests.unit.memory_server import (
    MemoryClient,
    MemoryServer,
    MemoryStore,
    open_memory_server,
    token_of,
)
from trionat.address import TCPAddress
from trionat.events import Ready
from trionat.protocol.frames import encode_frame
from trionat.protocol.messages import Queued, Welcome
from trionat.protocol.tunnel_frames import DATA_ID, Abort, AbortReason
from trionat.server.admin.metrics import Metrics
from trionat.server.admin.snapshot import (
    QueuedView,
    ReservedView,
    ServiceView,
    SessionView,
    Snapshot,
    VisitorView,
)
from trionat.transport.descriptors import Descriptors

if TYPE_CHECKING:
    from trio.testing import MockClock

    from tests.unit.conftest import Tidy
    from tests.unit.memory import MemoryEndpoint

NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)
READY = Ready(
    name="Name",
    control=TCPAddress("0.0.0.0", 8007),
    tunnel=TCPAddress("0.0.0.0", 8008),
    public=TCPAddress("public.example", 8007),
    visit_ports=(60001,),
    sessions=1,
    authentication=True,
    fingerprint="x",
    state_dir="x",
)


def observe(server: MemoryServer) -> Metrics:
    """Return an metrics who counts; the clock of the test began at noon."""
    descriptors = Descriptors()
    descriptors.close()  # nobody listens here
    now = lambda: NOON + timedelta(seconds=trio.current_time())  # noqa: E731 - a clock
    metrics = Metrics(READY, server.context, descriptors, now)
    server.nursery.start_soon(metrics.count_rates)
    return metrics


def knock(server: MemoryServer, user: str, identity: str = "client") -> MemoryClient:
    return server.client(identity, username=user, token=token_of(user))


async def come_in(
    server: MemoryServer, user: str, *services: int | None, identity: str = "x"
) -> MemoryClient:
    client = knock(server, user, identity)
    await client.ask(*services)
    client.welcome = await client.hear(Welcome)
    return client


async def give_tunnels(client: MemoryClient, count: int) -> list[MemoryEndpoint]:
    """Return the wires of tunnels on which nobody speaks by himself."""
    wires = [await client.attach() for _ in range(count)]
    await trio.testing.wait_all_tasks_blocked()
    return wires


async def test_a_server_with_nobody(tidy: Tidy, autojump_clock: MockClock) -> None:
    async with open_memory_server(tidy, ports=3, max_tcp_conn_num=2) as server:
        metrics = observe(server)
        await trio.sleep(90)
        snapshot = await metrics.snapshot()
        assert attrs.asdict(snapshot.server) | {"version": ""} == {
            "name": "Name",
            "version": "",
            "since": "2026-11-23T12:00:00.000Z",
            "seconds": 90.0,
            "control": "0.0.0.0:8007",
            "tunnel": "0.0.0.0:8008",
            "ports_free": 3,
            "ports_held": 0,
            "session_limit": 2,
            "queue_places": 128,
            "rate": 0.0,
            "stopping": False,
            "drained": False,
        }
        assert (snapshot.sessions, snapshot.queue, snapshot.reserved) == ((), (), ())
        server.stopping.set()
        assert (await metrics.snapshot()).server.stopping


async def test_sessions_visitors_queue(tidy: Tidy, autojump_clock: MockClock) -> None:
    store = MemoryStore("alice", "bob", "carol")
    async with open_memory_server(
        tidy, ports=4, store=store, max_tcp_conn_num=2, visitor_wait=100, ping_interval=1
    ) as server:
        metrics = observe(server)
        alice = await come_in(server, "alice", 60003, 60001)  # connection 1
        await come_in(server, "bob")  # connection 2
        await trio.sleep(1)
        carol = knock(server, "carol")  # connection 3
        await carol.ask()
        assert (await carol.hear(Queued)).position == 1
        server.nursery.start_soon(carol.ping)

        wires = await give_tunnels(alice, 3)  # connections 4 to 6
        await trio.sleep_until(2)
        visitors = [server.visit(60001, early=b"12345"), server.visit(60003)]  # 7 and 8
        await trio.sleep_until(3)
        server.visit(60003)  # 9
        server.visit(60003)  # 10, for which there is no tunnel
        await trio.testing.wait_all_tasks_blocked()
        for wire in wires:
            wire.send(encode_frame(DATA_ID, b"123"))
        await trio.sleep_until(12)  # counted at 5 and 10
        visitors[0].send(b"6" * 70)
        await trio.sleep_until(12.5)

        [one, two] = (await metrics.snapshot()).sessions
        assert one == SessionView(
            uid=1,
            user="alice",
            client="MemoryClient",
            dialect="native",
            address="192.0.2.7:1",
            since="2026-11-23T12:00:00.000Z",
            seconds=12.5,
            round_trip=0.0,
            services=(
                ServiceView(name="", local="", port=60003),
                ServiceView(name="", local="", port=60001),
            ),
            visitors=(
                VisitorView(
                    number=7,
                    address="198.51.100.9:1234",
                    port=60001,
                    since="2026-11-23T12:00:02.000Z",
                    seconds=10.5,
                    received=75,
                    sent=3,
                    waiting=False,
                ),
                VisitorView(
                    number=8,
                    address="198.51.100.9:1234",
                    port=60003,
                    since="2026-11-23T12:00:02.000Z",
                    seconds=10.5,
                    received=0,
                    sent=3,
                    waiting=False,
                ),
                VisitorView(
                    number=9,
                    address="198.51.100.9:1234",
                    port=60003,
                    since="2026-11-23T12:00:03.000Z",
                    seconds=9.5,
                    received=0,
                    sent=3,
                    waiting=False,
                ),
                VisitorView(
                    number=10,
                    address="198.51.100.9:1234",
                    port=60003,
                    since="2026-11-23T12:00:03.000Z",
                    seconds=9.5,
                    received=0,
                    sent=0,
                    waiting=True,
                ),
            ),
            tunnels_idle=0,
            tunnels_busy=3,
            received=75,
            sent=9,
            rate=round(70 / 7.5, 1),
        )
        assert (two.uid, two.user, two.address, two.visitors) == (2, "bob", "192.0.2.7:2", ())
        assert (two.rate, two.received, two.sent, two.tunnels_idle) == (0.0, 0, 0, 0)

        snapshot = await metrics.snapshot()
        assert snapshot.queue == (
            QueuedView(
                position=1,
                user="carol",
                client="MemoryClient",
                address="192.0.2.7:3",
                since="2026-11-23T12:00:01.000Z",
                seconds=11.5,
            ),
        )
        assert (snapshot.server.ports_held, snapshot.server.ports_free) == (3, 1)
        assert snapshot.server.rate == one.rate
        assert Snapshot.of(json.loads(json.dumps(attrs.asdict(snapshot)))) == snapshot


async def test_what_has_left_counts_for_its_session(tidy: Tidy, autojump_clock: MockClock) -> None:
    async with open_memory_server(tidy) as server:
        metrics = observe(server)
        client = await server.welcome()
        [wire] = await give_tunnels(client, 1)
        visitor = server.visit(client.port, early=b"123")
        await trio.testing.wait_all_tasks_blocked()
        wire.send(encode_frame(DATA_ID, b"12345"))
        await trio.testing.wait_all_tasks_blocked()
        [served] = server.sessions[0].tunnels.streams
        visitor.reset()
        await trio.sleep(1.5)
        wire.send(Abort(served.number, AbortReason.RESET, "").encode())
        await trio.testing.wait_all_tasks_blocked()
        [session] = (await metrics.snapshot()).sessions
        assert session.visitors == ()
        assert (session.received, session.sent) == (3, 5)


async def test_a_session_is_as_fast_as_it_was_since_it_began(
    tidy: Tidy, autojump_clock: MockClock
) -> None:
    """Not slower because there was a time before it."""
    async with open_memory_server(tidy) as server:
        metrics = observe(server)
        await trio.sleep(4)
        client = await server.welcome()
        await give_tunnels(client, 1)
        server.visit(client.port, early=b"1234")
        await trio.testing.wait_all_tasks_blocked()
        assert (await metrics.snapshot()).sessions[0].rate == 0.0  # not infinitely fast
        await trio.sleep_until(6)
        assert (await metrics.snapshot()).sessions[0].rate == 2.0
        await trio.sleep_until(11)
        assert (await metrics.snapshot()).sessions[0].rate == 0.0


async def test_ports_reserved_for_a_client_that_was_lost(
    tidy: Tidy, autojump_clock: MockClock
) -> None:
    store = MemoryStore("alice", "bob")
    async with open_memory_server(
        tidy, store=store, port_reservation=30, visitor_wait=100
    ) as server:
        metrics = observe(server)
        lost = await come_in(server, "alice", identity="same")
        left = await come_in(server, "bob")
        await trio.sleep(2)
        lost.hang_up()
        left.hang_up()
        await trio.sleep_until(9.25)
        server.visit(lost.port)
        snapshot = await metrics.snapshot()
        assert snapshot.sessions == ()
        assert snapshot.reserved[0] == ReservedView(
            user="alice",
            ports=(60001,),
            since="2026-11-23T12:00:02.000Z",
            seconds=7.25,
            remaining=22.75,
            waiting=1,
            visitors=(
                VisitorView(
                    number=3,
                    address="198.51.100.9:1234",
                    port=60001,
                    since="2026-11-23T12:00:09.250Z",
                    seconds=0.0,
                    received=0,
                    sent=0,
                    waiting=True,
                ),
            ),
        )
        assert Snapshot.of(json.loads(json.dumps(attrs.asdict(snapshot)))) == snapshot
        assert len(snapshot.reserved) == 2
        again = await come_in(server, "alice", identity="same")
        assert again.port == lost.port
        [back] = (await metrics.snapshot()).sessions
        assert back.visitors[0].waiting
        assert [each.user for each in (await metrics.snapshot()).reserved] == ["bob"]
        await trio.sleep_until(33)
        assert (await metrics.snapshot()).reserved == ()


async def test_those_who_wait_for_a_port_stand_before_the_queue(
    tidy: Tidy, autojump_clock: MockClock
) -> None:
    """Slots are free, and ports are not: dispatchers have taken them out of the queue, which they are still in for all others."""
    async with open_memory_server(tidy, ports=2, max_tcp_conn_num=2, task_queue_num=1) as server:
        metrics = observe(server)
        await server.welcome("first", None, None)
        waiting: dict[str, Any] = {}
        for name in ("second", "third"):
            waiting[name] = server.client(name, name=name)
            await waiting[name].ask()
            await waiting[name].hear(Queued)
            await trio.sleep(1)
        queue = (await metrics.snapshot()).queue
        assert [(each.client, each.seconds) for each in queue] == [("second", 2.1), ("third", 1.05)]


async def test_what_was_refused(tidy: Tidy, autojump_clock: MockClock) -> None:
    async with open_memory_server(tidy, max_visitors=2, visitor_wait=1, ban_after=1) as server:
        metrics = observe(server)
        await come_in(server, "anonymity")
        for _ in range(5):
            server.visit(60001)
        await trio.sleep(2)
        metrics.descriptors.refused = 7
        server.context.bans.fail("192.0.2.1")
        server.context.bans.fail("2001:db8::1")
        await trio.sleep(2)
        snapshot = await metrics.snapshot()
        assert snapshot.refused == {"MaxVisitors": 3, "VisitorWait": 2, "descriptors": 7}
        assert [(each.network, each.remaining) for each in snapshot.banned] == [
            ("192.0.2.1", server.config.ban_time - 2),
            ("2001:db8::/64", server.config.ban_time - 2),
        ]
        await trio.sleep(server.config.ban_time)
        assert (await metrics.snapshot()).banned == ()
