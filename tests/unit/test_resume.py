"""Streams that outlive their tunnels, over endpoints in memory: what is kept, what is acknowledged, and how another tunnel goes on."""

from __future__ import annotations

import tracemalloc
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import attrs
import pytest
import trio
import trio.testing

from tests.fuzz.law import events
from tests.fuzz.test_resume_machine import PLENTY, Machine, frame_for
from tests.unit.memory import CAPACITY, MemoryEndpoint, receive_some
from trionat.errors import ConnectionLostError, PeerTimeoutError, RemoteProtocolError
from trionat.protocol.conversation import Side
from trionat.protocol.frames import encode_frame
from trionat.protocol.messages import Acks
from trionat.protocol.tunnel_frames import (
    DATA_ID,
    END_FRAME,
    PROBE_FRAME,
    PROBED_FRAME,
    Abort,
    AbortReason,
    Ack,
    End,
    Open,
    Probe,
    Resume,
    Resumed,
    TunnelFrame,
    TunnelReader,
)
from trionat.relay.acknowledgements import acks_of, take_acks
from trionat.relay.client_tunnel import ClientTunnel, LocalServiceError
from trionat.relay.send_buffer import SendBuffer, SendMemory
from trionat.relay.server_tunnel import ServerTunnel
from trionat.relay.stream import VisitorStream
from trionat.relay.throttle import Throttle
from trionat.transport.endpoint import send_all
from trionat.transport.scratch import HEADROOM_BYTES, SCRATCH_BYTES, scratch

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from trio.testing import MockClock

    from tests.unit.conftest import Tidy
    from trionat.relay.tunnel import Tunnel

SIZE = 64


def data(piece: bytes) -> bytes:
    return encode_frame(DATA_ID, piece)


# -- what is kept -----------------------------------------------------------------------------------------------------


def test_a_buffer_holds_what_is_not_acknowledged() -> None:
    memory = SendMemory(1000)
    buffer = SendBuffer(10, memory)
    assert buffer.held == 0
    buffer.keep(memoryview(b"0123456"))
    assert (buffer.piece(0, SIZE), buffer.start, memory.held) == (b"0123456", 0, 7)
    full = [buffer.is_full]
    buffer.acknowledge(3)
    buffer.acknowledge(2)  # late
    assert (buffer.piece(5, 1), buffer.piece(6, 9), buffer.piece(7, 9)) == (b"5", b"6", b"")
    assert (buffer.piece(0, SIZE), buffer.start, buffer.held) == (b"3456", 3, 4)
    assert memory.held == 7  # it is one piece, of which a part is still needed
    buffer.keep(memoryview(b"789abc"))
    full.append(buffer.is_full)
    buffer.acknowledge(4)
    full.append(buffer.is_full)
    assert full == [False, True, False]
    buffer.acknowledge(14)  # 13 bytes and the end
    assert (buffer.piece(0, SIZE), buffer.start, buffer.held, memory.held) == (b"", 13, 0, 0)


def test_a_buffer_is_released_once() -> None:
    whole = SendMemory(1000)
    memory = SendMemory(1000, whole)
    one, two = SendBuffer(10, memory), SendBuffer(10, memory)
    one.keep(memoryview(b"0123"))
    two.keep(memoryview(b"56789"))
    for _ in range(2):
        one.release()
        assert (memory.held, whole.held, one.start, one.piece(0, SIZE)) == (5, 5, 4, b"")
    one.acknowledge(4)
    assert memory.held == 5


async def test_what_a_stream_that_has_failed_sent_is_not_kept(tidy: Tidy) -> None:
    """Not even until the ABORT is answered: the answer may be lost with the tunnel."""
    async with open_server(tidy) as side:
        stream, visitor = side.open(1)
        visitor.send(b"x" * 10)
        await side.hear()
        assert side.memory.held == 10
        stream.fail(AbortReason.RESET, "the local service reset its connection")
        assert side.memory.held == 0


@pytest.mark.parametrize("used_up", ["a session's", "all"])
def test_a_stream_that_uses_up_the_memory_cannot_be_resumed(used_up: str) -> None:
    """It goes on at full speed, and the others keep what they have."""
    whole = SendMemory(10 if used_up == "all" else 1000)
    memory = SendMemory(10 if used_up != "all" else 1000, whole)
    other, greedy = SendBuffer(100, memory), SendBuffer(4, memory)
    other.keep(memoryview(b"12345"))
    greedy.keep(memoryview(b"1234"))
    assert (greedy.used_up, greedy.is_full) == (False, True)
    greedy.keep(memoryview(b"5"))
    assert (greedy.used_up, greedy.is_full, greedy.held) == (True, False, 0)
    greedy.keep(memoryview(b"more"))
    greedy.acknowledge(5)
    assert (greedy.piece(0, SIZE), memory.held, whole.held) == (b"", 5, 5)
    assert (other.used_up, other.piece(0, SIZE)) == (False, b"12345")


