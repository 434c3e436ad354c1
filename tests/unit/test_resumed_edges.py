"""Streams that are resumed, at the moments between two states."""

from __future__ import annotations

from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING

import attrs
import pytest
import trio
import trio.testing

import trionat
from tests.unit.client_side import Host
from tests.unit.memory import MemoryEndpoint, receive_all, receive_exactly, receive_some
from tests.unit.memory_server import (
    MemoryForwarder,
    Wire,
    forwarder,
    open_memory_server,
    raw_tunnel,
)
from tests.unit.test_client_session import session_at
from tests.unit.test_resumed_sessions import resuming, resuming_pool, was_reset
from trionat.client.native.early import EarlyStreams
from trionat.client.native.streams import WaitingStreams
from trionat.client.native.tunnel_pool import TunnelPool
from trionat.errors import ConnectionLostError, RemoteProtocolError
from trionat.protocol.messages import Begin, Early, Resumption
from trionat.protocol.tunnel_frames import (
    PROBE_FRAME,
    PROBED_FRAME,
    Abort,
    AbortReason,
    End,
    Open,
    Probe,
    Probed,
    Resume,
    Resumed,
)
from trionat.relay.client_tunnel import LocalServiceError
from trionat.relay.early import MOST_EARLY, EarlyOutbox
from trionat.relay.stream import VisitorStream
from trionat.server.admin.kick import kick
from trionat.server.admin.messages import Kicked, KickVisitor
from trionat.transport.control_link import ControlLink

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable
    from pathlib import Path

    from trio.testing import MockClock

    from tests.unit.conftest import Tidy
    from trionat.address import TCPAddress
    from trionat.transport.endpoint import Endpoint

FRAME = Open(visitor=1, service=0, host="192.0.2.1", port=1, visit_host="192.0.2.2", visit_port=2)


async def test_a_stream_whose_tunnel_was_given_up_a_moment_ago(
    tidy: Tidy, autojump_clock: MockClock
) -> None:
    """Its task has not run since. Were the stream not found, the service would get the visitor's bytes for a second time."""
    async with open_memory_server(tidy) as server:
        streams = WaitingStreams(100)
        client = await resuming(server)
        pool = resuming_pool(client, tidy, streams, trio.CancelScope())
        await trio.testing.wait_all_tasks_blocked()
        visitor = server.visit(client.port, early=b"x")
        assert await receive_exactly(visitor, 1) == b"x"
        (busy,) = (each for each in pool._tunnels if not each.tunnel.idle)
        assert busy.tunnel.stream is not None
        number = busy.tunnel.stream.visitor
        pool._give_up(busy, "silent for too long")
        busy.wire.reset()
        stream = await pool.find(number)
        assert stream is not None
        assert stream.given == 1
        stream.plain.reset()
        stream.release()


async def test_streams_are_given_up_in_time(tidy: Tidy, autojump_clock: MockClock) -> None:
    streams = WaitingStreams(100)
    streams.begin(Resumption(lease="one", wait=5.0, buffer=65536))
    service, far = tidy.pair()
    streams.hold(FRAME, VisitorStream(1, service, streams.new_buffer()))
    await trio.sleep(20)
    streams.expire()
    assert len(streams) == 1
    await trio.sleep(1)
    streams.expire()
    assert len(streams) == 0
    assert service.closed
    far.close()


@pytest.mark.limit(60)
async def test_a_service_that_reads_nothing_while_it_writes(tmp_path: Path) -> None:
    """Everything on the way to it is full, and the ACKs of what it writes stand behind that: the control connection has them."""
    any_port, size = trionat.TCPAddress("127.0.0.1", 0), 3 * 2**20
    server = trionat.ServerConfig(
        controller_addr=any_port,
        tunnel_addr=any_port,
        visit_port=(0,),
        state_dir=tmp_path / "server",
    )
    stuck = trio.Event()

    async def serve(stream: trio.SocketStream) -> None:
        await stuck.wait()
        with suppress(trio.BrokenResourceError):  # the client has looked whether we are there
            await stream.send_all(bytes(size))
            received = 0
            async for piece in stream:
                received += len(piece)
            await stream.send_all(b"%d" % received)
            await stream.aclose()

    async with trio.open_nursery() as nursery:
        [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, serve, [listener])
        ready = await nursery.start(trionat.serve, server)
        service = trionat.parse_service(str(listener.socket.getsockname()[1]))
        client = trionat.ClientConfig(
            ticket=ready.ticket, services=(service,), state_dir=tmp_path / "client"
        )
        async with trionat.connect(client) as connection:
            port = connection.services[0].public.port
            async with await trio.open_tcp_stream("127.0.0.1", port) as visitor:
                sent = 0
                while True:  # until nothing moves any more
                    with trio.move_on_after(0.5):
                        sent += await visitor.socket.send(bytes(2**16))
                        continue
                    break
                assert sent > size
                stuck.set()
                answer = b""
                while len(answer) < size:
                    answer += await visitor.receive_some(2**20)
                await visitor.send_eof()
                async for piece in visitor:
                    answer += piece
                assert int(answer[size:]) == sent
        nursery.cancel_scope.cancel()


