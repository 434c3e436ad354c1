"""The client's pool of tunnels: how many, when, and what becomes of those that fail."""

from __future__ import annotations

import gc
import socket
import sys
import weakref
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import attrs
import pytest
import trio
import trio.testing

from tests.unit.memory import MemoryEndpoint, receive_all, receive_some
from tests.unit.memory_server import forwarder, open_memory_server
from trionat.client.native.tunnel_pool import TunnelPool
from trionat.errors import ConnectionLostError, IdentityError, PeerError, RefusedError
from trionat.protocol.frames import encode_frame
from trionat.protocol.messages import Refused, encode_message
from trionat.protocol.tunnel_frames import (
    DATA_ID,
    END_FRAME,
    PROBE_FRAME,
    Abort,
    AbortReason,
    End,
    Open,
    TunnelReader,
)
from trionat.transport.descriptors import left
from trionat.transport.endpoint import SocketEndpoint

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from trio.testing import MockClock

    from tests.unit.conftest import Tidy
    from tests.unit.memory_server import MemoryForwarder
    from trionat.transport.endpoint import Endpoint


def open_frame(visitor: int) -> bytes:
    return Open(visitor=visitor, service=0, host="v", port=1, visit_host="s", visit_port=2).encode()


@attrs.define(eq=False)
class Yard:
    """A pool, with the far ends of its wires in the order in which they were opened."""

    tidy: Tidy
    forwarder: MemoryForwarder
    limit: int
    least_idle: int
    slow: float = 0.0
    error: PeerError | None = None
    wires: list[MemoryEndpoint] = attrs.field(factory=list)
    tries: list[float] = attrs.field(factory=list)
    pool: TunnelPool = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.pool = TunnelPool(self._open_wire, self.forwarder, self.limit, self.least_idle)

    async def _open_wire(self) -> Endpoint:
        self.tries.append(trio.current_time())
        await trio.sleep(self.slow)
        if self.error is not None:
            raise self.error
        near, far = self.tidy.pair()
        self.wires.append(far)
        return near

    @property
    def open_wires(self) -> list[MemoryEndpoint]:
        return [wire for wire in self.wires if not wire.peer.closed]

    async def settle(self) -> None:
        await trio.testing.wait_all_tasks_blocked()


@asynccontextmanager
async def open_yard(
    tidy: Tidy, limit: int = 100, least_idle: int = 1, **options: object
) -> AsyncIterator[Yard]:
    yard: Yard | None = None
    try:
        async with trio.open_nursery() as nursery:
            yard = Yard(tidy, forwarder(tidy, nursery), limit, least_idle, **options)  # type: ignore[arg-type]
            nursery.start_soon(yard.pool.run)
            await yard.settle()
            yield yard
            nursery.cancel_scope.cancel()
    finally:
        for wire in yard.wires if yard is not None else ():
            assert wire.peer.closed
            wire.close()


async def test_idle_tunnels_are_there_before_anybody_asks(
    tidy: Tidy, autojump_clock: MockClock
) -> None:
    async with open_yard(tidy, least_idle=4) as yard:
        assert len(yard.wires) == 4
        for wire in yard.wires:
            wire.send(PROBE_FRAME)
        await trio.sleep(50)
        assert len(yard.wires) == 4


async def test_demand_opens_at_once_as_many_as_wait(tidy: Tidy, autojump_clock: MockClock) -> None:
    async with open_yard(tidy) as yard:
        yard.pool.demand(7)
        await yard.settle()
        assert len(yard.wires) == 8
        yard.pool.demand(7)  # told again before the first were used
        await yard.settle()
        assert len(yard.wires) == 8


async def test_idle_tunnels_that_the_server_does_not_use_do_not_count(
    tidy: Tidy, autojump_clock: MockClock
) -> None:
    """The server has given them up, and the end of the connections was lost on the way."""
    async with open_yard(tidy, least_idle=3) as yard:
        await trio.sleep(7)
        yard.pool.demand(2)
        await yard.settle()
        assert len(yard.wires) == 3 + 3 + 2


async def test_a_used_tunnel_is_replaced(tidy: Tidy, autojump_clock: MockClock) -> None:
    async with open_yard(tidy) as yard:
        for number in range(5):
            yard.wires[-1].send(open_frame(number))
            await yard.settle()
            assert yard.pool.busy == number + 1
            assert len(yard.wires) == number + 2


