"""Streams that outlive their tunnels and sessions, at the server and in a client's pool of tunnels."""

from __future__ import annotations

import random
import re
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from tests.unit.memory import MemoryEndpoint, receive_all, receive_exactly, receive_some
from tests.unit.memory_server import (
    MemoryClient,
    MemoryForwarder,
    MemoryServer,
    forwarder,
    open_memory_server,
    raw_tunnel,
)
from trionat.client.native.early import EarlyStreams
from trionat.client.native.streams import WaitingStreams
from trionat.client.native.tunnel_pool import TunnelPool
from trionat.errors import PeerError
from trionat.protocol.messages import (
    CAPABILITIES,
    RESUME,
    Acks,
    Begin,
    Close,
    CloseCode,
    Demand,
    Drain,
    Early,
    Lost,
    Welcome,
)
from trionat.protocol.tunnel_frames import (
    PROBED_FRAME,
    Abort,
    AbortReason,
    Ack,
    End,
    Open,
    Probe,
    Resume,
    Resumed,
)
from trionat.relay.early import EarlyOutbox
from trionat.relay.liveness import SWEEP_INTERVAL
from trionat.server.admin.kick import kick
from trionat.server.admin.messages import Kicked, KickVisitor
from trionat.server.sessions.native_tunnels import NativeTunnels
from trionat.transport.control_link import ControlLink
from trionat.transport.endpoint import send_all

if TYPE_CHECKING:
    from trio.testing import MockClock

    from tests.unit.conftest import Tidy


async def resuming(
    server: MemoryServer, identity: str = "same", lease: str | None = None
) -> MemoryClient:
    """Return a client that can resume streams, and still has those of that lease; its session is up."""
    client = server.client(identity, capabilities=(*CAPABILITIES, RESUME), resume=lease)
    await client.ask()
    client.welcome = await client.hear(Welcome)
    return client


def lease_of(client: MemoryClient) -> str:
    assert client.welcome.resumption is not None
    return client.welcome.resumption.lease


def was_reset(endpoint: MemoryEndpoint) -> bool:
    return endpoint._lost


# -- at the server ----------------------------------------------------------------------------------------------------


async def test_only_who_can_is_told_how(tidy: Tidy, autojump_clock: MockClock) -> None:
    async with open_memory_server(tidy, ports=3, resume_wait=20, resume_buffer=65536) as server:
        assert (await server.welcome("cannot")).welcome.resumption is None
        resumption = (await resuming(server, "can")).welcome.resumption
        assert resumption is not None
        assert (resumption.wait, resumption.buffer) == (20, 65536)
        assert (await resuming(server, "too")).welcome.resumption != resumption


@pytest.mark.parametrize(("wait", "reservation"), [(0, 30), (30, 0)])
async def test_where_it_is_switched_off(
    tidy: Tidy, autojump_clock: MockClock, wait: float, reservation: float
) -> None:
    async with open_memory_server(tidy, resume_wait=wait, port_reservation=reservation) as server:
        client = await resuming(server)
        assert client.welcome.resumption is None
        assert RESUME not in client.welcome.capabilities


async def test_over_another_tunnel(tidy: Tidy, autojump_clock: MockClock) -> None:
    async with open_memory_server(tidy) as server:
        client = await resuming(server)
        first = await raw_tunnel(client)
        visitor = server.visit(client.port, early=b"one, ")
        opened = await first.opened()
        assert await first.next() == b"one, "
        visitor.send(b"two, ")
        assert await first.next() == b"two, "
        first.data(b"half an ")
        assert await receive_some(visitor) == b"half an "
        first.wire.reset()
        await trio.testing.wait_all_tasks_blocked()
        assert (server.sessions[0].lease.queue.waiting, server.sessions[0].tunnels.served) == (1, 1)
        visitor.send(b"three")
        visitor.send_eof()
        assert await client.hear(Demand) == Demand(1)
        second = await raw_tunnel(client)
        assert await second.next() == Resume(opened, received=8, kept=0, attempt=1)
        second.wire.send(Resumed(len(b"one, ")).encode())
        second.data(b"answer")
        second.end()
        received = b""
        while isinstance(event := await second.next(), bytes):
            received += event
        assert (received, event) == (b"two, three", End())
        assert await receive_all(visitor) == b"answer"
        await trio.testing.wait_all_tasks_blocked()
        assert server.sessions[0].tunnels.served == 1
        assert server.sessions[0].tunnels.relayed == len(b"one, two, three" + b"half an answer")


