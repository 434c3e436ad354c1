"""Both ends of a tunnel under any interleaving of visitors, services, losses and delays, held against a model.

Hypothesis chooses one step after another, from those that are possible: what the visitor and the local service do at the far ends of
their connections, how many bytes of the wire get through and in which direction, and how far Trio runs before the next step. The
model (`law.py`) watches the wire; the ends watch each other's bytes.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Generic, Literal, TypeAlias, TypeVar

import attrs
import trio
import trio.testing
from hypothesis import event, given, note, settings, target
from hypothesis import strategies as st

from tests.fuzz.ends import TICKS, End, Step, check_ends, check_joined, deeds, run_on, use_scratch
from tests.fuzz.law import Witness
from tests.unit.conftest import Tidy
from tests.unit.memory import MemoryEndpoint
from trionat.errors import PeerTimeoutError
from trionat.protocol.conversation import Side
from trionat.protocol.tunnel_frames import Open
from trionat.relay.client_tunnel import ClientTunnel, LocalServiceError
from trionat.relay.server_tunnel import ServerTunnel
from trionat.relay.stream import VisitorStream
from trionat.transport.endpoint import TLS_RECORD_BYTES
from trionat.transport.pipe import join_ends

if TYPE_CHECKING:
    from collections.abc import Iterator

    from trionat.relay.tunnel import Tunnel
    from trionat.transport.endpoint import Endpoint

GROUPS = 8
"""More than there ever are groups of steps: a choice is of a group, and what is left of it one of a step in there."""

Choices: TypeAlias = (
    "list[tuple[int, int]]"  # which of those that are possible, and how far Trio goes on behind it
)

T = TypeVar("T")


@attrs.frozen
class Pipe(Generic[T]):
    """Both ends of a memory channel."""

    end: trio.MemorySendChannel[T]
    head: trio.MemoryReceiveChannel[T]


@attrs.define(eq=False)
class WatchedEndpoint(MemoryEndpoint):
    """An end of the wire; the witness sees what its owner writes and reads."""

    witness: Witness = attrs.field(kw_only=True)

    def send(self, data: bytes | memoryview) -> int:
        count = MemoryEndpoint.send(self, data)
        self.witness.says(bytes(data[:count]))
        return count

    def recv_into(self, buffer: memoryview) -> int:
        count = MemoryEndpoint.recv_into(self, buffer)
        self.witness.hears(bytes(buffer[:count]))
        return count


def watched_pair(
    everyone: list[MemoryEndpoint], capacity: int, witness: Witness
) -> tuple[WatchedEndpoint, MemoryEndpoint]:
    one = WatchedEndpoint(capacity, everyone, witness=witness)
    two = MemoryEndpoint(capacity, everyone)
    join_ends(one, two)
    return one, two


@attrs.define(eq=False)
class Visit:
    """One visitor, and the connection to the local service that was made for it, if any."""

    number: int
    visitor: End
    stream: VisitorStream
    service: End | None = None
    refused: bool = False

    def check(self) -> None:
        """As `check_joined`; who is joined to nobody hears nothing, and sees no end without a reason."""
        if self.service is not None:
            check_joined(self.visitor, self.service)
        else:
            assert not self.visitor.got
            assert self.visitor.seen != "end" or self.refused


@attrs.define(eq=False)
class Machine:
    """The tunnel with both ends, and everything that can happen to it."""

    tidy: Tidy
    capacities: tuple[int, int]
    polite: bool
    visits: list[Visit] = attrs.field(factory=list)
    witnesses: dict[Side, Witness] = attrs.field(factory=lambda: {s: Witness(s) for s in Side})
    server: ServerTunnel = attrs.field(init=False)
    client: ClientTunnel = attrs.field(init=False)
    tunnels: dict[Side, Tunnel] = attrs.field(init=False)
    middle: dict[Side, MemoryEndpoint] = attrs.field(factory=dict)
    dialling: tuple[int, trio.Event] | None = None
    answer: Literal["accepts", "refuses"] = "accepts"

    _visitors: Pipe[Visit] = attrs.field(factory=lambda: Pipe(*trio.open_memory_channel[Visit](1)))
    _pairings: Pipe[VisitorStream] = attrs.field(
        factory=lambda: Pipe(*trio.open_memory_channel[VisitorStream](1))
    )

    def __attrs_post_init__(self) -> None:
        wires: dict[Side, WatchedEndpoint] = {}
        for side in Side:
            wires[side], self.middle[side] = watched_pair(
                self.tidy.endpoints, self.capacities[0], self.witnesses[side]
            )
        self.server = ServerTunnel(wires[Side.SERVER])
        self.client = ClientTunnel(wires[Side.CLIENT], self._connect, self._take_over)
        self.tunnels = {Side.SERVER: self.server, Side.CLIENT: self.client}

    # -- what the tunnel's owners do

    async def _connect(self, frame: Open) -> Endpoint:
        answered = trio.Event()
        self.dialling = frame.visitor, answered
        await answered.wait()
        self.dialling = None
        visit = self.visits[frame.visitor - 1]
        if self.answer == "refuses":
            visit.refused = True
            raise LocalServiceError("down")
        near, far = self.tidy.pair(self.capacities[1])
        visit.service = End(far)
        return near

    def _take_over(self, frame: Open, stream: VisitorStream) -> None:
        self._pairings.end.send_nowait(stream)

    async def _carry_at_server(self) -> None:
        async for visit in self._visitors.head:
            frame = Open(
                visitor=visit.number, service=0, host="v", port=1, visit_host="s", visit_port=2
            )
            await self.server.open(visit.stream, frame)

    async def _carry_at_client(self) -> None:
        async for stream in self._pairings.head:
            await self.client.carry(stream)

    # -- what can happen

    def open(self) -> None:
        near, far = self.tidy.pair(self.capacities[1])
        number = len(self.visits) + 1
        visit = Visit(number, End(far), VisitorStream(number, near))
        self.visits.append(visit)
        self._visitors.end.send_nowait(visit)

    def deliver(self, sender: Side, most: int) -> bool:
        """Let at most so many bytes of what `sender` has written through; tell whether there were any."""
        there = self.middle[Side.CLIENT if sender is Side.SERVER else Side.SERVER]
        room = there.peer.capacity - len(there.peer._incoming)
        count = min(most, room, len(self.middle[sender]._incoming))
        if not count:
            return False
        buffer = memoryview(bytearray(TLS_RECORD_BYTES))
        self.middle[sender].largest_read = count
        received = self.middle[sender].recv_into(buffer)
        assert there.send(buffer[:received]) == received
        return True

    def dial(self, answer: Literal["accepts", "refuses"]) -> None:
        assert self.dialling is not None
        self.answer = answer
        self.dialling[1].set()

    def possible(self) -> list[list[Step]]:
        """Everything that may come next, in groups that are equally likely; in the first is nothing at all."""
        groups: list[list[Step]] = [[("nothing", lambda: None)]]
        groups += [list(self._passages(side)) for side in Side if self.middle[side]._incoming]
        if self._visitors.head.statistics().tasks_waiting_receive:
            groups.append([("open", self.open)])
        if self.dialling is not None and not self.dialling[1].is_set():
            answers: list[Literal["accepts", "refuses"]] = ["accepts", "refuses"]
            groups.append([(answer, partial(self.dial, answer)) for answer in answers])
        groups += [list(deeds(name, end, polite=self.polite)) for name, end in self._ends()]
        groups.append([(f"sweep {side.value}", self.tunnels[side].sweep) for side in Side])
        return groups

    def _passages(self, sender: Side) -> Iterator[Step]:
        """How much of what is on the wire may get through."""
        for most in (10_000, 1, 20):
            yield f"deliver {most} from {sender.value}", partial(self.deliver, sender, most)

    def _ends(self) -> Iterator[tuple[str, End]]:
        for visit in self.visits[-2:]:
            if not visit.visitor.gone:
                yield f"visitor {visit.number}", visit.visitor
            if visit.service is not None and not visit.service.gone:
                yield f"service {visit.number}", visit.service

    # -- the run

    async def run(self, choices: Choices) -> None:
        async with trio.open_nursery() as nursery:
            for tunnel in self.tunnels.values():
                nursery.start_soon(tunnel.receive)
            nursery.start_soon(self._carry_at_server)
            nursery.start_soon(self._carry_at_client)
            try:
                await self._go(choices)
            except PeerTimeoutError:
                assert not all(
                    self.tunnels[side].idle and self.witnesses[side].quiet for side in Side
                )
                event("given up, for want of an answer")
            nursery.cancel_scope.cancel()

    async def _go(self, choices: Choices) -> None:
        await trio.testing.wait_all_tasks_blocked()
        for choice, ticks in choices:
            groups = self.possible()
            group = groups[choice % len(groups)]
            name, step = group[choice // GROUPS % len(group)]
            note(name)
            step()
            use_scratch()
            await run_on(ticks)
            self.check()
        await self.finish()

    def check(self) -> None:
        for visit in self.visits:
            visit.check()

    async def finish(self) -> None:
        """Everybody hears the rest, and ends: then all is idle, and whoever was not reset has heard everything."""
        for endpoint in self.tidy.endpoints:
            endpoint.capacity = endpoint.largest_read = 100_000
        await self._let_all_hear()
        for visit in self.visits[-1:]:
            if visit.service is not None and visit.stream.failure is None:
                check_ends(visit.visitor, visit.service)
        for _, end in self._ends():
            if not end.ended and end.seen != "reset":
                end.end()
        await self._let_all_hear()
        for side, tunnel in self.tunnels.items():
            assert tunnel.idle, side
            assert tunnel.stream is None
            assert self.witnesses[side].quiet
        for visit in self.visits:
            assert visit.stream.over
            assert visit.refused == (visit.service is None)
        event(f"{min(5, len(self.visits))} visitors")
        target(float(len(self.visits)))

    async def _let_all_hear(self) -> None:
        """Deliver and listen as long as there is anything; a reset that nobody has touched is seen by a sweep alone."""
        for _ in range(2):
            while await self._let_something_through():
                self.check()
            for tunnel in self.tunnels.values():
                tunnel.sweep()
        while await self._let_something_through():
            self.check()

    async def _let_something_through(self) -> bool:
        await trio.testing.wait_all_tasks_blocked()
        moved = [self.deliver(side, 10_000) for side in Side]
        if self.dialling is not None and not self.dialling[1].is_set():
            self.dial("accepts")
            moved.append(True)
        moved += [end.listen(10_000) for _, end in self._ends()]
        return any(moved)

    def close(self) -> None:
        """As the tunnel's owners do, when its tasks have ended."""
        for tunnel in self.tunnels.values():
            tunnel.wire.close()
            tunnel.abandon()
        for endpoint in self.tidy.endpoints:
            endpoint.close()


@settings(max_examples=100, deadline=None)
@given(
    choices=st.lists(
        st.tuples(st.integers(0, 8 * GROUPS - 1), st.integers(0, TICKS)), min_size=40, max_size=80
    ),
    wire=st.sampled_from([1, 10, 100, 100_000]),
    plain=st.sampled_from([1, 10, 100, 100_000]),
    polite=st.booleans(),
)
def test_both_sides_keep_the_law_and_lose_nothing(
    choices: Choices, wire: int, plain: int, polite: bool
) -> None:
    async def main() -> None:
        machine = Machine(Tidy(), (wire, plain), polite)
        try:
            await machine.run(choices)
        finally:
            machine.close()

    trio.run(main)
