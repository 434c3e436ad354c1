"""Streams that go on over one tunnel after another, wherever their tunnels are cut.

As in `test_tunnel_machine.py` hypothesis chooses one step after another. Here the wire may be cut at any byte, either side may notice it first,
and what the client and the server tell each other about lost tunnels, and acknowledge, goes over a control connection that is late.
Each end has to get exactly what the other one has said, each byte once, and a reset as a reset. When all is over nothing may be held.
"""

from __future__ import annotations

from collections import deque
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

import attrs
import trio
import trio.testing
from hypothesis import event, given, note, settings, target
from hypothesis import strategies as st

from tests.fuzz.ends import TICKS, End, Step, check_ends, check_joined, deeds, run_on, use_scratch
from tests.fuzz.law import Record, Witness
from tests.fuzz.test_tunnel_machine import watched_pair
from tests.unit.conftest import Tidy
from trionat.client.native.streams import WaitingStreams
from trionat.errors import ConnectionLostError, PeerTimeoutError
from trionat.protocol.conversation import Side
from trionat.protocol.messages import Acks, Resumption
from trionat.protocol.tunnel_frames import Open, Resume
from trionat.relay.acknowledgements import acks_of, take_acks
from trionat.relay.client_tunnel import ClientTunnel, LocalServiceError
from trionat.relay.send_buffer import SendBuffer, SendMemory
from trionat.relay.server_tunnel import ServerTunnel
from trionat.relay.stream import VisitorStream
from trionat.signals import Signal
from trionat.transport.endpoint import TLS_RECORD_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from tests.unit.memory import MemoryEndpoint
    from trionat.protocol.messages import Lost
    from trionat.relay.tunnel import Tunnel
    from trionat.transport.endpoint import Endpoint

Choices: TypeAlias = "list[tuple[int, int, int]]"
"""A group of steps of those that are possible, a step of those in it, and how far Trio goes on behind it."""

MOST_LINES: Final = 3
PLENTY: Final = 1_000_000


def other(side: Side) -> Side:
    return Side.CLIENT if side is Side.SERVER else Side.SERVER


def frame_for(visitor: int) -> Open:
    return Open(visitor=visitor, service=0, host="v", port=1, visit_host="s", visit_port=2)


@attrs.define(eq=False)
class Visit:
    """One visitor, and the connections to the local service that were made for it."""

    number: int
    visitor: End
    stream: VisitorStream
    services: list[End] = attrs.field(factory=list)
    refused: bool = False
    counted: bool = False

    def check(self) -> None:
        """As `check_joined`. Who was refused, or never got as far as the service, hears nothing; nobody is served twice."""
        if self.services:
            check_joined(self.visitor, self.services[0])
        else:
            assert not self.visitor.got
            assert self.visitor.seen != "end" or self.refused
            assert self.visitor.seen != "reset" or self.visitor.rude or self.refused
        for again in self.services[1:]:
            assert not again.got, "a byte was given to the service twice"


@attrs.define(eq=False)
class Line:
    """A tunnel with both ends, on a wire that can be cut. `running` are the sides that still have it."""

    server: ServerTunnel
    client: ClientTunnel
    middle: dict[Side, MemoryEndpoint]
    witnesses: dict[Side, Witness]
    scopes: dict[Side, trio.CancelScope] = attrs.field(
        factory=lambda: {side: trio.CancelScope() for side in Side}
    )
    running: dict[Side, None] = attrs.field(factory=lambda: dict.fromkeys(Side))
    is_cut: bool = False
    current: Visit | None = None
    before: Visit | None = None
    dialling: tuple[int, trio.Event] | None = None
    answer: Literal["accepts", "refuses"] = "accepts"

    @property
    def tunnels(self) -> dict[Side, Tunnel]:
        return {Side.SERVER: self.server, Side.CLIENT: self.client}

    def cut(self) -> None:
        """Nothing gets through any more; nobody notices it yet."""
        self.is_cut = True
        for endpoint in self.middle.values():
            endpoint._incoming.clear()

    def notice(self, side: Side) -> None:
        """The kernel finds out that the connection is lost."""
        self.cut()
        self.middle[side].reset()

    def give_up(self, side: Side) -> None:
        """As the tunnel's owner does, who resets the wire then."""
        self.scopes[side].cancel()

    def sweep(self, side: Side) -> None:
        if side in self.running:
            try:
                self.tunnels[side].sweep()
            except (PeerTimeoutError, ConnectionLostError):
                self.give_up(side)