async def test_what_is_acknowledged_is_not_kept(tidy: Tidy, autojump_clock: MockClock) -> None:
    async with open_memory_server(tidy) as server:
        client = await resuming(server)
        wire = await raw_tunnel(client)
        server.visit(client.port, early=b"0123456789")
        opened = await wire.opened()
        memory = server.sessions[0].lease.send_memory
        (stream,) = server.sessions[0].tunnels.streams.values()
        buffer = stream.send_buffer
        assert buffer is not None
        assert (buffer.held, memory.held) == (10, 10)
        wire.wire.send(Ack(opened.visitor, 4).encode())
        await trio.testing.wait_all_tasks_blocked()
        assert buffer.held == 6
        await client.say(Acks(((opened.visitor, 7), (99, 5))))
        await trio.testing.wait_all_tasks_blocked()
        assert (buffer.held, memory.held) == (3, 10)  # in one piece
        wire.wire.reset()
        other = await raw_tunnel(client)
        assert await other.next() == Resume(opened, received=0, kept=7, attempt=1)
        other.wire.send(Resumed(8).encode())
        assert await other.next() == b"89"


async def test_ack_of_more_than_was_sent_ends_the_session(
    tidy: Tidy, autojump_clock: MockClock
) -> None:
    async with open_memory_server(tidy) as server:
        client = await resuming(server)
        wire = await raw_tunnel(client)
        server.visit(client.port, early=b"0123456789")
        opened = await wire.opened()
        await client.say(Acks(((opened.visitor, 11),)))
        assert (await client.hear(Close)).code == CloseCode.PROTOCOL


async def test_what_is_received_is_told_once_a_second(
    tidy: Tidy, autojump_clock: MockClock
) -> None:
    async with open_memory_server(tidy) as server:
        client = await resuming(server)
        wire = await raw_tunnel(client)
        visitor = server.visit(client.port)
        opened = await wire.opened()
        wire.data(b"12345")
        assert await receive_some(visitor) == b"12345"
        started = trio.current_time()
        assert await client.hear(Acks) == Acks(((opened.visitor, 5),))
        assert trio.current_time() - started <= 1
        await trio.sleep(5)
        assert not client.pending()


async def test_a_client_that_has_lost_a_tunnel_says_so(
    tidy: Tidy, autojump_clock: MockClock
) -> None:
    async with open_memory_server(tidy) as server:
        client = await resuming(server)
        dead, other = await raw_tunnel(client), await raw_tunnel(client)
        server.visit(client.port, early=b"x")
        opened = await other.opened()
        await client.say(Lost(((opened.visitor, 0),)))
        assert await dead.next() == Resume(opened, received=0, kept=0, attempt=1)
        dead.wire.send(Resumed(1).encode())
        await client.say(Lost(((opened.visitor, 0), (99, 0))))  # late: not about this tunnel
        await trio.testing.wait_all_tasks_blocked()
        assert server.sessions[0].tunnels.count == 1
        await client.say(Lost(((opened.visitor, 1),)))
        await trio.testing.wait_all_tasks_blocked()
        assert server.sessions[0].tunnels.count == 0


@pytest.mark.parametrize("noticed_by", ["server", "client"])
async def test_tunnels_that_may_have_died_together_are_not_tried_one_after_another(
    tidy: Tidy, autojump_clock: MockClock, noticed_by: str
) -> None:
    """Those that are idle are probed, and get nobody before they have answered: a new tunnel is faster."""
    async with open_memory_server(tidy) as server:
        client = await resuming(server)
        server.nursery.start_soon(client.ping)
        dead = [await raw_tunnel(client) for _ in range(3)]
        server.visit(client.port, early=b"x")
        opened = await dead[2].next()
        assert isinstance(opened, Open)
        await trio.sleep(3)
        lost = trio.current_time()
        if noticed_by == "server":
            assert isinstance(dead[2].wire.peer, MemoryEndpoint)
            dead[2].wire.peer.silence = 300.0
        else:
            await client.say(Lost(((opened.visitor, 0),)))
        assert await client.hear(Demand) == Demand(1)
        new = await raw_tunnel(client)
        assert isinstance(await new.next(), bytes | Resume)
        assert trio.current_time() - lost < 6
        for wire in dead[:2]:
            assert await wire.next() == Probe()
            with suppress(AssertionError, ConnectionResetError):  # it has ended
                while True:
                    assert isinstance(await wire.next(), Probe)