async def test_idle_share_of_many_busy_ones(tidy: Tidy, autojump_clock: MockClock) -> None:
    async with open_yard(tidy, limit=200) as yard:
        yard.pool.demand(40)
        await yard.settle()
        for number, wire in enumerate(yard.wires[:40]):
            wire.send(open_frame(number))
        await yard.settle()
        await trio.sleep(1.1)
        assert yard.pool.busy == 40
        assert len(yard.open_wires) == 50


async def test_limit(tidy: Tidy, autojump_clock: MockClock) -> None:
    async with open_yard(tidy, limit=5) as yard:
        yard.pool.demand(100)
        await trio.sleep(3)
        assert len(yard.tries) == 5


async def test_handshakes_at_once(tidy: Tidy, autojump_clock: MockClock) -> None:
    async with open_yard(tidy, limit=500, slow=1) as yard:
        yard.pool.demand(300)
        await trio.sleep(0.5)
        assert len(yard.tries) == 64
        for _ in range(5):
            yard.pool.demand(300)
            await trio.sleep(1)
        assert len(yard.wires) == 301


async def test_demand_that_is_not_told_again_is_forgotten(
    tidy: Tidy, autojump_clock: MockClock
) -> None:
    async with open_yard(tidy, limit=5) as yard:
        yard.pool.demand(2)
        await trio.sleep(5)
        for wire in yard.open_wires[:2]:
            wire.close()
        await trio.sleep(5)
        assert len(yard.open_wires) == 1


async def test_failed_dials_are_not_repeated_at_once(tidy: Tidy, autojump_clock: MockClock) -> None:
    async with open_yard(tidy, error=ConnectionLostError("cannot reach it")) as yard:
        await trio.sleep(60)
        assert 12 <= len(yard.tries) <= 25
        assert yard.tries[1] - yard.tries[0] <= 1.0
        yard.error = None
        await trio.sleep(6)
        assert len(yard.wires) == 1


@pytest.mark.parametrize("kind", [ConnectionLostError, IdentityError, RefusedError])
async def test_an_outage_is_told_once_and_its_end(
    tidy: Tidy, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture, kind: type[PeerError]
) -> None:
    caplog.set_level("INFO")
    error = RefusedError("full", "why") if kind is RefusedError else kind("why")
    async with open_yard(tidy, least_idle=4, error=error) as yard:
        await trio.sleep(300)
        yard.error = ConnectionLostError("something else")
        await trio.sleep(300)
        yard.error = None
        await trio.sleep(10)
        lines = [(record.levelname, record.getMessage()) for record in caplog.records]
        failed = len(yard.tries) - len(yard.wires)
    told = [line for line in lines if line[0] == "WARNING"]
    assert told[0] == ("WARNING", "no tunnel can be opened: visitors wait in vain reason=why")
    assert len({message for _, message in told}) == 2
    assert lines == [*told, ("INFO", f"tunnels open again failed={failed}")]
    assert len(told) == 2


async def test_what_does_not_last_is_no_news(
    tidy: Tidy, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """As at an upgrade of the server: the next round of dials gets through."""
    caplog.set_level("INFO")
    async with open_yard(tidy, least_idle=4, error=ConnectionLostError("why")) as yard:
        await trio.sleep(0.2)
        assert yard.tries
        assert not yard.wires
        yard.error = None
        await trio.sleep(10)
        assert yard.wires
        assert caplog.messages == []


@contextmanager
def descriptors_left(number: int) -> Iterator[None]:
    """Let this process have so many more, and a hole among those of low numbers that is not one of them."""
    resource = pytest.importorskip("resource")
    low, high = socket.socket(), socket.socket()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    in_use = len(list(Path("/dev/fd").iterdir())) - 1
    # What is open beyond the limit stays open, so numbers up to the highest one are needed.
    limit = max(in_use - 1 + number, high.fileno() + 1)
    filling = [socket.socket() for _ in range(limit - (in_use - 1) - number)]
    low.close()
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for sock in (high, *filling):
            sock.close()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="numbers as on Linux")