async def test_large_reads_are_held_where_they_were_read(tidy: Tidy) -> None:
    """And no later read goes there before they are acknowledged."""
    del tidy
    memory, size = SendMemory(16 * SCRATCH_BYTES), SCRATCH_BYTES
    buffer = SendBuffer(PLENTY, memory)

    def read(letter: bytes, count: int = size) -> memoryview:
        room = scratch().keepable()
        room[HEADROOM_BYTES : HEADROOM_BYTES + count] = letter * count
        buffer.keep_read(count)
        return room

    rooms = [read(letter) for letter in (b"a", b"b", b"c")]
    assert scratch().outgoing.obj not in [room.obj for room in rooms]
    small = read(b"d", 10)
    assert small is scratch().keepable()
    assert read(b"e") is small
    held = [buffer.piece(position, size) for position in range(0, 3 * size, size)]
    assert held == [b"a" * size, b"b" * size, b"c" * size]
    buffer.acknowledge(size + 1)
    assert (buffer.held, buffer.piece(0, size)) == (3 * size - 1 + 10, b"b" * (size - 1))
    assert memory.held == 3 * len(rooms[0]) + 10  # what a buffer has room for is not free either
    begun = {id(room.obj) for room in rooms}
    assert id(read(b"f").obj) == id(rooms[0].obj)  # nobody needs `a` any more
    assert id(read(b"g").obj) not in begun
    assert buffer.piece(2 * size, size) == b"c" * size
    assert buffer.piece(3 * size, size) == b"d" * 10
    assert buffer.piece(3 * size + 10, size) == b"e" * size
    buffer.release()
    assert memory.held == 0


# -- one side, and a peer that is played by the test ------------------------------------------------------------------


@attrs.define(eq=False)
class OneSide:
    """One side of a tunnel; `wire` is the peer's end of it, `far` the far end of the visitor's or the service's connection."""

    tidy: Tidy
    nursery: trio.Nursery
    tunnel: Tunnel
    wire: MemoryEndpoint
    reader: TunnelReader = attrs.field(factory=TunnelReader)
    ends: list[MemoryEndpoint] = attrs.field(factory=list)
    error: Exception | None = None

    async def receive(self) -> None:
        try:
            await self.tunnel.receive()
        except (RemoteProtocolError, ConnectionLostError) as error:
            self.error = error

    async def say(self, *frames: bytes) -> list[TunnelFrame | bytes]:
        """Say it, and return what the side says to it."""
        await send_all(self.wire, b"".join(frames))
        return await self.hear()

    async def hear(self) -> list[TunnelFrame | bytes]:
        await trio.testing.wait_all_tasks_blocked()
        if not self.wire._incoming:
            return []
        return events(self.reader, await receive_some(self.wire))


@attrs.define(eq=False)
class ServerSide(OneSide):
    memory: SendMemory = attrs.field(factory=lambda: SendMemory(PLENTY))

    @property
    def server(self) -> ServerTunnel:
        assert isinstance(self.tunnel, ServerTunnel)
        return self.tunnel

    def stream(self, visitor: int, size: int = SIZE) -> tuple[VisitorStream, MemoryEndpoint]:
        far, near = self.tidy.pair()
        self.ends += [far, near]
        return VisitorStream(visitor, near, SendBuffer(size, self.memory)), far

    def open(self, visitor: int, size: int = SIZE) -> tuple[VisitorStream, MemoryEndpoint]:
        stream, far = self.stream(visitor, size)
        self.nursery.start_soon(self.server.open, stream, frame_for(visitor))
        return stream, far

    def resume(self, stream: VisitorStream) -> None:
        frame = Resume(frame_for(stream.visitor), stream.received, stream.acknowledged, 1)
        self.nursery.start_soon(self.server.resume, stream, frame)


@asynccontextmanager
async def open_server(tidy: Tidy, capacity: int = CAPACITY) -> AsyncIterator[ServerSide]:
    near, far = tidy.pair(capacity)
    tunnel = ServerTunnel(near)
    try:
        async with trio.open_nursery() as nursery:
            side = ServerSide(tidy, nursery, tunnel, far)
            side.ends += [near, far]
            nursery.start_soon(side.receive)
            yield side
            nursery.cancel_scope.cancel()
    finally:
        tunnel.abandon()
        for endpoint in side.ends:
            endpoint.close()


@attrs.define(eq=False)
class ClientSide(OneSide):
    """`kept` are streams that wait, `given_up` those that do not any more; `services` the far ends of connections to the service."""

    memory: SendMemory = attrs.field(factory=lambda: SendMemory(PLENTY))
    services: list[MemoryEndpoint] = attrs.field(factory=list)
    streams: list[VisitorStream] = attrs.field(factory=list)
    kept: dict[int, VisitorStream] = attrs.field(factory=dict)
    given_up: set[int] = attrs.field(factory=set)
    refuses: bool = False

    async def connect(self, frame: Open) -> MemoryEndpoint:
        await trio.lowlevel.checkpoint()
        if self.refuses:
            raise LocalServiceError("down")
        near, far = self.tidy.pair()
        self.services.append(far)
        return near

    async def find(self, visitor: int) -> VisitorStream | None:
        await trio.lowlevel.checkpoint()
        if visitor in self.given_up:
            raise LookupError(visitor)
        return self.kept.pop(visitor, None)

    def take_over(self, frame: Open, stream: VisitorStream) -> None:
        assert isinstance(self.tunnel, ClientTunnel)
        self.streams.append(stream)
        self.nursery.start_soon(self.tunnel.serve, stream)