async def test_a_tunnel_that_is_in_doubt_and_lives_goes_on(
    tidy: Tidy, autojump_clock: MockClock
) -> None:
    async with open_memory_server(tidy) as server:
        client = await resuming(server)
        other, busy = await raw_tunnel(client), await raw_tunnel(client)
        server.visit(client.port, early=b"x")
        opened = await busy.opened()
        await trio.sleep(3)
        await client.say(Lost(((opened.visitor, 0),)))
        assert await other.next() == Probe()
        await trio.sleep(2)
        queue = server.sessions[0].lease.queue
        assert (queue.waiting, queue.idle) == (1, 0)
        other.wire.send(PROBED_FRAME)
        assert await other.next() == Resume(opened, received=0, kept=0, attempt=1)
        assert queue.waiting == 0


async def test_who_comes_while_a_tunnel_is_silent_gets_no_other_that_is(
    tidy: Tidy, autojump_clock: MockClock
) -> None:
    """It begins on the control connection, which lives."""
    async with open_memory_server(tidy) as server:
        client = await resuming(server)
        server.nursery.start_soon(client.ping)
        other, busy = await raw_tunnel(client), await raw_tunnel(client)
        server.visit(client.port, early=b"x")
        assert isinstance(await busy.next(), Open)
        assert isinstance(busy.wire.peer, MemoryEndpoint)
        busy.wire.peer.silence = 300.0
        await trio.sleep(3.5)
        assert server.sessions[0].tunnels.count == 2
        server.visit(client.port, early=b"y")
        await trio.testing.wait_all_tasks_blocked()
        assert [message for message in client.heard if isinstance(message, Begin)]
        assert await other.next() == Probe()
        other.wire.send(PROBED_FRAME)
        assert isinstance(await other.next(), Resume | Probe)


async def test_over_another_session(tidy: Tidy, autojump_clock: MockClock) -> None:
    async with open_memory_server(tidy) as server:
        old = await resuming(server)
        wire = await raw_tunnel(old)
        visitor = server.visit(old.port, early=b"question")
        opened = await wire.opened()
        wire.data(b"ans")
        assert await receive_some(visitor) == b"ans"
        old.hang_up()
        await trio.sleep(25)
        new = await resuming(server, lease=lease_of(old))
        assert lease_of(new) == lease_of(old)
        wire = await raw_tunnel(new)
        assert await wire.next() == Resume(opened, received=3, kept=0, attempt=1)
        wire.wire.send(Resumed(8).encode())
        wire.data(b"wer")
        assert await receive_some(visitor) == b"wer"
        assert server.counted() == {"anonymity": len(b"question" + b"answer")}


@pytest.mark.parametrize("lease", [None, "another"])
async def test_a_client_that_does_not_have_them(
    tidy: Tidy, autojump_clock: MockClock, lease: str | None
) -> None:
    """It was started anew, or another process has its identity: visitors are reset at once, those who only wait are not."""
    async with open_memory_server(tidy) as server:
        old = await resuming(server)
        wire = await raw_tunnel(old)
        visitor = server.visit(old.port, early=b"question")
        assert isinstance(await wire.next(), Open)
        waiting = server.visit(old.port)
        started = trio.current_time()
        new = await resuming(server, lease=lease)  # evicts
        with pytest.raises(ConnectionResetError):
            await receive_some(visitor)
        assert trio.current_time() - started < 1
        assert lease_of(new) != lease_of(old)
        assert new.port == old.port
        wire = await raw_tunnel(new)
        assert isinstance(await wire.next(), Resume)  # it has begun on the control connection, anew
        assert not was_reset(waiting)
        assert server.sessions[0].lease.send_memory.held == 0