async def test_a_hole_among_descriptors_is_no_room() -> None:
    with descriptors_left(30):
        assert left() == 30


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="numbers as on Linux")
async def test_a_shortage_leaves_as_many_tunnels_as_fit(
    tidy: Tidy, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """Ten idle tunnels and ten descriptors left: eight fit, with eight connections to a service and four to spare."""
    caplog.set_level("INFO")
    fars: list[socket.socket] = []

    async def open_wire() -> Endpoint:
        await trio.lowlevel.checkpoint()
        near, far = socket.socketpair()
        fars.append(far)
        return SocketEndpoint(near)

    async with trio.open_nursery() as nursery:
        pool = TunnelPool(open_wire, forwarder(tidy, nursery), 100, 10)
        nursery.start_soon(pool.run)
        await trio.sleep(2)
        spare = [socket.socket() for _ in fars]  # the far ends do not count
        with descriptors_left(10):
            for _ in range(3):  # visitors that come in one tick
                pool._note_shortage()
                assert (len(pool._idle), pool.busy) == (8, 0)
            await trio.testing.wait_all_tasks_blocked()
            assert (len(pool._tunnels), pool.busy) == (8, 0)
        for _ in range(20):
            await trio.sleep(1.5)
            assert pool._limit_when_short is None
            with descriptors_left(10):
                for far in fars[-10:]:  # their tunnels are about to read
                    with suppress(OSError):
                        far.send(PROBE_FRAME)
                await trio.lowlevel.checkpoint()
                pool._note_shortage()
        nursery.cancel_scope.cancel()
    for sock in (*spare, *fars):
        sock.close()
    messages = [message.split(":")[0] for message in caplog.messages]
    assert "tunnel lost" not in caplog.text
    assert 2 <= messages.count("descriptors are short") <= 4
    assert 2 <= messages.count("there are enough descriptors again") <= 4


async def test_dials_of_which_every_second_fails_do_not_slow_the_pool(
    tidy: Tidy, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    async with open_yard(tidy) as yard:
        for number in range(60):
            yard.error = None if number % 2 else ConnectionLostError("now and then")
            yard.wires[-1].send(open_frame(number))
            await yard.settle()
            yard.error = None
            await trio.sleep(3)
            assert len(yard.open_wires) - yard.pool.busy >= 1
    assert caplog.text.count("now and then") <= 4
    assert caplog.text.count("open again") <= 4


@pytest.mark.parametrize("how", ["refused", "closed", "reset"])
async def test_tunnels_that_end_at_once_are_not_replaced_at_once(
    tidy: Tidy, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture, how: str
) -> None:
    caplog.set_level("INFO")
    async with open_yard(tidy) as yard:
        for _ in range(600):
            for wire in yard.open_wires:
                match how:
                    case "refused":
                        wire.send(encode_message(Refused(code="unknown-session", text="none")))
                    case "closed":
                        wire.close()
                    case _:
                        wire.reset()
            await trio.sleep(0.1)
        assert 12 <= len(yard.wires) <= 25
    assert [record.levelname for record in caplog.records] == ["INFO", "WARNING"]


async def test_a_visitor_is_served_and_counted(tidy: Tidy, autojump_clock: MockClock) -> None:
    async with open_yard(tidy) as yard:
        (wire, *_) = yard.wires
        for number in range(3):
            wire.send(open_frame(number) + encode_frame(DATA_ID, b"hello") + END_FRAME)
            await yard.settle()
            assert yard.pool.served == number + 1
            assert await receive_some(wire) == encode_frame(DATA_ID, b"hello") + END_FRAME
        assert yard.pool.busy == 0
        assert len(yard.wires) == 2  # one more was opened while the first was in use


async def test_a_visitor_is_counted_whose_tunnel_ends_with_its_last_words(
    tidy: Tidy, autojump_clock: MockClock
) -> None:
    """The task that serves it has not run since its stream was over."""

    async def answer(service: MemoryEndpoint) -> None:
        await trio.lowlevel.checkpoint()
        service.send(b"answer")
        service.send_eof()

    async with open_yard(tidy) as yard:
        yard.forwarder.serve = answer
        (wire, *_) = yard.wires
        wire.send(open_frame(1))
        await yard.settle()
        assert await receive_some(wire) == encode_frame(DATA_ID, b"answer") + END_FRAME
        wire.send(END_FRAME)
        wire.close()
        await yard.settle()
        assert yard.pool.served == 1


async def test_refused_local_service(tidy: Tidy, autojump_clock: MockClock) -> None:
    async with open_yard(tidy) as yard:
        yard.forwarder.refusals.append("cannot be reached")
        (wire, *_) = yard.wires
        wire.send(open_frame(1))
        await yard.settle()
        assert (
            await receive_some(wire) == Abort(1, AbortReason.REFUSED, "cannot be reached").encode()
        )
        wire.send(Abort(1, AbortReason.REFUSED).encode())
        await yard.settle()
        assert yard.pool.busy == 0


async def test_not_busy_after_a_refused_visitor(tidy: Tidy, autojump_clock: MockClock) -> None:
    async with open_yard(tidy) as yard:
        yard.forwarder.refusals.append("cannot be reached")
        (wire, *_) = yard.wires
        wire.send(open_frame(1))
        await yard.settle()
        assert yard.pool.busy == 1
        with trio.fail_after(5):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(yard.pool.wait_not_busy)
                await trio.sleep(0.1)
                wire.send(END_FRAME)


async def test_not_busy_when_the_last_visitor_has_gone(
    tidy: Tidy, autojump_clock: MockClock
) -> None:
    async with open_yard(tidy) as yard:
        await yard.pool.wait_not_busy()
        (wire, *_) = yard.wires
        wire.send(open_frame(1))
        await yard.settle()
        started = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(yard.pool.wait_not_busy)
            await trio.sleep(3.3)
            wire.send(END_FRAME)
        assert trio.current_time() - started == pytest.approx(3.3)


@pytest.mark.parametrize("how", ["close", "reset", "garbage"])
async def test_a_lost_tunnel_resets_its_local_connection_and_is_replaced(
    tidy: Tidy, autojump_clock: MockClock, how: str
) -> None:
    ended: list[str] = []

    async def service(endpoint: MemoryEndpoint) -> None:
        try:
            await receive_all(endpoint)
            ended.append("end")
        except ConnectionResetError:
            ended.append("reset")

    async with trio.open_nursery() as nursery:
        async with open_yard(tidy) as yard:
            await trio.sleep(1)
            yard.forwarder = forwarder(tidy, nursery, service)
            yard.pool.forwarder = yard.forwarder
            (wire, *_) = yard.wires
            wire.send(open_frame(1) + encode_frame(DATA_ID, b"x"))
            await yard.settle()
            match how:
                case "close":
                    wire.close()
                case "reset":
                    wire.reset()
                case _:
                    wire.send(b"\xff" * 8)
            await yard.settle()
            assert ended == ["reset"]
            assert len(yard.open_wires) == 1
            assert yard.pool.busy == 0


async def test_cancelled_with_everything_going_on(tidy: Tidy, autojump_clock: MockClock) -> None:
    async with open_yard(tidy, least_idle=3) as yard:
        for number, wire in enumerate(list(yard.wires)):
            wire.send(open_frame(number) + encode_frame(DATA_ID, b"x" * number))
        yard.slow = 100
        yard.pool.demand(10)
        await yard.settle()


async def test_two_visitors_in_one_breath(tidy: Tidy, autojump_clock: MockClock) -> None:
    """The second OPEN comes in the same read as the last word about the first."""
    async with open_yard(tidy) as yard:
        (wire, *_) = yard.wires
        wire.send(open_frame(1) + END_FRAME)
        await yard.settle()
        assert await receive_some(wire) == END_FRAME
        wire.send(open_frame(2))
        await yard.settle()
        wire.send(END_FRAME)
        await yard.settle()
        assert await receive_some(wire) == END_FRAME
        wire.send(open_frame(3) + Abort(3, AbortReason.RESET).encode())
        await yard.settle()
        reader = TunnelReader()
        reader.feed(memoryview(await receive_some(wire)))
        last = reader.next()
        assert isinstance(last, Abort | End)
        if isinstance(last, Abort):
            assert last.visitor == 3
        await yard.settle()
        assert yard.pool.busy == 0
        assert yard.pool.served == 3


async def test_a_tunnel_that_has_ended_is_free_at_once(
    tidy: Tidy, autojump_clock: MockClock
) -> None:
    """Many of them end together, and the garbage collector comes rarely. What Trio makes of an error is not ours."""
    async with open_memory_server(tidy) as server:
        client = await server.welcome()
        pool = client.pool(forwarder(tidy, server.nursery), least_idle=3)
        await trio.sleep(2)
        pooled = [weakref.ref(each) for each in pool._tunnels]
        tunnels = [weakref.ref(each.tunnel) for each in pool._tunnels]
        assert len(tunnels) >= 3
        gc.collect()
        gc.disable()
        try:
            server.sessions[0].lease.queue.retire(len(tunnels))
            await trio.sleep(0.1)
            for parts in (pooled, tunnels):  # the last one's Cancelled is still at hand
                assert sum(each() is not None for each in parts) <= 1
        finally:
            gc.enable()