async def say_nothing(_: MemoryEndpoint) -> None:
    await trio.sleep_forever()


async def test_visitors_that_leave_before_there_is_a_tunnel_cost_no_session(
    tidy: Tidy, autojump_clock: MockClock
) -> None:
    """The client cannot know that they have left, so it has more of them than a server may begin at a time."""
    async with open_memory_server(tidy, visitor_wait=8) as server:
        streams = WaitingStreams(1000)
        client = await resuming(server)
        streams.begin(client.welcome.resumption)
        outbox = EarlyOutbox(lambda: link.ask(Early, outbox.next))
        link = ControlLink(client.channel, "the server", 2.5, 8)
        services = forwarder(tidy, server.nursery)
        services.serve = say_nothing  # those who had an answer wait longer
        early = EarlyStreams(lambda frame: services.open(frame.service), streams, outbox)
        async with trio.open_nursery() as nursery:

            def take(message: Begin | Early) -> None:
                if isinstance(message, Begin):
                    early.begin(message, nursery)
                else:
                    early.take(message)

            client.on_early = take
            nursery.start_soon(link.run)
            for _ in range(4):
                for _ in range(MOST_EARLY):
                    server.visit(client.port, early=b"x")
                await trio.sleep(8.6)  # each is told that there is no tunnel for it in time
            assert len(streams) == 2 * MOST_EARLY
            assert client.ended_at is None
            assert server.sessions
            visitor = server.visit(client.port, early=b"late")
            wire = await raw_tunnel(client)
            resume = await wire.next()
            assert isinstance(resume, Resume)
            assert (resume.received, resume.kept) == (0, 0)
            await early.release(resume.open.visitor)
            assert streams.take(resume.open.visitor) is None  # it begins on the tunnel
            visitor.reset()
            streams.drop_all("the test is over")
            nursery.cancel_scope.cancel()


async def test_a_server_that_begins_and_does_not_read_the_answers(
    tidy: Tidy, autojump_clock: MockClock
) -> None:
    streams = WaitingStreams(10)
    streams.begin(Resumption(lease="one", wait=5.0, buffer=65536))

    async def connect(_: Open) -> Endpoint:
        await trio.lowlevel.checkpoint()
        raise LocalServiceError("it is down")

    early = EarlyStreams(connect, streams, EarlyOutbox(lambda: None))
    async with trio.open_nursery() as nursery:
        with pytest.raises(RemoteProtocolError, match="does not read"):
            for number in range(100_000):
                early.begin(Begin(attrs.evolve(FRAME, visitor=number).payload()), nursery)
                if number % 16 == 0:
                    await trio.testing.wait_all_tasks_blocked()


async def test_a_client_that_does_not_answer_begin(tidy: Tidy, autojump_clock: MockClock) -> None:
    async with open_memory_server(tidy) as server:
        client = await resuming(server)
        client.on_early = lambda _: None
        visitor = server.visit(client.port, early=b"question")
        started = trio.current_time()
        wire = await raw_tunnel(client)
        with pytest.raises(ConnectionResetError):
            await receive_some(visitor)
        assert trio.current_time() - started < 20
        while isinstance(frame := await wire.next(), Probe):
            wire.wire.send(PROBED_FRAME)
        assert isinstance(frame, Resume)
        wire.wire.send(Resumed(0).encode())
        abort = await wire.next()
        assert isinstance(abort, Abort)
        wire.wire.send(Abort(abort.visitor, AbortReason.OTHER, "").encode())
        await trio.testing.wait_all_tasks_blocked()
        assert server.sessions[0].lease.queue.present == 0
        assert server.sessions[0].lease.send_memory.held == 0