async def test_while_the_client_drains(tidy: Tidy, autojump_clock: MockClock) -> None:
    """Who has begun goes on over another tunnel, as often as it takes; who has not is closed. With CLOSE it is over."""
    async with open_memory_server(tidy) as server:
        client = await resuming(server)
        wire = await raw_tunnel(client)
        visitor = server.visit(client.port, early=b"question")
        opened = await wire.opened()
        wire.wire.reset()
        await trio.testing.wait_all_tasks_blocked()
        await client.say(Drain(seconds=10))
        assert await receive_all(server.visit(client.port)) == b""
        for attempt in (1, 2):
            assert await client.hear(Demand) == Demand(1)
            wire = await raw_tunnel(client)
            assert await wire.next() == Resume(opened, received=0, kept=0, attempt=attempt)
            wire.wire.send(Resumed(0 if attempt == 1 else 8).encode())
            await trio.testing.wait_all_tasks_blocked()
            if attempt == 1:
                wire.wire.reset()
                await trio.testing.wait_all_tasks_blocked()
        wire.data(b"answer")
        assert await receive_some(visitor) == b"answer"
        wire.wire.reset()
        await trio.testing.wait_all_tasks_blocked()
        assert server.sessions[0].lease.queue.waiting == 1
        await client.say(Close(code=CloseCode.STOPPED, text="the client stops"))
        with pytest.raises(ConnectionResetError):
            await receive_some(visitor)
        await client.hear_end()
        assert not server.sessions


async def test_nobody_comes_for_it(tidy: Tidy, autojump_clock: MockClock) -> None:
    """While the session is up as well as without one."""
    async with open_memory_server(tidy, resume_wait=12, port_reservation=30) as server:
        client = await resuming(server)
        wire = await raw_tunnel(client)
        visitor = server.visit(client.port, early=b"question")
        assert isinstance(await wire.next(), Open)
        wire.wire.reset()
        started = trio.current_time()
        with pytest.raises(ConnectionResetError):
            await receive_some(visitor)
        assert 12 < trio.current_time() - started < 14
        assert server.sessions[0].lease.queue.present == 0
        assert server.sessions[0].lease.send_memory.held == 0


@pytest.mark.parametrize("pause", [0.3, 0.9])
async def test_no_tunnel_gets_it_further(
    tidy: Tidy, autojump_clock: MockClock, pause: float
) -> None:
    """It is reset, and the next tunnel tells the client, also if it takes a while to come."""
    async with open_memory_server(tidy, resume_wait=5) as server:
        client = await resuming(server)
        wire = await raw_tunnel(client)
        visitor = server.visit(client.port, early=b"poison")
        opened = await wire.opened()
        started = trio.current_time()
        attempts = 0
        while not was_reset(visitor):
            attempts += 1
            wire.wire.reset()
            await trio.sleep(pause)
            wire = await raw_tunnel(client)
            assert await wire.next() == Resume(opened, received=0, kept=0, attempt=attempts)
        assert 4 < trio.current_time() - started < 7
        wire.wire.send(Resumed(0).encode())
        assert isinstance(await wire.next(), Abort)


async def test_what_used_up_the_memory_is_reset_and_the_client_told(
    tidy: Tidy, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="trionat")
    async with open_memory_server(tidy, resume_memory=65536) as server:
        client = await resuming(server)
        wire = await raw_tunnel(client)
        visitor = server.visit(client.port, capacity=200_000, early=bytes(65536))
        await wire.opened()
        assert server.sessions[0].lease.send_memory.held == 0
        wire.wire.reset()
        wire = await raw_tunnel(client)
        assert isinstance(await wire.next(), Resume)
        assert was_reset(visitor)
        wire.wire.send(Resumed(65536).encode())
        assert isinstance(await wire.next(), Abort)
    assert "goes on" not in caplog.text


@pytest.mark.parametrize("told", [True, False])
async def test_kicked_while_it_waits(
    tidy: Tidy, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture, told: bool
) -> None:
    """The client is told over the next tunnel; if none comes, it finds out by itself."""
    caplog.set_level("INFO")
    async with open_memory_server(tidy, resume_wait=5) as server:
        client = await resuming(server)
        wire = await raw_tunnel(client)
        visitor = server.visit(client.port, early=b"question")
        opened = await wire.opened()
        wire.wire.reset()
        await trio.testing.wait_all_tasks_blocked()
        kicked = await kick(server.context, KickVisitor(opened.visitor))
        assert kicked == Kicked(visitors=(opened.visitor,))
        assert was_reset(visitor)
        assert server.sessions[0].lease.send_memory.held == 0
        if told:
            wire = await raw_tunnel(client)
            assert isinstance(await wire.next(), Resume)
            wire.wire.send(Resumed(8).encode())
            abort = Abort(opened.visitor, AbortReason.OTHER, "sent away by the server's operator")
            assert await wire.next() == abort
            wire.wire.send(Abort(opened.visitor, AbortReason.OTHER, "").encode())
            await trio.testing.wait_all_tasks_blocked()
        else:
            await trio.sleep(7)
        assert server.sessions[0].lease.queue.present == 0
    (closed,) = [m for m in caplog.messages if m.startswith("visitor closed")]
    assert "sent away by the server's operator" in closed
    assert "goes on" not in caplog.text


