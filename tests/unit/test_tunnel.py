"""Tunnels, from a visitor to a local service and back, over endpoints in memory."""

from __future__ import annotations

import random
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING

import attrs
import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.conftest import Tidy
from tests.unit.memory import (
    CAPACITY,
    MemoryEndpoint,
    echo,
    memory_pair,
    receive_all,
    receive_exactly,
    receive_some,
)
from trionat.errors import ConnectionLostError, PeerTimeoutError, RemoteProtocolError
from trionat.protocol.conversation import Side
from trionat.protocol.frames import encode_frame
from trionat.protocol.tunnel_frames import (
    DATA_ID,
    END_FRAME,
    PROBE_FRAME,
    PROBED_FRAME,
    Abort,
    AbortReason,
    End,
    Open,
    Probe,
    Probed,
    TunnelFrame,
    TunnelReader,
)
from trionat.relay.client_tunnel import ClientTunnel, LocalServiceError
from trionat.relay.server_tunnel import ServerTunnel
from trionat.relay.stream import Failure, VisitorStream
from trionat.transport.endpoint import send_all
from trionat.transport.readiness import TURN
from trionat.transport.scratch import SCRATCH_BYTES

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from trionat.relay.tunnel import Tunnel
    from trionat.transport.endpoint import Endpoint


def frame_for(visitor: int) -> Open:
    return Open(visitor=visitor, service=0, host="v", port=1, visit_host="s", visit_port=2)


@attrs.define(eq=False)
class Road:
    """One tunnel with both ends, and a local service whose connections the test holds at their far end."""

    everyone: list[MemoryEndpoint]
    nursery: trio.Nursery
    server_wire: MemoryEndpoint
    client_wire: MemoryEndpoint
    visitor_capacity: int = CAPACITY
    local_capacity: int = CAPACITY
    largest: int = 1 << 30
    refusal: str | None = None
    streams: list[VisitorStream] = attrs.field(factory=list)
    visitors: int = 0
    server: ServerTunnel = attrs.field(init=False)
    client: ClientTunnel = attrs.field(init=False)
    _locals_in: trio.MemorySendChannel[MemoryEndpoint] = attrs.field(init=False)
    _locals: trio.MemoryReceiveChannel[MemoryEndpoint] = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.server = ServerTunnel(self.server_wire)
        self.client = ClientTunnel(self.client_wire, self._connect, self._take_over)
        self._locals_in, self._locals = trio.open_memory_channel[MemoryEndpoint](1000)

    def pair(self, capacity: int) -> tuple[MemoryEndpoint, MemoryEndpoint]:
        ends = memory_pair(self.everyone, capacity)
        for end in ends:
            end.largest_read = end.largest_write = self.largest
        return ends

    async def _connect(self, frame: Open) -> Endpoint:
        await trio.lowlevel.checkpoint()
        if self.refusal is not None:
            raise LocalServiceError(self.refusal)
        near, far = self.pair(self.local_capacity)
        self._locals_in.send_nowait(far)
        return near

    def _take_over(self, frame: Open, stream: VisitorStream) -> None:
        self.nursery.start_soon(self.client.carry, stream)

    def visit(self, early: bytes = b"") -> MemoryEndpoint:
        """Let the next visitor in, with its first bytes there already; return the far end of its connection."""
        far, near = self.pair(self.visitor_capacity)
        if early:
            assert far.send(early) == len(early)
        self.visitors += 1
        stream = VisitorStream(self.visitors, near)
        self.streams.append(stream)
        self.nursery.start_soon(self.server.open, stream, frame_for(self.visitors))
        return far

    async def local(self) -> MemoryEndpoint:
        """Return the far end of the next connection to the local service."""
        return await self._locals.receive()

    async def settle(self) -> None:
        """Let everybody do what there is to do; nothing must be left of visitors."""
        await trio.testing.wait_all_tasks_blocked()
        assert self.server.idle
        assert self.client.idle
        assert self.server.stream is self.client.stream is None