@asynccontextmanager
async def rogue_server(
    tidy: Tidy, waiting: WaitingStreams
) -> AsyncGenerator[tuple[TunnelPool, Callable[[], Awaitable[Wire]]]]:
    """A client's pool of tunnels whose server the test is; what is returned opens another tunnel."""
    waiting.begin(Resumption(lease="one", wait=5.0, buffer=65536))
    wires: list[MemoryEndpoint] = []

    async def open_wire() -> Endpoint:
        await trio.lowlevel.checkpoint()
        near, far = tidy.pair()
        wires.append(far)
        return near

    async with trio.open_nursery() as nursery:
        pool = TunnelPool(open_wire, forwarder(tidy, nursery), 100, 0, waiting)

        async def next_wire() -> Wire:
            pool.demand(1)
            await trio.testing.wait_all_tasks_blocked()
            return Wire(wires[-1])

        nursery.start_soon(pool.run)
        yield pool, next_wire
        waiting.drop_all("the test is over")
        nursery.cancel_scope.cancel()
    for wire in wires:
        wire.close()


async def test_resume_of_another_service_than_before(tidy: Tidy, autojump_clock: MockClock) -> None:
    waiting = WaitingStreams(10)
    async with rogue_server(tidy, waiting) as (_, next_wire):
        wire = await next_wire()
        wire.wire.send(FRAME.encode())
        wire.data(b"x")
        assert await wire.next() == b"x"
        wire.wire.reset()
        await trio.testing.wait_all_tasks_blocked()
        wire = await next_wire()
        wire.wire.send(Resume(attrs.evolve(FRAME, service=7), 0, 0, 1).encode())
        with pytest.raises((AssertionError, ConnectionResetError)):  # the wire has ended
            assert isinstance(await wire.next(), Resumed)
            wire.end()  # the client would look for the service's name now, for its log
            while True:
                await wire.next()
        assert len(waiting) == 1


@attrs.define(eq=False)
class SlowForwarder(MemoryForwarder):
    """Its service takes a while to be connected to."""

    seconds: float = attrs.field(kw_only=True)

    async def open(self, number: int, *_: object) -> Endpoint:
        await trio.sleep(self.seconds)
        return await super().open(number)


@pytest.mark.parametrize("seconds", [0.3, 7.0])
async def test_a_service_that_is_slow_to_connect_costs_no_tunnel(
    tidy: Tidy, autojump_clock: MockClock, seconds: float
) -> None:
    """The server waits no longer than 4 s for the answer to RESUME."""
    async with open_memory_server(tidy) as server:
        client = await resuming(server)
        streams = WaitingStreams(100)
        slow = SlowForwarder(
            forwarder(tidy, server.nursery).services,
            60.0,
            tidy=tidy,
            nursery=server.nursery,
            seconds=seconds,
        )
        visitor = server.visit(client.port, early=b"question")
        resuming_pool(client, tidy, streams, trio.CancelScope(), slow)
        wires = len(tidy.endpoints)
        started = trio.current_time()
        assert await receive_exactly(visitor, 8) == b"question"
        assert trio.current_time() - started < seconds + 1.1
        assert not [end for end in tidy.endpoints[wires:] if end.closed]
    streams.drop_all("the test is over")