async def test_a_visitor_that_resets_while_it_waits(tidy: Tidy, autojump_clock: MockClock) -> None:
    async with open_memory_server(tidy) as server:
        client = await resuming(server)
        wire = await raw_tunnel(client)
        visitor = server.visit(client.port, early=b"question")
        await wire.opened()
        wire.wire.reset()
        await trio.testing.wait_all_tasks_blocked()
        visitor.reset()
        wire = await raw_tunnel(client)
        assert isinstance(await wire.next(), Resume)
        wire.wire.send(Resumed(8).encode())
        abort = await wire.next()
        assert isinstance(abort, Abort)
        assert abort.reason is AbortReason.RESET


async def test_a_client_that_has_given_it_up(tidy: Tidy, autojump_clock: MockClock) -> None:
    async with open_memory_server(tidy) as server:
        client = await resuming(server)
        wire = await raw_tunnel(client)
        visitor = server.visit(client.port, early=b"question")
        opened = await wire.opened()
        wire.wire.reset()
        wire = await raw_tunnel(client)
        assert isinstance(await wire.next(), Resume)
        wire.wire.send(Abort(opened.visitor, AbortReason.GONE, "gone").encode())
        with pytest.raises(ConnectionResetError):
            await receive_some(visitor)
        assert isinstance(await wire.next(), Abort)
        await trio.testing.wait_all_tasks_blocked()
        assert server.sessions[0].tunnels.count == server.sessions[0].lease.queue.idle == 1
        assert server.sessions[0].lease.queue.present == 0


async def test_last_words_that_may_not_have_arrived(tidy: Tidy, autojump_clock: MockClock) -> None:
    """The visitor is gone, with all that it said on its way to a client whose tunnel is lost."""
    async with open_memory_server(tidy) as server:
        client = await resuming(server)
        wire = await raw_tunnel(client)
        visitor = server.visit(client.port, early=b"all of it")
        opened = await wire.opened()
        wire.end()
        assert await receive_all(visitor) == b""
        visitor.close()
        await trio.testing.wait_all_tasks_blocked()
        tunnels, queue = server.sessions[0].tunnels, server.sessions[0].lease.queue
        assert (tunnels.served, queue.present) == (1, 0)
        wire.wire.reset()
        await trio.testing.wait_all_tasks_blocked()
        assert (queue.waiting, queue.present) == (1, 1)
        wire = await raw_tunnel(client)
        assert await wire.next() == Resume(opened, received=1, kept=0, attempt=1)
        wire.wire.send(Resumed(4).encode())
        assert await wire.next() == b"of it"
        assert await wire.next() == End()
        await trio.testing.wait_all_tasks_blocked()
        assert (tunnels.served, queue.present, queue.idle) == (1, 0, 1)


async def test_last_words_and_the_end_of_the_tunnel_in_one_moment(
    tidy: Tidy, autojump_clock: MockClock
) -> None:
    """The task that serves the visitor has not run since its stream was over."""
    async with open_memory_server(tidy) as server:
        client = await resuming(server)
        wire = await raw_tunnel(client)
        visitor = server.visit(client.port, early=b"all of it")
        visitor.send_eof()
        opened = await wire.opened()
        await trio.testing.wait_all_tasks_blocked()
        wire.end()
        wire.wire.close()
        await trio.testing.wait_all_tasks_blocked()
        tunnels, queue = server.sessions[0].tunnels, server.sessions[0].lease.queue
        assert (tunnels.served, queue.waiting, queue.present) == (1, 1, 1)
        wire = await raw_tunnel(client)
        assert await wire.next() == Resume(opened, received=1, kept=0, attempt=1)
        wire.wire.send(Resumed(0).encode())
        assert await wire.next() == b"all of it"
        assert await wire.next() == End()
        await trio.testing.wait_all_tasks_blocked()
        assert (tunnels.served, queue.present, queue.idle) == (1, 0, 1)