@asynccontextmanager
async def open_road(
    everyone: list[MemoryEndpoint], *, wire_capacity: int = CAPACITY, **options: object
) -> AsyncIterator[Road]:
    wires = memory_pair(everyone, wire_capacity)
    largest = options.get("largest")
    if isinstance(largest, int):
        for wire in wires:
            wire.largest_read = wire.largest_write = largest
    tunnels: list[Tunnel] = []
    try:
        async with trio.open_nursery() as nursery:
            road = Road(everyone, nursery, *wires, **options)  # type: ignore[arg-type]
            tunnels += [road.server, road.client]
            nursery.start_soon(road.server.receive)
            nursery.start_soon(road.client.receive)
            yield road
            nursery.cancel_scope.cancel()
    finally:  # as their owners do it: when both tasks are gone
        for tunnel in tunnels:
            tunnel.wire.close()
            tunnel.abandon()
        while (far := _next_or_none(road)) is not None:
            far.close()


def _next_or_none(road: Road) -> MemoryEndpoint | None:
    try:
        return road._locals.receive_nowait()
    except trio.WouldBlock:
        return None


@pytest.fixture
async def road(tidy: Tidy) -> AsyncIterator[Road]:
    async with open_road(tidy.endpoints) as road:
        yield road


# -- how conversations end --------------------------------------------------------------------------------------------


async def test_visitor_ends_first(road: Road) -> None:
    visitor = road.visit(b"question")
    local = await road.local()
    visitor.send_eof()
    assert await receive_all(local) == b"question"
    local.send(b"answer, ")
    assert await receive_some(visitor) == b"answer, "
    local.send(b"long after the question has ended")
    local.close()
    assert await receive_all(visitor) == b"long after the question has ended"
    await road.settle()
    visitor.close()
    (stream,) = road.streams
    assert (stream.taken, stream.given) == (8, 41)
    assert stream.end == "ended by both sides"
    assert stream.over
    assert stream.failure is None


async def test_local_service_ends_first(road: Road) -> None:
    visitor = road.visit()
    local = await road.local()
    local.send(b"login")
    local.send_eof()
    assert await receive_all(visitor) == b"login"
    visitor.send(b"still here")
    assert await receive_some(local) == b"still here"
    visitor.close()
    assert await receive_all(local) == b""
    local.close()
    await road.settle()
    assert road.streams[0].failure is None


async def test_visitor_resets(road: Road) -> None:
    visitor = road.visit(b"x")
    local = await road.local()
    assert await receive_some(local) == b"x"
    visitor.reset()
    with pytest.raises(ConnectionResetError):
        await receive_some(local)
    local.close()
    await road.settle()
    assert road.streams[0].failure == Failure(AbortReason.RESET, "the visitor reset its connection")


async def test_local_service_resets(road: Road) -> None:
    visitor = road.visit(b"x")
    local = await road.local()
    assert await receive_some(local) == b"x"
    local.reset()
    with pytest.raises(ConnectionResetError):
        await receive_some(visitor)
    visitor.close()
    await road.settle()
    assert road.streams[0].failure == Failure(
        AbortReason.RESET, "the local service reset its connection"
    )


@pytest.mark.parametrize("who", ["visitor", "local"])
async def test_reset_after_its_own_end(road: Road, who: str) -> None:
    visitor = road.visit()
    local = await road.local()
    one, other = (visitor, local) if who == "visitor" else (local, visitor)
    one.send_eof()
    assert await receive_all(other) == b""
    one.reset()
    other.send(b"for nobody")  # tells the tunnel
    await trio.testing.wait_all_tasks_blocked()
    with pytest.raises((ConnectionResetError, BrokenPipeError)):
        other.send(b"x")
    other.close()
    await road.settle()


async def test_both_reset_at_once(road: Road) -> None:
    visitor = road.visit(b"x")
    local = await road.local()
    assert await receive_some(local) == b"x"
    visitor.reset()
    local.reset()
    await road.settle()
    await check_works(road)


@pytest.mark.parametrize("seed", range(40))
async def test_ends_and_resets_that_cross(road: Road, seed: int) -> None:
    order = random.Random(seed)
    for _ in range(5):
        visitor = road.visit(b"x" * order.randrange(3))
        local = await road.local()
        deeds: list[Callable[[], object]] = [visitor.send_eof, visitor.reset, visitor.close]
        deeds += [local.send_eof, local.reset, local.close]
        for deed in order.sample(deeds, 6):
            with suppress(OSError):
                deed()
            for _ in range(order.randrange(6)):
                await trio.lowlevel.checkpoint()
        await road.settle()
    await check_works(road)