@pytest.mark.parametrize("comes", [True, False])
async def test_a_stop_waits_for_visitors_that_wait_for_another_tunnel(
    tidy: Tidy, autojump_clock: MockClock, tmp_path: Path, comes: bool
) -> None:
    """They go on if one comes within DrainGrace; without one, the client is gone then."""
    wires: list[MemoryEndpoint] = []
    up = True

    def dial(_: TCPAddress) -> MemoryEndpoint:
        if not up:
            raise ConnectionLostError("there is no way to the server")
        wires.append(server.connect())
        return wires[-1]

    async with open_memory_server(tidy) as server:
        host = Host(tidy, tmp_path)
        host.dialer.dial = dial
        streams = WaitingStreams(100)
        session = session_at(host, forwarder(tidy, server.nursery), drain_grace=20)
        session.waiting_streams = streams
        async with trio.open_nursery() as nursery:
            nursery.start_soon(session.run)
            await trio.sleep(0.1)
            (port,) = session.ports or ()
            visitor = server.visit(port, early=b"x")
            assert await receive_exactly(visitor, 1) == b"x"
            up = False
            for wire in wires[1:]:  # the first is the control connection
                wire.cut()
            await trio.sleep(1)
            assert len(streams) == 1
            session.stopping.set()
            started = trio.current_time()
            if comes:
                await trio.sleep(3)
                up = True
                visitor.send(b"y")
                visitor.send_eof()
                assert await receive_all(visitor) == b"y"
        took = trio.current_time() - started
        assert 3 <= took < 10 if comes else 20 <= took < 23
        assert was_reset(visitor) is not comes
    streams.drop_all("the test is over")


async def test_both_sides_tell_on_the_control_connection_how_far_they_are(
    tidy: Tidy, autojump_clock: MockClock, tmp_path: Path
) -> None:
    """Of a few bytes, behind which nothing comes on the tunnel: neither side keeps them for long."""
    async with open_memory_server(tidy) as server:
        host = Host(tidy, tmp_path)
        host.dialer.dial = lambda _: server.connect()
        streams = WaitingStreams(100)
        session = session_at(host, forwarder(tidy, server.nursery))
        session.waiting_streams = streams
        async with trio.open_nursery() as nursery:
            nursery.start_soon(session.run)
            await trio.sleep(2)
            (port,) = session.ports or ()
            visitor = server.visit(port, early=b"x")
            assert await receive_exactly(visitor, 1) == b"x"
            memories = server.sessions[0].lease.send_memory, streams.memory
            assert [memory.held for memory in memories] == [1, 1]
            await trio.sleep(2.5)
            assert [memory.held for memory in memories] == [0, 0]
            nursery.cancel_scope.cancel()
    streams.drop_all("the test is over")


async def test_abort_and_probe_while_the_answer_to_resume_has_no_room(
    tidy: Tidy, autojump_clock: MockClock
) -> None:
    """RESUMED is half sent when the tunnel is idle again: PROBED has to wait for it."""
    waiting = WaitingStreams(10)
    async with rogue_server(tidy, waiting) as (_, next_wire):
        wire = await next_wire()
        wire.wire.send(FRAME.encode())
        wire.data(b"x")
        wire.end()
        assert [await wire.next(), await wire.next()] == [b"x", End()]
        wire.wire.reset()
        await trio.testing.wait_all_tasks_blocked()
        assert len(waiting) == 1
        wire = await next_wire()
        wire.wire.capacity = 3
        wire.wire.send(Resume(FRAME, 2, 0, 1).encode())
        await trio.testing.wait_all_tasks_blocked()
        wire.wire.send(Abort(FRAME.visitor, AbortReason.OTHER, "").encode())
        wire.wire.send(PROBE_FRAME)
        await trio.testing.wait_all_tasks_blocked()
        assert [await wire.next(), await wire.next()] == [Resumed(2), Probed()]


async def test_a_visitor_is_kicked_while_its_tunnel_waits_for_the_answer_to_begin(
    tidy: Tidy, autojump_clock: MockClock
) -> None:
    async with open_memory_server(tidy) as server:
        client = await resuming(server)
        begun: list[int] = []

        def note(message: Begin | Early) -> None:
            if isinstance(message, Begin):
                begun.append(Open.decode(message.open).visitor)

        client.on_early = note
        visitor = server.visit(client.port, early=b"question")
        wire = await raw_tunnel(client)
        (number,) = begun
        kicked = await kick(server.context, KickVisitor(number))
        assert kicked == Kicked(visitors=(number,))
        with pytest.raises(ConnectionResetError):
            await receive_some(visitor)
        await client.say(Early(number, 0, b""))
        assert isinstance(await wire.next(), Resume)
        wire.wire.send(Abort(number, AbortReason.GONE, "").encode())
        assert isinstance(await wire.next(), Abort)
        await trio.testing.wait_all_tasks_blocked()
        assert server.sessions[0].lease.queue.present == 0
        assert server.sessions[0].lease.send_memory.held == 0