async def test_a_session_that_ends_for_good_resets_them(
    tidy: Tidy, autojump_clock: MockClock
) -> None:
    async with open_memory_server(tidy) as server:
        client = await resuming(server)
        wire = await raw_tunnel(client)
        visitor = server.visit(client.port, early=b"question")
        assert isinstance(await wire.next(), Open)
        server.sessions[0].end(CloseCode.ACCOUNT_REMOVED, "gone")
        with pytest.raises(ConnectionResetError):
            await receive_some(visitor)
        assert server.admission.leases.send_memory.held == 0


# -- both sides -------------------------------------------------------------------------------------------------------


def resuming_pool(
    client: MemoryClient,
    tidy: Tidy,
    streams: WaitingStreams,
    scope: trio.CancelScope,
    services: MemoryForwarder | None = None,
    limit: int = 100,
) -> TunnelPool:
    """Run a real client's pool in that scope, as its session does."""
    streams.begin(client.welcome.resumption)
    outbox = EarlyOutbox(lambda: link.ask(Early, outbox.next))
    link = ControlLink(client.channel, "the server", 2.5, 8)
    pool = TunnelPool(
        client.attach,
        services or forwarder(tidy, client.server.nursery),
        limit,
        1,
        streams,
        release=lambda visitor: early.release(visitor),
    )
    early = EarlyStreams(pool.open_service, streams, outbox)

    async def run() -> None:
        with scope, suppress(PeerError):
            async with trio.open_nursery() as nursery:

                def take(message: Begin | Early) -> None:
                    if isinstance(message, Begin):
                        early.begin(message, nursery)
                    else:
                        early.take(message)

                client.on_early = take
                nursery.start_soon(link.run)
                await pool.run()

    client.server.nursery.start_soon(run)
    return pool