async def test_refused_local_service_closes_the_visitor_at_once(road: Road) -> None:
    road.refusal = "the local service 127.0.0.1:8080 cannot be reached: Connection refused"
    visitor = road.visit()
    assert await receive_all(visitor) == b""
    await road.settle()
    visitor.close()
    assert road.streams[0].failure == Failure(AbortReason.REFUSED, road.refusal)
    road.refusal = None
    await check_works(road)


async def check_works(road: Road) -> None:
    visitor = road.visit(b"ping")
    local = await road.local()
    assert await receive_exactly(local, 4) == b"ping"
    local.send(b"pong")
    local.close()
    assert await receive_all(visitor) == b"pong"
    visitor.close()
    await road.settle()


async def test_one_tunnel_for_100_visitors(road: Road) -> None:
    tasks = trio.lowlevel.current_statistics().tasks_living
    for number in range(100):
        early = b"%d" % number if number % 2 else b""
        visitor = road.visit(early)
        local = await road.local()
        if early:
            assert await receive_exactly(local, len(early)) == early
        ends = [visitor, local] if number % 3 else [local, visitor]
        ends[0].send_eof()
        assert await receive_all(ends[1]) == b""
        ends[1].close()
        assert await receive_all(ends[0]) == b""
        ends[0].close()
        await road.settle()
        assert trio.lowlevel.current_statistics().tasks_living == tasks
    assert road.client_wire.most_held < 1000


# -- bytes ------------------------------------------------------------------------------------------------------------


@settings(max_examples=80, deadline=None)
@given(
    up=st.binary(max_size=300),
    down=st.binary(max_size=300),
    wire_capacity=st.integers(1, 7),
    visitor_capacity=st.integers(1, 7),
    local_capacity=st.integers(1, 7),
    largest=st.sampled_from([1, 3, 7, 1000]),
    first=st.sampled_from(["visitor", "local", "both at once"]),
)
def test_tiny_buffers(
    up: bytes,
    down: bytes,
    wire_capacity: int,
    visitor_capacity: int,
    local_capacity: int,
    largest: int,
    first: str,
) -> None:
    """Two visitors, one after another, with whatever cuts buffers of 1 to 7 bytes make."""
    tidy = Tidy()

    async def serve(end: MemoryEndpoint, data: bytes, expected: bytes, turn: str) -> None:
        if turn == "last":
            assert await receive_all(end) == expected
        async with trio.open_nursery() as nursery:
            if turn == "any":
                nursery.start_soon(check, end, expected)
            await send_all(end, data)
            end.send_eof()
        if turn == "first":
            assert await receive_all(end) == expected
        end.close()

    async def check(end: MemoryEndpoint, expected: bytes) -> None:
        assert await receive_all(end) == expected

    turns = {"visitor": ("first", "last"), "local": ("last", "first")}.get(first, ("any", "any"))

    async def main() -> None:
        async with open_road(
            tidy.endpoints,
            wire_capacity=wire_capacity,
            visitor_capacity=visitor_capacity,
            local_capacity=local_capacity,
            largest=largest,
        ) as road:
            for _ in range(2):
                visitor = road.visit()
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(serve, visitor, up, down, turns[0])
                    nursery.start_soon(serve, await road.local(), down, up, turns[1])
                await road.settle()
                assert (road.streams[-1].taken, road.streams[-1].given) == (len(up), len(down))

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    tidy.check()


async def test_what_waits_for_room_is_not_written_over(tidy: Tidy) -> None:
    """All tunnels read into the same two buffers; what one of them has to wait with must be its own by then."""
    size = 40_000
    source = random.Random(3)
    pieces = [source.randbytes(size) for _ in range(4)]
    received: dict[MemoryEndpoint, bytes] = {}

    async def read_slowly(end: MemoryEndpoint, pause: int) -> None:
        received[end] = b""
        while len(received[end]) < size:
            received[end] += await receive_some(end)
            for _ in range(pause):
                await trio.lowlevel.checkpoint()

    async with open_road(tidy.endpoints, visitor_capacity=3000, local_capacity=50) as one:
        async with open_road(tidy.endpoints, visitor_capacity=50, local_capacity=3000) as two:
            visitors = [road.visit() for road in (one, two)]
            locals_ = [await road.local() for road in (one, two)]
            senders, readers = [*visitors, *locals_], [*locals_, *visitors]
            async with trio.open_nursery() as nursery:
                for pause, end, piece in zip(range(4), senders, pieces, strict=True):
                    nursery.start_soon(send_all, end, piece)
                    nursery.start_soon(read_slowly, end, pause)
            assert [received[end] for end in readers] == pieces
            for end in senders:
                end.close()
            for road in (one, two):
                await road.settle()