@asynccontextmanager
async def open_client(tidy: Tidy, capacity: int = CAPACITY) -> AsyncIterator[ClientSide]:
    near, far = tidy.pair(capacity)
    try:
        async with trio.open_nursery() as nursery:
            side = ClientSide(tidy, nursery, ServerTunnel(near), far)  # the tunnel is made below
            tunnel = side.tunnel = ClientTunnel(
                near,
                side.connect,
                side.take_over,
                new_buffer=lambda: SendBuffer(SIZE, side.memory),
                find=side.find,
            )
            nursery.start_soon(side.receive)
            yield side
            nursery.cancel_scope.cancel()
    finally:
        tunnel.abandon()
        for stream in (*side.streams, *side.kept.values()):
            stream.plain.close()
        for endpoint in (near, far, *side.services):
            endpoint.close()


# -- acknowledgements -------------------------------------------------------------------------------------------------


async def test_a_full_buffer_stops_reading_until_an_ack(tidy: Tidy) -> None:
    async with open_server(tidy) as side:
        stream, visitor = side.open(1)
        visitor.send(b"x" * SIZE)
        assert await side.hear() == [frame_for(1), b"x" * SIZE]
        visitor.send(b"more")
        assert await side.hear() == []
        assert await side.say(Ack(1, 1).encode()) == [b"more"]
        assert stream.send_buffer is not None
        assert stream.send_buffer.piece(0, 2 * SIZE) == b"x" * (SIZE - 1) + b"more"