async def test_what_the_logs_tell_of_a_visitor_and_its_tunnels(
    tidy: Tidy, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """The first tunnel of one that began without any is its first; the next one is another."""
    caplog.set_level("DEBUG", logger="trionat")
    server_says, client_says = "trionat.server.sessions", "trionat.client.native"

    def told(logger: str) -> list[str]:
        return [
            record.getMessage().partition(" visitor=")[0]
            for record in caplog.records
            if record.name.startswith(logger)
            and re.search("paired|goes on|another", record.getMessage())
        ]

    async with open_memory_server(tidy) as server:
        streams, scope = WaitingStreams(100), trio.CancelScope()
        client = await resuming(server)
        resuming_pool(client, tidy, streams, scope, limit=1)
        first = server.visit(client.port, early=b"x")
        assert await receive_exactly(first, 1) == b"x"
        early = server.visit(client.port, early=b"y")
        assert await receive_exactly(early, 1) == b"y"
        paired = "visitor paired with a tunnel"
        assert told(server_says) == told(client_says) == [paired]
        first.close()
        await trio.testing.wait_all_tasks_blocked()
        early.send(b"z")
        assert await receive_exactly(early, 1) == b"z"
        assert told(server_says) == told(client_says) == [paired, paired]
        tunnels = server.sessions[0].tunnels
        assert isinstance(tunnels, NativeTunnels)
        for tunnel in list(tunnels._tunnels):
            assert isinstance(tunnel.wire, MemoryEndpoint)
            tunnel.wire.cut()
        early.send(b"!")
        assert await receive_exactly(early, 1) == b"!"
        waits = "visitor waits for another tunnel"
        goes_on = "visitor goes on over another tunnel"
        assert told(server_says) == [paired, paired, waits, paired, goes_on]
        assert told(client_says) == [paired, paired, "visitor has another tunnel"]
        early.close()
        await trio.testing.wait_all_tasks_blocked()
        scope.cancel()


async def test_a_client_tells_of_all_visitors_that_lose_their_tunnels_in_one_line(
    tidy: Tidy, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """Not of those that begin without any, as most do here."""
    caplog.set_level("INFO", logger="trionat.client.native.streams")
    async with open_memory_server(tidy) as server:
        streams, scope = WaitingStreams(100), trio.CancelScope()
        client = await resuming(server)
        resuming_pool(client, tidy, streams, scope)
        visitors = [server.visit(client.port, early=b"x") for _ in range(20)]
        for visitor in visitors:
            assert await receive_exactly(visitor, 1) == b"x"
        await trio.sleep(3)
        assert caplog.messages == []
        tunnels = server.sessions[0].tunnels
        assert isinstance(tunnels, NativeTunnels)
        for tunnel in list(tunnels._tunnels):
            assert isinstance(tunnel.wire, MemoryEndpoint)
            tunnel.wire.cut()
        queue = server.sessions[0].lease.queue
        while not queue.waiting_visitors:  # noqa: ASYNC110 - in the moment in which they wait
            await trio.lowlevel.checkpoint()
        assert queue.kick(queue.waiting_visitors[0].number, "sent away")
        await trio.sleep(5)
        wait = [line for line in caplog.messages if "wait for another tunnel" in line]
        go_on = [line for line in caplog.messages if "go on over another tunnel" in line]
        assert wait == ["visitors wait for another tunnel visitors=20"]
        assert go_on == ["visitors go on over another tunnel visitors=19"]
        assert sum(map(was_reset, visitors)) == 1
        for visitor in visitors:
            if was_reset(visitor):
                continue
            visitor.send(b"y")
            assert await receive_exactly(visitor, 1) == b"y"
            visitor.close()
        await trio.testing.wait_all_tasks_blocked()
        scope.cancel()


@pytest.mark.parametrize("seed", range(5))
async def test_sessions_and_tunnels_that_are_cut_cost_nothing(
    tidy: Tidy, autojump_clock: MockClock, seed: int
) -> None:
    """Of many visitors none is reset, and none hears a wrong byte, however often tunnels and sessions are lost."""
    rng = random.Random(seed)
    async with open_memory_server(tidy) as server:
        streams = WaitingStreams(100)
        client = await resuming(server)

        async def expire() -> None:
            while True:
                streams.expire()
                await trio.sleep(SWEEP_INTERVAL)

        server.nursery.start_soon(expire)
        scope = trio.CancelScope()
        resuming_pool(client, tidy, streams, scope)
        done = 0

        async def visit(number: int) -> None:
            nonlocal done
            said = random.Random(number).randbytes(300_000)
            visitor = server.visit(client.port)
            async with trio.open_nursery() as nursery:

                async def say() -> None:
                    await send_all(visitor, said)
                    visitor.send_eof()

                nursery.start_soon(say)
                assert await receive_all(visitor) == said
            done += 1

        async with trio.open_nursery() as nursery:
            for number in range(10):
                nursery.start_soon(visit, number)
            while done < 10:
                for _ in range(rng.randrange(60)):
                    await trio.lowlevel.checkpoint()
                tunnels = server.sessions[0].tunnels
                assert isinstance(tunnels, NativeTunnels)
                for tunnel in list(tunnels._tunnels):
                    assert isinstance(tunnel.wire, MemoryEndpoint)
                    if rng.random() < 0.3:
                        tunnel.wire.cut()
                if rng.random() < 0.1:
                    client.hang_up()
                    scope.cancel()
                    scope = trio.CancelScope()
                    client = await resuming(server, lease=streams.token)
                    resuming_pool(client, tidy, streams, scope)
                await trio.sleep(0.1)
        await trio.sleep(60)  # last words of which nobody knows whether they were heard
        assert server.admission.leases.send_memory.held == streams.memory.held == 0
        assert len(streams) == 0


async def test_a_client_that_is_not_let_go_on_resets_its_services(
    tidy: Tidy, autojump_clock: MockClock
) -> None:
    async with open_memory_server(tidy) as server:
        streams = WaitingStreams(100)
        client = await resuming(server)
        scope = trio.CancelScope()
        resuming_pool(client, tidy, streams, scope)
        visitor = server.visit(client.port, early=b"x")
        assert await receive_exactly(visitor, 1) == b"x"
        client.hang_up()
        scope.cancel()
        await trio.testing.wait_all_tasks_blocked()
        assert len(streams) == 1
        other = await resuming(server)
        streams.begin(other.welcome.resumption)
        assert len(streams) == 0
        assert was_reset(visitor)


async def test_a_server_that_refuses_at_once_keeps_no_service_waiting(
    tidy: Tidy, autojump_clock: MockClock
) -> None:
    """Tries that are over within a second do not keep streams for longer than they may wait."""
    async with open_memory_server(tidy, resume_wait=5) as server:
        streams = WaitingStreams(100)
        client = await resuming(server)
        scope = trio.CancelScope()
        resuming_pool(client, tidy, streams, scope)
        visitor = server.visit(client.port, early=b"x")
        assert await receive_exactly(visitor, 1) == b"x"
        client.hang_up()
        scope.cancel()
        await trio.testing.wait_all_tasks_blocked()
        for tries in range(5):
            streams.expire()
            assert len(streams) == (tries < 4)
            await trio.sleep(5.1)