@pytest.mark.parametrize("direction", ["up", "down"])
async def test_bulk(road: Road, direction: str) -> None:
    data = random.Random(1).randbytes(3_000_000)
    visitor = road.visit()
    local = await road.local()
    source, sink = (visitor, local) if direction == "up" else (local, visitor)

    async def send() -> None:
        await send_all(source, data)
        source.close()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        assert await receive_all(sink) == data
    sink.close()
    await road.settle()


async def test_slow_reader_keeps_memory_bounded(
    tidy: Tidy,
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_road(
        tidy.endpoints, wire_capacity=1000, visitor_capacity=1000, local_capacity=1000
    ) as road:
        visitor = road.visit()
        local = await road.local()
        with trio.move_on_after(60):
            await send_all(visitor, bytes(1_000_000))
            pytest.fail("all of it was taken, although nobody reads")
        stream = road.streams[0]
        # on the way: visitor's buffer, one read in the server, the wire, one read in the client, local's buffer
        assert stream.taken <= 4 * 1000 + SCRATCH_BYTES
        assert stream.taken < 5000
        for endpoint in tidy.endpoints:
            assert endpoint.most_held <= 1000
        visitor.reset()
        local.reset()
        await trio.sleep(2)


async def test_a_peer_that_always_has_more_holds_nobody_up(tidy: Tidy) -> None:
    """One step takes one read. It took 64, and others' bytes were 20 ms late beside an encrypted bulk transfer."""
    capacity = 4 * SCRATCH_BYTES
    async with open_half(tidy, Side.SERVER, capacity=capacity) as half:
        far, stream = half.visit(capacity)
        await trio.testing.wait_all_tasks_blocked()
        for _ in range(3 * SCRATCH_BYTES // 20_000):
            half.raw.wire.send(encode_frame(DATA_ID, bytes(20_000)))
        waits_for = half.tunnel._receive_step()
        given = stream.given
        far.close()
        assert waits_for is TURN
        assert SCRATCH_BYTES // 2 < given <= SCRATCH_BYTES


async def test_opening_leaves_with_the_first_bytes_in_one_piece(tidy: Tidy) -> None:
    server, client = tidy.pair()
    far, near = tidy.pair()
    far.send(b"first")
    tunnel = ServerTunnel(server)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(tunnel.open, VisitorStream(1, near), frame_for(1))
        await trio.testing.wait_all_tasks_blocked()
        whole = frame_for(1).encode() + encode_frame(DATA_ID, b"first")
        assert await receive_some(client) == whole
        nursery.cancel_scope.cancel()
    tunnel.abandon()
    for end in (server, client, far):
        end.close()


async def test_opening_does_not_wait_for_a_visitor_that_says_nothing(road: Road) -> None:
    visitor = road.visit()
    local = await road.local()
    local.close()
    visitor.close()
    await road.settle()


# -- what time finds out ----------------------------------------------------------------------------------------------


async def sweep(*tunnels: Tunnel, times: int) -> None:
    for _ in range(times):
        await trio.testing.wait_all_tasks_blocked()
        for tunnel in tunnels:
            tunnel.sweep()
    await trio.testing.wait_all_tasks_blocked()


async def test_idle_tunnels_are_probed_and_live(road: Road) -> None:
    await sweep(road.server, road.client, times=200)
    assert road.client_wire.most_held == len(PROBE_FRAME)
    await check_works(road)


async def test_busy_tunnels_are_not_probed(road: Road) -> None:
    visitor = road.visit()
    local = await road.local()
    held = road.client_wire.most_held
    await sweep(road.server, road.client, times=200)
    assert road.client_wire.most_held == held
    visitor.close()
    local.close()
    await road.settle()


@attrs.define(eq=False)
class Raw:
    """The far end of a wire, in the test's hands."""

    wire: MemoryEndpoint
    reader: TunnelReader = attrs.field(factory=TunnelReader)

    async def next(self) -> bytes | TunnelFrame:
        while (event := self.reader.next()) is None:
            piece = await receive_some(self.wire)
            assert piece, "the wire has ended"
            self.reader.feed(memoryview(piece))
        return bytes(event) if isinstance(event, memoryview) else event

    async def quiet(self) -> None:
        await trio.testing.wait_all_tasks_blocked()
        assert self.reader.next() is None
        with pytest.raises(BlockingIOError):
            self.wire.recv_into(memoryview(bytearray(20_000)))


@attrs.define(eq=False)
class Half:
    """One real end of a tunnel, and a raw one."""

    tunnel: Tunnel
    raw: Raw
    nursery: trio.Nursery
    tidy: Tidy
    end: BaseException | str | None = None

    async def receive(self) -> None:
        try:
            await self.tunnel.receive()
            self.end = "returned"
        except Exception as error:  # noqa: BLE001 - looked at by the test
            self.end = error

    def visit(self, capacity: int = CAPACITY) -> tuple[MemoryEndpoint, VisitorStream]:
        far, near = self.tidy.pair(capacity)
        stream = VisitorStream(1, near)
        self.nursery.start_soon(self._open, stream)
        return far, stream

    async def _open(self, stream: VisitorStream) -> None:
        with suppress(ConnectionLostError):  # some tests take the wire away
            assert isinstance(self.tunnel, ServerTunnel)
            await self.tunnel.open(stream, frame_for(1))


@asynccontextmanager
async def open_half(
    tidy: Tidy,
    side: Side,
    connect: Callable[[Open], Awaitable[Endpoint]] | None = None,
    capacity: int = CAPACITY,
) -> AsyncIterator[Half]:
    wire, far = tidy.pair(capacity)

    def take_over(_: Open, stream: VisitorStream) -> None:
        half.nursery.start_soon(tunnel.carry, stream)

    async def no_service(_: Open) -> Endpoint:
        raise AssertionError("this test opens no visitor")

    tunnel: ServerTunnel | ClientTunnel = (
        ServerTunnel(wire)
        if side is Side.SERVER
        else ClientTunnel(wire, connect or no_service, take_over)
    )
    try:
        async with trio.open_nursery() as nursery:
            half = Half(tunnel, Raw(far), nursery, tidy)
            nursery.start_soon(half.receive)
            await trio.testing.wait_all_tasks_blocked()
            yield half
            nursery.cancel_scope.cancel()
    finally:
        wire.close()
        tunnel.abandon()
        far.close()


async def test_probe_without_an_answer(tidy: Tidy) -> None:
    async with open_half(tidy, Side.SERVER) as half:
        await sweep(half.tunnel, times=15)  # the first one only sees that it is new
        await half.raw.quiet()
        await sweep(half.tunnel, times=1)
        assert await half.raw.next() == Probe()
        await sweep(half.tunnel, times=4)
        with pytest.raises(PeerTimeoutError, match="probe"):
            half.tunnel.sweep()


async def test_probe_with_a_late_answer(tidy: Tidy) -> None:
    async with open_half(tidy, Side.SERVER) as half:
        await sweep(half.tunnel, times=20)
        half.raw.wire.send(PROBED_FRAME)
        await sweep(half.tunnel, times=16)
        assert half.end is None


async def test_probe_that_the_wire_has_no_room_for(tidy: Tidy) -> None:
    async with open_half(tidy, Side.SERVER, capacity=3) as half:
        await sweep(half.tunnel, times=15)
        with pytest.raises(ConnectionLostError):
            half.tunnel.sweep()


async def test_busy_tunnel_whose_bytes_nobody_acknowledges(tidy: Tidy) -> None:
    async with open_half(tidy, Side.SERVER) as half:
        wire = half.tunnel.wire
        assert isinstance(wire, MemoryEndpoint)
        visitor, _ = half.visit()
        wire.silence = 300.0  # since it last said anything: that it owes an answer may be a matter of milliseconds
        await sweep(half.tunnel, times=15)
        wire.silence = 0.0
        await sweep(half.tunnel, times=1)
        wire.silence = 1.5
        await sweep(half.tunnel, times=15)
        with pytest.raises(PeerTimeoutError, match="acknowledged nothing"):
            half.tunnel.sweep()
        visitor.close()


async def test_a_silent_tunnel_is_probed_together_with_its_visitor(tidy: Tidy) -> None:
    async with open_half(tidy, Side.SERVER) as half:
        await sweep(half.tunnel, times=3)
        visitor, _ = half.visit()
        assert await half.raw.next() == Probe()
        assert await half.raw.next() == frame_for(1)
        await sweep(half.tunnel, times=4)
        with pytest.raises(PeerTimeoutError, match="probe"):
            half.tunnel.sweep()
        visitor.close()


async def test_a_tunnel_that_was_heard_of_is_not_probed_with_its_visitor(tidy: Tidy) -> None:
    async with open_half(tidy, Side.SERVER) as half:
        await sweep(half.tunnel, times=2)
        visitor, _ = half.visit()
        assert await half.raw.next() == frame_for(1)
        visitor.close()


async def test_client_answers_probes(tidy: Tidy) -> None:
    async with open_half(tidy, Side.CLIENT) as half:
        half.raw.wire.send(PROBE_FRAME * 3)
        assert [await half.raw.next() for _ in range(3)] == [Probed()] * 3


async def test_client_gives_up_a_tunnel_that_nobody_probes(tidy: Tidy) -> None:
    async with open_half(tidy, Side.CLIENT) as half:
        await sweep(half.tunnel, times=61)
        with pytest.raises(PeerTimeoutError, match="forgotten"):
            half.tunnel.sweep()


async def test_abort_without_an_answer(tidy: Tidy) -> None:
    async with open_half(tidy, Side.SERVER) as half:
        visitor, _ = half.visit()
        visitor.reset()
        assert await half.raw.next() == frame_for(1)
        assert await half.raw.next() == Abort(
            1, AbortReason.RESET, "the visitor reset its connection"
        )
        half.raw.wire.send(encode_frame(DATA_ID, b"still on its way"))
        await sweep(half.tunnel, times=10)
        with pytest.raises(PeerTimeoutError, match="ABORT"):
            half.tunnel.sweep()


async def test_reset_is_noticed_while_the_wire_is_full(tidy: Tidy) -> None:
    async with open_half(tidy, Side.SERVER, capacity=50) as half:
        visitor, stream = half.visit()
        assert visitor.send(bytes(10_000)) == 10_000
        await trio.testing.wait_all_tasks_blocked()
        visitor.reset()
        await trio.testing.wait_all_tasks_blocked()
        assert (
            stream.end == "ended by both sides"
        )  # nobody reads it, so nobody knows: the wire is full
        half.tunnel.sweep()
        assert stream.failure == Failure(AbortReason.RESET, "the visitor reset its connection")
        while not isinstance(event := await half.raw.next(), Abort):
            assert isinstance(event, bytes | Open)
        half.raw.wire.send(END_FRAME)
        await trio.testing.wait_all_tasks_blocked()
        assert half.tunnel.idle


async def test_closed_under_a_write_that_waits(tidy: Tidy) -> None:
    """The plain end goes away while `carry` waits for the wire: it must not be waited for afterwards."""
    async with open_half(tidy, Side.SERVER, capacity=50) as half:
        visitor, stream = half.visit()
        visitor.send(bytes(100))
        await trio.testing.wait_all_tasks_blocked()
        half.raw.wire.send(Abort(1, AbortReason.TIMEOUT, "too slow").encode())
        await trio.testing.wait_all_tasks_blocked()
        events = [await half.raw.next()]
        while not isinstance(events[-1], Abort):
            events.append(await half.raw.next())
        assert b"".join(event for event in events if isinstance(event, bytes)) == bytes(100)
        await trio.testing.wait_all_tasks_blocked()
        assert half.tunnel.idle
        assert stream.end == "too slow"
        with pytest.raises(ConnectionResetError):
            await receive_some(visitor)
        visitor.close()


async def test_abort_behind_an_end_that_the_other_end_crosses(tidy: Tidy) -> None:
    """Over by both ENDs while the ABORT still leaves: it is late then, and the next visitor comes after it."""
    async with open_half(tidy, Side.SERVER, capacity=45) as half:
        visitor, stream = half.visit()
        assert await half.raw.next() == frame_for(1)
        visitor.send_eof()
        await trio.testing.wait_all_tasks_blocked()
        visitor.reset()
        half.tunnel.sweep()
        await trio.testing.wait_all_tasks_blocked()
        half.raw.wire.send(END_FRAME)
        await trio.testing.wait_all_tasks_blocked()
        assert stream.over
        assert half.tunnel.idle
        await sweep(half.tunnel, times=15)
        with pytest.raises(PeerTimeoutError, match="did not take an ABORT"):
            half.tunnel.sweep()
        assert isinstance(await half.raw.next(), End)
        assert isinstance(await half.raw.next(), Abort)
        await half.raw.quiet()
        assert half.end is None


@pytest.mark.parametrize("asked", ["PROBE", "OPEN"])
async def test_answers_wait_for_an_abort_that_still_leaves(tidy: Tidy, asked: str) -> None:
    locals_: list[MemoryEndpoint] = []

    async def connect(frame: Open) -> Endpoint:
        if locals_:
            raise LocalServiceError("down")
        near, far = tidy.pair()
        locals_.append(far)
        return near

    async with open_half(tidy, Side.CLIENT, connect, capacity=45) as half:
        half.raw.wire.send(frame_for(1).encode())
        await trio.testing.wait_all_tasks_blocked()
        [local] = locals_
        local.send_eof()
        await trio.testing.wait_all_tasks_blocked()
        local.reset()
        half.tunnel.sweep()
        await trio.testing.wait_all_tasks_blocked()
        half.raw.wire.send(END_FRAME)
        await trio.testing.wait_all_tasks_blocked()
        half.raw.wire.send(PROBE_FRAME if asked == "PROBE" else frame_for(2).encode())
        await trio.testing.wait_all_tasks_blocked()
        assert half.end is None
        assert await half.raw.next() == End()
        assert await half.raw.next() == Abort(
            1, AbortReason.RESET, "the local service reset its connection"
        )
        answer = Probed() if asked == "PROBE" else Abort(2, AbortReason.REFUSED, "down")
        assert await half.raw.next() == answer


# -- what the wire brings ---------------------------------------------------------------------------------------------

DATA = encode_frame(DATA_ID, b"x")


@pytest.mark.parametrize(
    ("side", "wire", "complaint"),
    [
        (Side.SERVER, frame_for(1).encode(), "OPEN from a client"),
        (Side.SERVER, PROBE_FRAME, "PROBE"),
        (Side.SERVER, DATA, "DATA"),
        (Side.SERVER, END_FRAME, "END"),
        (Side.SERVER, Abort(7, AbortReason.RESET).encode(), "visitor 7"),
        (Side.SERVER, encode_frame(40001, b"{}"), "40001"),
        (Side.CLIENT, PROBED_FRAME, "PROBED from a server"),
        (Side.CLIENT, DATA, "DATA"),
        (Side.CLIENT, END_FRAME, "END"),
    ],
)
async def test_breaches_on_an_idle_tunnel(
    tidy: Tidy, side: Side, wire: bytes, complaint: str
) -> None:
    async with open_half(tidy, side) as half:
        half.raw.wire.send(wire)
        await trio.testing.wait_all_tasks_blocked()
        assert isinstance(half.end, RemoteProtocolError)
        assert complaint in str(half.end)


@pytest.mark.parametrize(
    ("wire", "complaint"),
    [
        (END_FRAME + END_FRAME, "END"),
        (END_FRAME + DATA, "DATA"),
        (PROBE_FRAME, "PROBE"),
        (Abort(7, AbortReason.RESET).encode(), "visitor 7"),
    ],
    ids=["END twice", "DATA after END", "PROBE", "ABORT of another visitor"],
)
async def test_breaches_on_a_busy_tunnel(tidy: Tidy, wire: bytes, complaint: str) -> None:
    async with open_half(tidy, Side.SERVER) as half:
        visitor, _ = half.visit()
        await trio.testing.wait_all_tasks_blocked()
        half.raw.wire.send(wire)
        await trio.testing.wait_all_tasks_blocked()
        assert isinstance(half.end, RemoteProtocolError)
        assert complaint in str(half.end)
        visitor.close()


async def test_second_open_and_probe_at_a_busy_client(tidy: Tidy) -> None:
    for wire in (frame_for(2).encode(), PROBE_FRAME):
        far, near = tidy.pair()

        async def connect(_: Open, near: MemoryEndpoint = near) -> Endpoint:
            await trio.lowlevel.checkpoint()
            return near

        async with open_half(tidy, Side.CLIENT, connect) as half:
            half.raw.wire.send(frame_for(1).encode() + wire)
            await trio.testing.wait_all_tasks_blocked()
            assert isinstance(half.end, RemoteProtocolError)
        with pytest.raises(ConnectionResetError):  # what it got may not be all
            await receive_some(far)
        far.close()


@pytest.mark.parametrize("side", Side)
async def test_end_of_an_idle_wire_is_an_end(tidy: Tidy, side: Side) -> None:
    async with open_half(tidy, side) as half:
        half.raw.wire.close()
        await trio.testing.wait_all_tasks_blocked()
        assert half.end == "returned"


@pytest.mark.parametrize("how", ["close", "reset"])
async def test_loss_of_a_busy_wire(tidy: Tidy, how: str) -> None:
    async with open_half(tidy, Side.SERVER) as half:
        visitor, stream = half.visit()
        assert await half.raw.next() == frame_for(1)
        half.raw.wire.close() if how == "close" else half.raw.wire.reset()
        await trio.testing.wait_all_tasks_blocked()
        assert isinstance(half.end, ConnectionLostError)
        assert not stream.plain.is_lost()  # it may go to another tunnel
        visitor.close()


async def test_bytes_for_one_that_has_gone_are_dropped(tidy: Tidy) -> None:
    async with open_half(tidy, Side.SERVER) as half:
        visitor, stream = half.visit()
        assert await half.raw.next() == frame_for(1)
        visitor.reset()
        assert isinstance(await half.raw.next(), Abort)
        half.raw.wire.send(DATA * 100 + END_FRAME)
        await trio.testing.wait_all_tasks_blocked()
        assert half.tunnel.idle
        assert stream.given == 0


async def test_end_arrives_when_both_ended(tidy: Tidy) -> None:
    async with open_half(tidy, Side.SERVER) as half:
        visitor, _ = half.visit()
        visitor.send(b"q")
        visitor.send_eof()
        assert [await half.raw.next() for _ in range(3)] == [frame_for(1), b"q", End()]
        half.raw.wire.send(DATA + END_FRAME)
        assert await receive_all(visitor) == b"x"
        visitor.close()
        await trio.testing.wait_all_tasks_blocked()
        assert half.tunnel.idle


# -- cancellation -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ticks", range(0, 60, 3))
async def test_cancelled_at_any_point(tidy: Tidy, ticks: int) -> None:
    """Whoever owned something has closed it, at any point; `tidy` looks at the rest."""
    with trio.CancelScope() as scope:
        async with open_road(
            tidy.endpoints, wire_capacity=30, visitor_capacity=30, local_capacity=30
        ) as road:
            road.nursery.start_soon(cancel_after, scope, ticks)
            outside: list[MemoryEndpoint] = []
            try:
                for _ in range(10):
                    visitor = road.visit(b"hello")
                    outside.append(visitor)
                    local = await road.local()
                    outside.append(local)
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(echo, local)
                        nursery.start_soon(send_all, visitor, bytes(100))
                        await receive_exactly(visitor, 105)
                    visitor.close()
            finally:
                for end in outside:
                    end.close()
    assert scope.cancelled_caught or ticks > 50


async def cancel_after(scope: trio.CancelScope, ticks: int) -> None:
    for _ in range(ticks):
        await trio.lowlevel.checkpoint()
    scope.cancel()


async def test_abandon_resets_what_is_on_the_tunnel(tidy: Tidy) -> None:
    async with open_road(tidy.endpoints) as road:
        visitor = road.visit(b"x")
        local = await road.local()
        assert await receive_some(local) == b"x"
        road.nursery.cancel_scope.cancel()
    for end in (local, visitor):
        with pytest.raises(ConnectionResetError):
            end.recv_into(memoryview(bytearray(20_000)))
        end.close()
    road.client.abandon()