@attrs.define(eq=False)
class Machine:
    """The owners of the tunnels at both ends, and everything that can happen to them."""

    tidy: Tidy
    nursery: trio.Nursery
    wire: int
    plain: dict[Side, int]
    buffer: int
    memory_limit: int
    polite: bool
    visits: list[Visit] = attrs.field(factory=list)
    lines: list[Line] = attrs.field(factory=list)
    memory: SendMemory = attrs.field(init=False)
    whole: SendMemory = attrs.field(factory=lambda: SendMemory(PLENTY))
    waiting: WaitingStreams = attrs.field(factory=lambda: WaitingStreams(100))
    records: dict[Side, tuple[Record, Record]] = attrs.field(
        factory=lambda: {side: (Record(), Record()) for side in Side}
    )
    control: dict[Side, deque[Acks | Lost]] = attrs.field(
        factory=lambda: {side: deque() for side in Side}
    )
    resumptions: int = 0
    closing: bool = False
    _queue: deque[Visit] = attrs.field(factory=deque)
    _hungry: int = 0
    _changed: Signal = attrs.field(factory=Signal)

    def __attrs_post_init__(self) -> None:
        self.memory = SendMemory(self.memory_limit, self.whole)
        self.waiting.begin(Resumption(lease="lease", wait=30.0, buffer=self.buffer))
        self.waiting.memory.limit = self.memory_limit
        self.add_line()

    # -- what the owner at the server does

    async def _run_server(self, line: Line) -> None:
        try:
            with line.scopes[Side.SERVER]:
                await self._run(line.server, partial(self._carry_at_server, line))
        finally:
            del line.running[Side.SERVER]
            for stream in line.server.detach():
                self._rescue(self.visits[stream.visitor - 1])
            line.server.wire.reset()
            self._changed.notify()

    async def _carry_at_server(self, line: Line) -> None:
        while True:
            self._hungry += 1
            try:
                while not self._queue:
                    await self._changed.wait()
            finally:
                self._hungry -= 1
            visit = line.current = self._queue.popleft()
            stream = visit.stream
            if not visit.counted:
                visit.counted = True
                await line.server.open(stream, frame_for(visit.number))
            else:
                self.resumptions += 1
                stream.attempt += 1
                resume = Resume(
                    frame_for(visit.number), stream.received, stream.acknowledged, stream.attempt
                )
                await line.server.resume(stream, resume)
            line.current, line.before = None, visit

    def _rescue(self, visit: Visit) -> None:
        if (
            self.closing or visit.stream.aborted
        ):  # in the second case only our answer was to be sent
            visit.stream.plain.reset()
        else:
            self._queue.appendleft(visit)

    # -- what the owner at the client does

    async def _run_client(
        self, line: Line, streams: trio.MemoryReceiveChannel[VisitorStream]
    ) -> None:
        try:
            with line.scopes[Side.CLIENT]:
                await self._run(line.client, partial(self._carry_at_client, line, streams))
        finally:
            del line.running[Side.CLIENT]
            line.dialling = None
            for stream in line.client.detach():
                self.waiting.hold(frame_for(stream.visitor), stream)
            line.client.wire.reset()
            self._changed.notify()

    async def _carry_at_client(
        self, line: Line, streams: trio.MemoryReceiveChannel[VisitorStream]
    ) -> None:
        async for stream in streams:
            await line.client.serve(stream)

    async def _find(self, visitor: int) -> VisitorStream | None:
        for line in self.lines:
            if line.client.serves(visitor):
                line.give_up(Side.CLIENT)
                while Side.CLIENT in line.running:
                    await self._changed.wait()
        return self.waiting.take(visitor)

    async def _connect(self, number: int, frame: Open) -> Endpoint:
        line = self.lines[number]
        answered = trio.Event()
        line.dialling = frame.visitor, answered
        await answered.wait()
        line.dialling = None
        visit = self.visits[frame.visitor - 1]
        visit.refused = line.answer == "refuses"
        if visit.refused:
            raise LocalServiceError("down")
        near, far = self.tidy.pair(self.plain[Side.CLIENT])
        visit.services.append(End(far))
        return near

    # -- what both do

    async def _run(self, tunnel: Tunnel, carry: Callable[[], object]) -> None:
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(carry)  # type: ignore[arg-type]
                await tunnel.receive()
                nursery.cancel_scope.cancel()
        except* (
            ConnectionLostError,
            trio.ClosedResourceError,
        ):  # the second one where it was given up
            pass

    def on_lines(self, side: Side) -> Iterable[VisitorStream]:
        for line in self.lines:
            if side in line.running:
                yield from line.tunnels[side].streams

    # -- what can happen

    def add_line(self) -> None:
        number = len(self.lines)
        witnesses = {side: Witness(side, *self.records[side]) for side in Side}
        wires, middle = {}, {}
        for side in Side:
            wires[side], middle[side] = watched_pair(
                self.tidy.endpoints, self.wire, witnesses[side]
            )
        begin, streams = trio.open_memory_channel[VisitorStream](1)
        client = ClientTunnel(
            wires[Side.CLIENT],
            partial(self._connect, number),
            lambda _, stream: begin.send_nowait(stream),
            lambda: None,
            self.waiting.new_buffer,
            self._find,
        )
        line = Line(ServerTunnel(wires[Side.SERVER]), client, middle, witnesses)
        self.lines.append(line)
        self.nursery.start_soon(self._run_server, line)
        self.nursery.start_soon(self._run_client, line, streams)

    def open(self) -> None:
        near, far = self.tidy.pair(self.plain[Side.SERVER])
        number = len(self.visits) + 1
        stream = VisitorStream(number, near, SendBuffer(self.buffer, self.memory))
        visit = Visit(number, End(far), stream)
        self.visits.append(visit)
        self._queue.append(visit)
        self._changed.notify()

    def deliver(self, line: Line, sender: Side, most: int) -> bool:
        """Let at most so many bytes of what `sender` has written through; tell whether there were any."""
        here, there = line.middle[sender], line.middle[other(sender)]
        room = there.peer.capacity - len(there.peer._incoming)
        count = min(most, room, len(here._incoming), TLS_RECORD_BYTES)
        if line.is_cut or count <= 0 or here.closed or there.closed:
            return False
        buffer = memoryview(bytearray(TLS_RECORD_BYTES))
        here.largest_read = count
        received = here.recv_into(buffer)
        with suppress(OSError):  # there it is given up
            there.send(buffer[:received])
        return True

    def dial(self, line: Line, answer: Literal["accepts", "refuses"]) -> None:
        assert line.dialling is not None
        line.answer = answer
        line.dialling[1].set()

    def post_acks(self, side: Side) -> None:
        acks = acks_of(self.on_lines(side))
        if acks is not None:
            self.control[side].append(acks)

    def post_lost(self) -> None:
        lost = self.waiting.lost()
        if lost is not None:
            self.control[Side.CLIENT].append(lost)

    def take_control(self, sender: Side) -> bool:
        if not self.control[sender]:
            return False
        message = self.control[sender].popleft()
        if isinstance(message, Acks):
            take_acks(message, self.on_lines(other(sender)))
        else:
            attempts = dict(message.streams)
            for line in self.lines:
                stream = line.server.stream
                if stream is not None and attempts.get(stream.visitor) == stream.attempt:
                    line.give_up(Side.SERVER)
        return True

    def lose_session(self) -> None:
        """The control connection is lost, and all tunnels with it."""
        for line in self.lines:
            for side in tuple(line.running):
                line.notice(side)
        for messages in self.control.values():
            messages.clear()

    def possible(self) -> list[list[Step]]:
        """Everything that may come next, in groups that are equally likely; in the first is nothing at all."""
        groups: list[list[Step]] = [[("nothing", lambda: None)]]
        alive = [line for line in self.lines if line.running]
        for line in alive:
            groups += [
                list(self._passages(line, side))
                for side in Side
                if line.middle[side]._incoming and not line.is_cut
            ]
            if line.dialling is not None and not line.dialling[1].is_set():
                answers: list[Literal["accepts", "refuses"]] = ["accepts", "accepts", "refuses"]
                groups.append([(answer, partial(self.dial, line, answer)) for answer in answers])
            groups.append(list(self._losses(line)))
        if self._hungry and not self._queue:
            groups.append([("open", self.open)])
        if len(alive) < MOST_LINES:
            groups.append([("another tunnel", self.add_line)] * (1 if len(alive) > 1 else 2))
        groups += [list(deeds(name, end, polite=self.polite)) for name, end in self._ends()]
        groups.append(
            [
                (f"sweep {side.value}", partial(line.sweep, side))
                for line in alive
                for side in line.running
            ]
            or groups[0]
        )
        groups.append(list(self._control()))
        return groups

    def _passages(self, line: Line, sender: Side) -> Iterator[Step]:
        """How much of what is on the wire may get through."""
        for most in (10_000, 1, 20, 3):
            name = f"{self.lines.index(line)}: deliver {most} from {sender.value}"
            yield name, partial(self.deliver, line, sender, most)

    def _losses(self, line: Line) -> Iterator[Step]:
        number = self.lines.index(line)
        if not line.is_cut:
            for _ in range(4):
                yield f"{number}: not cut", lambda: None
            yield f"{number}: cut", line.cut
        for side in line.running:
            yield f"{number}: lost at {side.value}", partial(line.notice, side)

    def _control(self) -> Iterator[Step]:
        for side in (*Side, *Side):
            yield f"ACKS of {side.value}", partial(self.post_acks, side)
            if self.control[side]:
                yield f"{side.value} is heard", partial(self.take_control, side)
        if len(self.waiting):
            yield "LOST", self.post_lost
        yield "the session is lost", self.lose_session

    def _ends(self) -> Iterator[tuple[str, End]]:
        for visit in self.visits[-2:]:
            if not visit.visitor.gone:
                yield f"visitor {visit.number}", visit.visitor
            for service in visit.services[:1]:
                if not service.gone:
                    yield f"service {visit.number}", service

    # -- the run

    async def run(self, choices: Choices) -> None:
        await trio.testing.wait_all_tasks_blocked()
        for group_choice, choice, ticks in choices:
            groups = self.possible()
            group = groups[group_choice % len(groups)]
            name, step = group[choice % len(group)]
            note(name)
            step()
            use_scratch()
            await run_on(ticks)
            self.check()
        note("finish")
        await self.finish()
        event(f"{min(5, len(self.visits))} visitors")
        event(f"{min(5, self.resumptions)} resumptions")
        target(float(self.resumptions))

    def check(self) -> None:
        for visit in self.visits:
            visit.check()
        held = {Side.SERVER: [visit.stream for visit in self.visits]}
        held[Side.CLIENT] = [w.stream for w in self.waiting._waiting.values()]
        held[Side.CLIENT] += self.on_lines(Side.CLIENT)
        for side, memory in ((Side.SERVER, self.memory), (Side.CLIENT, self.waiting.memory)):
            buffers = [stream.send_buffer for stream in held[side]]
            kept = [chunk for buffer in buffers if buffer for chunk in buffer._chunks]
            assert (
                memory.held
                == sum(map(len, kept))
                >= sum(buffer.held for buffer in buffers if buffer)
            )
            for buffer in buffers:
                assert buffer is not None
                assert buffer.held <= self.buffer + self.plain[side]
        assert self.whole.held == self.memory.held

    async def finish(self) -> None:
        """Everybody hears the rest, and ends: then all is idle, nothing is held, and whoever was not reset has heard everything."""
        for endpoint in self.tidy.endpoints:
            endpoint.capacity = endpoint.largest_read = PLENTY
        self.wire, self.plain = PLENTY, dict.fromkeys(Side, PLENTY)
        for line in self.lines:
            if line.is_cut or len(line.running) < len(Side):
                for side in tuple(line.running):
                    line.notice(side)
        for _ in self.visits:
            self.add_line()
        await self._let_all_hear()
        for visit in self.visits:
            if visit.services and visit.stream.failure is None:
                check_ends(visit.visitor, visit.services[0])
        while self._end_all():
            await self._let_all_hear()
        for line in self.lines:
            if (
                line.running and line.server.idle
            ):  # of one that has failed nobody knows how far it came
                line.server._probe()
        await self._let_all_hear()
        for line in self.lines:
            for side in line.running:
                assert line.tunnels[side].idle
                assert not line.tunnels[side].streams, (side, line.tunnels[side].streams)
                assert line.witnesses[side].quiet
        assert not self._queue
        for waiting in self.waiting._waiting.values():  # the server knows, and will not ask again
            assert waiting.stream.failure is not None or waiting.stream.over
        self.waiting.drop_all("at the end")
        assert self.memory.held == self.whole.held == self.waiting.memory.held == 0
        for visit in self.visits:
            assert visit.stream.over or visit.stream.aborted
            assert visit.stream.plain.closed  # type: ignore[attr-defined]
            for end in (visit.visitor, *visit.services):
                end.listen(PLENTY)
                assert end.gone or end.seen != "nothing"
        self.check()

    def _end_all(self) -> bool:
        """Let everybody end who has not; tell whether there was any. A visitor may get to the service only when another one has ended."""
        ends = [end for visit in self.visits for end in (visit.visitor, *visit.services)]
        ends = [end for end in ends if not end.ended and end.seen != "reset" and not end.gone]
        for end in ends:
            end.end()
        return bool(ends)

    async def _let_all_hear(self) -> None:
        """Deliver and listen as long as there is anything; a reset that nobody has touched is seen by a sweep alone."""
        for _ in range(3):
            while await self._let_something_through():
                self.check()
            for line in self.lines:
                for side in tuple(line.running):
                    line.sweep(side)
            for side in Side:
                self.post_acks(side)
            self.post_lost()
        while await self._let_something_through():
            self.check()

    async def _let_something_through(self) -> bool:
        await trio.testing.wait_all_tasks_blocked()
        moved = [self.deliver(line, side, PLENTY) for line in self.lines for side in Side]
        moved += [self.take_control(side) for side in Side]
        for line in self.lines:
            if line.dialling is not None and not line.dialling[1].is_set():
                self.dial(line, "accepts")
                moved.append(True)
            if len(line.running) == 1:  # the end of the connection gets through
                line.notice(*line.running)
                moved.append(True)
                await trio.testing.wait_all_tasks_blocked()
        if not any(len(line.running) == len(Side) for line in self.lines):
            self.add_line()
            moved.append(True)
        for visit in self.visits:
            moved += [e.listen(PLENTY) for e in (visit.visitor, *visit.services) if not e.gone]
        return any(moved)

    def close(self) -> None:
        self.closing = True
        self.waiting.drop_all("at the end")
        for visit in self.visits:
            visit.stream.plain.close()
        for endpoint in self.tidy.endpoints:
            endpoint.close()


@settings(max_examples=150, deadline=None)
@given(
    choices=st.lists(
        st.tuples(st.integers(0, 29), st.integers(0, 11), st.integers(0, TICKS)),
        min_size=60,
        max_size=120,
    ),
    wire=st.sampled_from([1, 10, 100, 100_000]),
    plain=st.tuples(*[st.sampled_from([1, 10, 100, 100_000])] * 2),
    buffer=st.sampled_from([1, 20, 100, 100_000]),
    memory=st.just(PLENTY),  # with less, streams are reset that could not be resumed
    polite=st.booleans(),
)
def test_every_byte_arrives_once_whatever_is_cut(
    choices: Choices, wire: int, plain: tuple[int, int], buffer: int, memory: int, polite: bool
) -> None:
    async def main() -> None:
        async with trio.open_nursery() as nursery:
            ends = dict(zip(Side, plain, strict=True))
            machine = Machine(Tidy(), nursery, wire, ends, buffer, memory, polite)
            try:
                await machine.run(choices)
            finally:
                machine.closing = True
                nursery.cancel_scope.cancel()
        machine.close()

    trio.run(main)