async def test_a_quarter_of_a_buffer_is_acknowledged_at_once(tidy: Tidy) -> None:
    async with open_server(tidy) as side:
        _, visitor = side.open(1)
        assert await side.hear() == [frame_for(1)]
        assert await side.say(data(b"x" * (SIZE // 4 - 1))) == []
        assert await side.say(data(b"x")) == [Ack(1, SIZE // 4)]
        assert len(await receive_some(visitor)) == SIZE // 4


@pytest.mark.parametrize(("count", "told"), [(16 * 1024, False), (16 * 1024 + 1, True)])
async def test_an_end_acknowledges_what_is_worth_it(tidy: Tidy, count: int, told: bool) -> None:
    async with open_server(tidy) as side:
        stream, visitor = side.open(1, size=PLENTY)
        assert await side.hear() == [frame_for(1)]
        heard = await side.say(data(bytes(count)), END_FRAME)
        assert heard == ([Ack(1, count + 1)] if told else [])
        assert stream.owes_ack is not told
        visitor.close()


@pytest.mark.parametrize("received", [4, 5, 2**64 - 1])
async def test_ack_beyond_what_was_sent_breaks_the_rules(tidy: Tidy, received: int) -> None:
    async with open_server(tidy) as side:
        _, visitor = side.open(1)
        visitor.send(b"abc")
        await side.hear()
        await side.say(Ack(1, 3).encode())
        assert side.error is None
        await side.say(Ack(1, received).encode())
        assert isinstance(side.error, RemoteProtocolError)


async def test_ack_of_a_stranger_breaks_the_rules(tidy: Tidy) -> None:
    async with open_server(tidy) as side:
        side.open(1)
        await side.hear()
        await side.say(Ack(2, 0).encode())
        assert isinstance(side.error, RemoteProtocolError)


async def over(side: ServerSide, visitor: int = 1) -> VisitorStream:
    """Let a visitor say and hear something, and both end; return its stream."""
    stream, far = side.open(visitor)
    far.send(b"question")
    far.send_eof()
    await side.hear()
    await side.say(data(b"answer"), END_FRAME)
    assert await receive_some(far) == b"answer"
    far.close()
    assert stream.over
    return stream


async def test_an_ack_for_the_visitor_before_is_right(tidy: Tidy) -> None:
    async with open_server(tidy) as side:
        before = await over(side)
        side.open(2)
        await side.hear()
        assert before in side.tunnel.streams
        await side.say(Ack(1, 9).encode())
        before.note_told()
        assert before not in side.tunnel.streams
        await side.say(Ack(1, 9).encode())
        assert side.error is None
        await side.say(Ack(3, 0).encode())
        assert isinstance(side.error, RemoteProtocolError)


@pytest.mark.parametrize(
    "word",
    [data(b"x"), END_FRAME, Abort(2, AbortReason.RESET).encode()],
    ids=["DATA", "END", "ABORT"],
)
async def test_a_word_about_the_next_visitor_acknowledges_the_one_before(
    tidy: Tidy, word: bytes
) -> None:
    async with open_server(tidy) as side:
        before = await over(side)
        side.open(2)
        await side.hear()
        assert side.memory.held == len("question")
        await side.say(word)
        assert before not in side.tunnel.streams
        assert side.memory.held == 0


async def test_probed_acknowledges_the_visitor_before(tidy: Tidy) -> None:
    async with open_server(tidy) as side:
        await over(side)
        side.server._probe()
        assert await side.hear() == [Probe()]
        assert len(side.tunnel.streams) == 1
        await side.say(PROBED_FRAME)
        assert side.tunnel.streams == []
        assert side.memory.held == 0


async def test_a_late_abort_acknowledges_nothing(tidy: Tidy) -> None:
    """It left before our END came, so the peer may not have all of it."""
    async with open_server(tidy) as side:
        before = await over(side)
        await side.say(Abort(1, AbortReason.RESET).encode())
        assert side.error is None
        assert side.tunnel.streams == [before]


@pytest.mark.parametrize("word", ["OPEN", "RESUME", "PROBE"])
async def test_what_comes_next_acknowledges_the_visitor_before_at_the_client(
    tidy: Tidy, word: str
) -> None:
    async with open_client(tidy) as side:
        assert await side.say(frame_for(1).encode(), END_FRAME) == []
        (service,) = side.services
        service.send(b"answer")
        service.send_eof()
        assert await side.hear() == [b"answer", End()]
        assert side.tunnel.streams == side.streams
        assert side.memory.held == len("answer")
        resume = Resume(frame_for(2), 0, 0, 1).encode()
        await side.say(
            {"OPEN": frame_for(2).encode(), "PROBE": PROBE_FRAME, "RESUME": resume}[word]
        )
        assert side.streams[0] not in side.tunnel.streams
        assert side.memory.held == 0


async def test_a_stream_that_is_over_is_kept_until_the_peer_is_told(tidy: Tidy) -> None:
    async with open_server(tidy) as side:
        before = await over(side)
        await side.say(Ack(1, 9).encode())
        assert side.tunnel.streams == [before]
        assert acks_of(side.tunnel.streams) == Acks(((1, 7),))
        assert side.tunnel.streams == []


async def test_what_was_told_on_the_tunnel_is_told_on_the_control_connection_as_well(
    tidy: Tidy,
) -> None:
    """At once where both sides may wait for each other: an ACK stands behind bytes that the peer may not read before it has heard of it."""
    async with open_server(tidy) as side:
        told: list[Acks | None] = []
        side.tunnel.on_full = lambda: told.append(acks_of(side.tunnel.streams))
        stream, visitor = side.open(1)
        await side.hear()
        assert await side.say(data(b"x" * 20)) == [Ack(1, 20)]
        assert (stream.owes_ack, stream.is_unconfirmed) == (False, True)
        for piece in (b"y" * 200, b"z"):
            visitor.send(piece)
            await trio.testing.wait_all_tasks_blocked()
        assert told == [Acks(((1, 20),))]
        assert acks_of(side.tunnel.streams) is None
        await side.say(Ack(1, 100).encode())
        visitor.send(b"z")
        await trio.testing.wait_all_tasks_blocked()
        assert len(told) == 1  # it is known already


async def test_an_ack_on_a_full_wire_is_neither_lost_nor_mixed_into_others(tidy: Tidy) -> None:
    """The wire takes 3 bytes at a time; DATA and ACKs of both directions come out whole, and the last ACK tells all."""
    async with open_server(tidy, capacity=PLENTY) as side:
        stream, visitor = side.open(1, size=PLENTY)
        side.wire.capacity = 3
        visitor.peer.largest_read = 50
        await trio.testing.wait_all_tasks_blocked()
        visitor.send(b"y" * 1000)
        heard: list[TunnelFrame | bytes] = []
        assert stream.send_buffer is not None
        stream.send_buffer.size, stream.send_buffer.ack_after = 40, 10
        reader = side.reader
        for _ in range(40):
            side.wire.send(data(b"x" * 12))
            for _ in range(6):
                await trio.testing.wait_all_tasks_blocked()
                piece = await receive_some(side.wire)
                assert len(piece) <= 3
                heard += events(reader, piece)
            stream.acknowledge(stream.sent)
        for _ in range(2000):
            await trio.testing.wait_all_tasks_blocked()
            side.tunnel.sweep()
            if not side.wire._incoming:
                break
            heard += events(reader, await receive_some(side.wire))
            stream.acknowledge(stream.sent)
        said = b"".join(event for event in heard if isinstance(event, bytes))
        acks = [event.received for event in heard if isinstance(event, Ack)]
        assert said == b"y" * 1000
        assert acks == sorted(set(acks))
        assert len(acks) > 5
        assert acks[-1] > 480 - 10
        assert side.error is None


@pytest.mark.parametrize("control", [True, False])
async def test_acks_on_the_control_connection_get_through_where_a_tunnel_is_full(
    tidy: Tidy, control: bool
) -> None:
    """The visitor sends all before it reads, the service reads and writes at once: ACKs on the tunnel stand behind what nobody reads."""
    wires = tidy.pair(100)
    visitor, near = tidy.pair(100)
    service: list[MemoryEndpoint] = []
    memory = SendMemory(PLENTY)
    streams: list[VisitorStream] = []

    async def connect(_: Open) -> MemoryEndpoint:
        await trio.lowlevel.checkpoint()
        one, two = tidy.pair(100)
        service.append(two)
        return one

    async with trio.open_nursery() as nursery:

        def take_over(_: Open, stream: VisitorStream) -> None:
            streams.append(stream)
            nursery.start_soon(client.serve, stream)

        server = ServerTunnel(wires[0])
        client = ClientTunnel(
            wires[1], connect, take_over, new_buffer=lambda: SendBuffer(400, memory)
        )
        streams.append(VisitorStream(1, near, SendBuffer(400, memory)))
        nursery.start_soon(server.receive)
        nursery.start_soon(client.receive)
        nursery.start_soon(server.open, streams[0], frame_for(1))
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(send_all, service[0], bytes(5000))
        nursery.start_soon(send_all, visitor, bytes(5000))
        read = 0
        for _ in range(200):
            await trio.testing.wait_all_tasks_blocked()
            if service[0]._incoming:
                read += len(await receive_some(service[0]))
            if control and (acks := acks_of([streams[1]])) is not None:
                take_acks(acks, [streams[0]])
        assert (read == 5000) is control
        nursery.cancel_scope.cancel()
    for tunnel in (server, client):
        tunnel.abandon()
    for endpoint in tidy.endpoints:
        endpoint.close()
    assert memory.held == 0


def test_acks_name_whoever_owes_them_and_pass_over_strangers(tidy: Tidy) -> None:
    async def main() -> None:
        one, two = (
            VisitorStream(number, tidy.pair()[0], SendBuffer(SIZE, SendMemory(PLENTY)))
            for number in (1, 2)
        )
        one.given = 5
        two.took_end, two.taken = True, 3
        assert acks_of([one, two]) == Acks(((1, 5),))
        assert acks_of([one, two]) is None
        take_acks(Acks(((7, 100), (2, 4))), [one, two])
        assert (two.acknowledged, two.is_acknowledged) == (4, True)
        with pytest.raises(RemoteProtocolError):
            take_acks(Acks(((2, 5),)), [one, two])
        for endpoint in tidy.endpoints:
            endpoint.close()

    trio.run(main)


# -- another tunnel goes on -------------------------------------------------------------------------------------------


async def test_the_server_goes_on_from_where_the_client_is(tidy: Tidy) -> None:
    async with open_server(tidy) as side:
        stream, visitor = side.stream(1)
        assert stream.send_buffer is not None
        stream.taken = 8
        stream.send_buffer.keep(memoryview(b"01234567"))
        stream.acknowledge(2)
        stream.given = 5
        visitor.send(b"89")
        side.resume(stream)
        assert await side.hear() == [Resume(frame_for(1), received=5, kept=2, attempt=1)]
        assert await side.say(Resumed(6).encode(), data(b"x")) == [b"67", b"89"]
        assert await receive_some(visitor) == b"x"


@pytest.mark.parametrize("received", [1, 9, 2**64 - 1])
async def test_resumed_where_nobody_can_go_on_breaks_the_rules(tidy: Tidy, received: int) -> None:
    async with open_server(tidy) as side:
        stream, _ = side.stream(1)
        assert stream.send_buffer is not None
        stream.taken = 8
        stream.send_buffer.keep(memoryview(b"01234567"))
        stream.acknowledge(2)
        side.resume(stream)
        await side.hear()
        assert await side.say(Resumed(received).encode()) == []
        assert isinstance(side.error, RemoteProtocolError)
        assert stream.failure is not None


@pytest.mark.parametrize("early", [data(b"x"), END_FRAME], ids=["DATA", "END"])
async def test_nothing_comes_before_resumed(tidy: Tidy, early: bytes) -> None:
    async with open_server(tidy) as side:
        stream, visitor = side.stream(1)
        side.resume(stream)
        await side.hear()
        await side.say(early)
        assert isinstance(side.error, RemoteProtocolError)
        assert not visitor._incoming
        assert not visitor._ended


async def test_nothing_is_said_before_resumed(tidy: Tidy) -> None:
    async with open_server(tidy) as side:
        stream, visitor = side.stream(1)
        side.resume(stream)
        await side.hear()
        visitor.send(b"x")
        visitor.reset()
        side.tunnel.sweep()
        assert await side.hear() == []
        (abort,) = await side.say(Resumed(0).encode())
        assert isinstance(abort, Abort)
        assert abort.reason is AbortReason.RESET


async def test_a_stream_that_is_gone_is_reset_at_the_visitor(tidy: Tidy) -> None:
    async with open_server(tidy) as side:
        stream, visitor = side.stream(1)
        side.resume(stream)
        await side.hear()
        (answer,) = await side.say(Abort(1, AbortReason.GONE, "given up").encode())
        assert isinstance(answer, Abort)
        with pytest.raises(ConnectionResetError):
            await receive_some(visitor)
        assert side.tunnel.idle
        assert stream.over
        await side.say(Abort(1, AbortReason.GONE).encode())  # late
        assert side.error is None


async def test_both_ends_have_arrived_and_only_that_is_to_be_told(tidy: Tidy) -> None:
    """Then the tunnel is idle as soon as RESUMED comes, and knows who was there."""
    async with open_server(tidy) as side:
        stream, _ = side.stream(1)
        stream.took_end = stream.gave_end = True
        side.resume(stream)
        assert await side.hear() == [Resume(frame_for(1), received=1, kept=0, attempt=1)]
        assert await side.say(Resumed(1).encode()) == []
        assert side.tunnel.idle
        assert stream.over
        await side.say(Ack(1, 1).encode(), Abort(1, AbortReason.RESET).encode())
        assert side.error is None


@pytest.mark.parametrize("kept", [0, 1])
@pytest.mark.parametrize("received", [0, 1])
async def test_a_visitor_whom_the_client_does_not_know(
    tidy: Tidy, kept: int, received: int
) -> None:
    async with open_client(tidy) as side:
        heard = await side.say(Resume(frame_for(1), received, kept, 3).encode())
        if kept or received:
            (abort,) = heard
            assert isinstance(abort, Abort)
            assert (abort.visitor, abort.reason) == (1, AbortReason.GONE)
            assert side.services == []
            await side.say(Abort(1, AbortReason.GONE).encode())
            assert side.tunnel.idle
        else:
            assert heard == [Resumed(0)]
            await side.say(data(b"hello"))
            assert await receive_some(side.services[0]) == b"hello"
            assert side.streams[0].attempt == 3


async def test_a_visitor_who_is_opened_anew_may_be_refused(tidy: Tidy) -> None:
    async with open_client(tidy) as side:
        side.refuses = True
        resumed, abort = await side.say(Resume(frame_for(1), 0, 0, 1).encode())
        assert resumed == Resumed(0)
        assert isinstance(abort, Abort)
        assert abort.reason is AbortReason.REFUSED


async def test_a_visitor_whom_the_client_has_given_up(tidy: Tidy) -> None:
    async with open_client(tidy) as side:
        side.given_up.add(1)
        (abort,) = await side.say(Resume(frame_for(1), 0, 0, 1).encode())
        assert isinstance(abort, Abort)
        assert abort.reason is AbortReason.GONE
        assert side.services == []


def kept_stream(side: ClientSide) -> tuple[VisitorStream, MemoryEndpoint]:
    """Return a stream that waits at the client: it has given 4 bytes, and 6 of 8 are not acknowledged."""
    near, far = side.tidy.pair()
    side.services.append(far)
    stream = side.kept[1] = VisitorStream(1, near, SendBuffer(SIZE, side.memory))
    stream.given, stream.taken = 4, 8
    assert stream.send_buffer is not None
    stream.send_buffer.keep(memoryview(b"01234567"))
    stream.acknowledge(2)
    return stream, far


async def test_the_client_goes_on_from_where_the_server_is(tidy: Tidy) -> None:
    async with open_client(tidy) as side:
        stream, service = kept_stream(side)
        service.send(b"89")
        resume = Resume(frame_for(1), received=5, kept=3, attempt=7)
        assert await side.say(resume.encode()) == [Resumed(4), b"567", b"89"]
        assert await side.say(data(b"x"), END_FRAME) == []
        assert await receive_some(service) == b"x"
        assert stream.attempt == 7
        service.close()
        assert await side.hear() == [End()]
        assert side.tunnel.idle


@pytest.mark.parametrize(
    ("received", "kept"), [(1, 0), (9, 0), (5, 5)], ids=["too low", "too high", "not kept"]
)
async def test_resume_where_nobody_can_go_on_is_an_abort(
    tidy: Tidy, received: int, kept: int
) -> None:
    async with open_client(tidy) as side:
        stream, service = kept_stream(side)
        heard = await side.say(Resume(frame_for(1), received, kept, 1).encode())
        assert isinstance(heard[-1], Abort)
        assert not any(isinstance(event, bytes) for event in heard)
        await side.say(Abort(1, AbortReason.OTHER).encode())
        assert side.error is None
        assert side.tunnel.idle
        with pytest.raises(OSError, match="reset"):
            await receive_some(service)
        assert stream.failure is not None


async def test_the_server_may_go_on_before_the_client_has_sent_everything_again(tidy: Tidy) -> None:
    async with open_client(tidy, capacity=30) as side:
        _, service = kept_stream(side)
        side.wire.capacity = 17
        await send_all(side.wire, Resume(frame_for(1), 2, 2, 1).encode()[:30])
        await trio.testing.wait_all_tasks_blocked()
        await send_all(side.wire, Resume(frame_for(1), 2, 2, 1).encode()[30:])
        await trio.testing.wait_all_tasks_blocked()
        assert len(side.wire._incoming) == 17  # RESUMED, and one byte of what is behind it
        await send_all(side.wire, data(b"x") + END_FRAME)
        await trio.testing.wait_all_tasks_blocked()
        assert side.error is None
        assert await receive_some(service) == b"x"
        assert await side.hear() == [Resumed(4)]
        assert await side.hear() == [b"234567"]


async def test_a_client_that_does_not_answer_resume_is_given_up(tidy: Tidy) -> None:
    async with open_server(tidy) as side:
        stream, _ = side.stream(1)
        side.resume(stream)
        await side.hear()
        with pytest.raises(PeerTimeoutError):
            for _ in range(6):
                side.tunnel.sweep()


async def test_resume_on_a_tunnel_that_owes_an_answer_grants_no_more_time(tidy: Tidy) -> None:
    async with open_server(tidy) as side:
        for _ in range(16 + 3):
            side.tunnel.sweep()
        assert await side.hear() == [Probe()]
        stream, _ = side.stream(1)
        side.resume(stream)
        await side.hear()
        side.tunnel.sweep()
        with pytest.raises(PeerTimeoutError):
            side.tunnel.sweep()


async def test_resume_has_its_own_time_where_the_probe_was_answered_a_moment_ago(
    tidy: Tidy,
) -> None:
    async with open_server(tidy) as side:
        for _ in range(16 + 3):
            side.tunnel.sweep()
        assert await side.hear() == [Probe()]
        await side.say(PROBED_FRAME)
        stream, _ = side.stream(1)
        side.resume(stream)
        await side.hear()
        for _ in range(4):
            side.tunnel.sweep()
        with pytest.raises(PeerTimeoutError):
            side.tunnel.sweep()


async def test_an_abort_that_was_the_last_word_is_told_again(tidy: Tidy) -> None:
    """The visitor has ended, the service resets: with our ABORT it is over here, but the tunnel may be lost before the server hears it."""
    async with open_client(tidy) as first:
        await first.say(frame_for(1).encode(), data(b"x"), END_FRAME)
        first.services[0].reset()
        first.tunnel.sweep()
        (abort,) = await first.hear()
        assert isinstance(abort, Abort)
        assert first.tunnel.idle
        (stream,) = first.tunnel.detach()
        async with open_client(tidy) as side:
            side.kept[1] = stream
            resumed, abort = await side.say(Resume(frame_for(1), 0, 0, 1).encode())
            assert resumed == Resumed(2)
            assert isinstance(abort, Abort)
            assert abort.reason is AbortReason.RESET
            assert side.services == []  # nobody gets those bytes again


async def test_resumed_waits_for_an_abort_that_is_still_leaving(tidy: Tidy) -> None:
    async with open_client(tidy) as side:
        await side.say(frame_for(1).encode())
        side.services[0].send_eof()
        assert await side.hear() == [End()]
        side.wire.capacity = 5
        side.services[0].reset()
        side.tunnel.sweep()
        await trio.testing.wait_all_tasks_blocked()
        await send_all(side.wire, END_FRAME + Resume(frame_for(2), 0, 0, 1).encode())
        heard: list[TunnelFrame | bytes] = []
        await trio.testing.wait_all_tasks_blocked()
        while side.wire._incoming:
            heard += await side.hear()
            await trio.testing.wait_all_tasks_blocked()
        assert heard[1:] == [Resumed(0)]
        assert isinstance(heard[0], Abort)
        assert side.error is None


async def test_resume_on_a_busy_tunnel_breaks_the_rules(tidy: Tidy) -> None:
    async with open_client(tidy) as side:
        await side.say(frame_for(1).encode(), Resume(frame_for(2), 0, 0, 1).encode())
        assert isinstance(side.error, RemoteProtocolError)


async def test_a_reset_in_front_of_an_open_that_cannot_leave_stays_a_reset(tidy: Tidy) -> None:
    async with open_server(tidy, capacity=1) as side:
        stream, visitor = side.stream(1)
        visitor.reset()
        failed: list[BaseException] = []

        async def carry() -> None:
            try:
                await side.server.open(stream, frame_for(1))
            except ConnectionLostError as error:
                failed.append(error)

        side.nursery.start_soon(carry)
        await trio.testing.wait_all_tasks_blocked()
        side.wire.reset()
        await trio.testing.wait_all_tasks_blocked()
        assert failed
        assert stream.failure is not None
        assert not stream.took_end


# -- both sides, and a wire that is cut -------------------------------------------------------------------------------


def run_machine(act: Callable[[Machine], object], tidy: Tidy, **sizes: int) -> None:
    """Run what a test does with both sides, and then let everything through and end: nothing may be left."""
    chosen = {"wire": PLENTY, "buffer": 100, "memory": PLENTY} | sizes

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            machine = Machine(
                tidy,
                nursery,
                chosen["wire"],
                dict.fromkeys(Side, PLENTY),
                chosen["buffer"],
                chosen["memory"],
                polite=True,
            )
            try:
                await trio.testing.wait_all_tasks_blocked()
                await act(machine)  # type: ignore[misc]
                await machine.finish()
            finally:
                machine.closing = True
                nursery.cancel_scope.cancel()
        machine.close()

    trio.run(main)


async def pass_on(machine: Machine, limits: dict[Side, int]) -> None:
    """Let at most so many bytes of each side through on the newest tunnel, and what is dialled be connected."""
    line = machine.lines[-1]
    moved = True
    while moved:
        await trio.testing.wait_all_tasks_blocked()
        moved = False
        for side in Side:
            before = len(line.middle[side]._incoming)
            if machine.deliver(line, side, limits[side]):
                limits[side] -= before - len(line.middle[side]._incoming)
                moved = True
        if line.dialling is not None and not line.dialling[1].is_set():
            machine.dial(line, "accepts")
            moved = True
        machine.check()


@pytest.mark.parametrize("first", Side)
@pytest.mark.parametrize("sender", Side)
@pytest.mark.parametrize("ends", [True, False])
def test_a_tunnel_may_be_lost_at_any_byte(
    tidy: Tidy, sender: Side, first: Side, ends: bool
) -> None:
    """The first tunnel is cut behind each byte that `sender` says on it, then the next one; `first` is who notices it first."""

    async def act(machine: Machine, cut_at: tuple[int, int]) -> None:
        machine.open()
        for cut in cut_at:
            visit = machine.visits[0]
            if not visit.visitor.ended:
                visit.visitor.say(b"question")
            if ends and not visit.visitor.ended:
                visit.visitor.end()
            await pass_on(machine, dict.fromkeys(Side, PLENTY) | {sender: cut})
            if visit.services and not visit.services[0].ended:
                visit.services[0].say(b"answer")
                if ends:
                    visit.services[0].end()
            await pass_on(machine, dict.fromkeys(Side, PLENTY) | {sender: cut})
            line = machine.lines[-1]
            line.notice(first)
            await trio.testing.wait_all_tasks_blocked()
            machine.add_line()
        machine.lines[0].cut()

    for cut in range(0, 90, 1):
        run_machine(lambda machine, cut=cut: act(machine, (cut, PLENTY)), tidy)  # type: ignore[misc]
        run_machine(lambda machine, cut=cut: act(machine, (30, cut)), tidy)  # type: ignore[misc]


@pytest.mark.parametrize("who", ["visitor", "service"])
def test_a_reset_while_a_stream_waits_is_told_when_it_goes_on(tidy: Tidy, who: str) -> None:
    async def act(machine: Machine) -> None:
        machine.open()
        visit = machine.visits[0]
        visit.visitor.say(b"x")
        await pass_on(machine, dict.fromkeys(Side, PLENTY))
        assert visit.services[0].listen(10)
        machine.lose_session()
        await trio.testing.wait_all_tasks_blocked()
        one, two = visit.visitor, visit.services[0]
        if who == "service":
            one, two = two, one
        one.reset()
        machine.add_line()
        await pass_on(machine, dict.fromkeys(Side, PLENTY))
        line = machine.lines[-1]
        for side in Side:
            line.sweep(side)
        await pass_on(machine, dict.fromkeys(Side, PLENTY))
        two.listen(10)
        assert two.seen == "reset"
        assert line.server.idle
        assert line.client.idle

    run_machine(act, tidy)


@pytest.mark.parametrize("noticed", Side)
def test_the_last_end_is_lost(tidy: Tidy, noticed: Side) -> None:
    """The server has both ENDs, and serves the next visitor already; the client has not heard the server's."""

    async def act(machine: Machine) -> None:
        machine.open()
        visit = machine.visits[0]
        await pass_on(machine, dict.fromkeys(Side, PLENTY))
        visit.services[0].end()
        await pass_on(machine, dict.fromkeys(Side, PLENTY))
        visit.visitor.say(b"the last words")
        visit.visitor.end()
        await trio.testing.wait_all_tasks_blocked()
        assert visit.stream.over
        machine.open()
        await trio.testing.wait_all_tasks_blocked()
        assert machine.lines[0].server.streams == [v.stream for v in machine.visits]
        machine.lines[0].notice(noticed)
        await trio.testing.wait_all_tasks_blocked()

    run_machine(act, tidy)


async def test_a_stream_with_a_limited_bandwidth_is_resumed(
    tidy: Tidy, autojump_clock: MockClock
) -> None:
    """What was read and waits for its turn when the tunnel is lost is sent over the next one."""
    piece = bytes(range(200))
    async with open_server(tidy) as first:
        stream, visitor = first.stream(1, size=PLENTY)
        stream.throttle = Throttle(100)
        lost = trio.CancelScope()

        async def carry() -> None:
            with lost:
                await first.server.open(stream, frame_for(1))

        first.nursery.start_soon(carry)
        visitor.send(piece)
        assert await first.hear() == [frame_for(1), piece]
        visitor.send(b"waits")
        assert await first.hear() == []
        assert stream.taken == 205
        lost.cancel()
        await trio.testing.wait_all_tasks_blocked()
        assert first.tunnel.detach() == [stream]
        async with open_server(tidy) as side:
            side.resume(stream)
            (resume,) = await side.hear()
            assert resume == Resume(frame_for(1), 0, 0, 1)
            assert b"".join(await side.say(Resumed(150).encode())) == piece[150:] + b"waits"  # type: ignore[arg-type]
            visitor.send(b"more")
            visitor.send_eof()
            await trio.sleep(10)
            assert await side.hear() == [b"more", End()]


async def test_what_is_sent_again_is_copied_piece_by_piece(tidy: Tidy) -> None:
    """While the wire is full, a stream that goes on holds its buffer and one piece more."""
    size = 8 * SCRATCH_BYTES
    async with open_server(tidy, capacity=1000) as side:
        stream, _ = side.stream(1, size=size)
        assert stream.send_buffer is not None
        stream.taken = size
        stream.send_buffer.keep(memoryview(bytes(size)))
        side.resume(stream)
        await side.hear()
        tracemalloc.start()
        try:
            await side.say(Resumed(0).encode())
            held, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert held < 3 * SCRATCH_BYTES
