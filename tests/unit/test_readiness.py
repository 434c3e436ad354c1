"""Steps and their pump: the same over sockets with epoll, over sockets with Trio's own waits, and over memory."""

from __future__ import annotations

import socket
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from tests.unit.test_endpoint import fill
from trionat.transport import readiness
from trionat.transport.endpoint import SocketEndpoint
from trionat.transport.readiness import TURN, Gate, Readiness, pump

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from tests.unit.conftest import Tidy
    from trionat.transport.endpoint import Endpoint

    Pair = tuple[Endpoint, Endpoint]


@pytest.fixture(params=["epoll", "Trio's waits", "memory"])
async def pair(
    request: pytest.FixtureRequest, tidy: Tidy, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Pair]:
    if request.param == "memory":
        ends = tidy.pair()
        yield ends
        for end in ends:
            end.close()
        return
    if request.param == "epoll" and sys.platform != "linux":
        pytest.skip("epoll is Linux's")
    if request.param != "epoll":
        monkeypatch.setattr(readiness, "HAS_EPOLL", False)
    near, far = map(SocketEndpoint, socket.socketpair())
    yield near, far
    near.close()
    far.close()


class Reader:
    """A step that reads, and stops at the end or when it has so many bytes."""

    def __init__(self, source: Endpoint, enough: int = 1 << 30) -> None:
        self.source = source
        self.enough = enough
        self.got = bytearray()
        self.calls = 0
        self.room = memoryview(bytearray(20_000))

    def __call__(self) -> Readiness | None:
        self.calls += 1
        try:
            count = self.source.recv_into(self.room)
        except BlockingIOError:
            return self.source.readable
        self.got += self.room[:count]
        if not count or len(self.got) >= self.enough:
            return None
        return self.source.readable  # a short read, and no try in vain


async def test_a_step_is_called_when_something_comes(pair: Pair) -> None:
    near, far = pair
    reader = Reader(near)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pump, reader)
        for piece in (b"one", b"two", b"three"):
            await trio.testing.wait_all_tasks_blocked()
            far.send(piece)
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert reader.got == b"onetwothree"
        far.send_eof()


@pytest.mark.parametrize("first", ["a try in vain", "nothing"])
async def test_bytes_and_the_end_that_come_at_once(pair: Pair, first: str) -> None:
    """The read of the bytes is short, and the kernel does not tell of the end a second time."""
    near, far = pair
    reader = Reader(near)
    if first != "nothing":
        with trio.move_on_after(0.01):
            await pump(reader)
    far.send(b"last words")
    far.send_eof()
    with trio.fail_after(5):
        await pump(reader)
    assert reader.got == b"last words"


async def test_what_came_while_nobody_waited(pair: Pair) -> None:
    """A task takes something else meanwhile; the next wait is over at once, although nobody has tried again."""
    near, far = pair
    reader = Reader(near, enough=1)
    far.send(b"x")
    await pump(reader)
    far.send(b"y")
    await trio.sleep(0.02)  # it is told now, to nobody
    waiting = Reader(near, enough=1)
    tried = False

    def step() -> Readiness | None:
        nonlocal tried
        if not tried:  # as behind a short read
            tried = True
            return near.readable
        return waiting()

    with trio.fail_after(5):
        await pump(step)
    assert waiting.got == b"y"


async def test_waiting_alone_is_over_as_long_as_something_is_there(pair: Pair) -> None:
    near, far = pair
    far.send(b"x")
    with trio.fail_after(5):
        for _ in range(3):
            await near.readable.wait()
            await near.writable.wait()


async def test_what_a_step_raises_comes_out_of_the_pump(pair: Pair) -> None:
    near, far = pair

    def step() -> Readiness | None:
        try:
            near.recv_into(memoryview(bytearray(20_000)))
        except BlockingIOError:
            return near.readable
        raise ValueError("as asked")

    async with trio.open_nursery() as nursery:

        async def send() -> None:
            await trio.testing.wait_all_tasks_blocked()
            far.send(b"x")

        nursery.start_soon(send)
        with pytest.raises(ValueError, match="as asked"):
            await pump(step)


async def test_a_cancelled_pump_leaves_nothing(pair: Pair) -> None:
    near, far = pair
    reader = Reader(near)
    with trio.move_on_after(0.01):
        await pump(reader)
    calls = reader.calls
    far.send(b"x")
    await trio.sleep(0.02)
    assert reader.calls == calls
    second = Reader(near, enough=1)
    with trio.fail_after(5):
        await pump(second)
    assert second.got == b"x"


@pytest.mark.parametrize("where", ["readable", "writable"])
async def test_closing_wakes_the_pump(pair: Pair, where: str) -> None:
    near, _ = pair
    calls = 0
    full = bytes(100_000)

    def step() -> Readiness | None:
        nonlocal calls
        calls += 1
        try:
            if where == "readable":
                near.recv_into(memoryview(bytearray(20_000)))
            else:
                while True:
                    near.send(full)
        except BlockingIOError:
            pass
        return getattr(near, where)  # type: ignore[no-any-return]

    async with trio.open_nursery() as nursery:

        async def close() -> None:
            await trio.testing.wait_all_tasks_blocked(0.01)
            near.close()

        nursery.start_soon(close)
        with pytest.raises(trio.ClosedResourceError):
            await pump(step)
    with pytest.raises(trio.ClosedResourceError):
        await near.readable.wait()


async def test_a_step_that_closes_what_it_waits_for(pair: Pair) -> None:
    near, far = pair

    def step() -> Readiness | None:
        try:
            near.recv_into(memoryview(bytearray(20_000)))
        except BlockingIOError:
            return near.readable
        near.close()
        return None

    async with trio.open_nursery() as nursery:

        async def send() -> None:
            await trio.testing.wait_all_tasks_blocked()
            far.send(b"x")

        nursery.start_soon(send)
        with trio.fail_after(5):
            await pump(step)


@pytest.mark.parametrize("where", ["readable", "writable"])
async def test_who_is_nudged_goes_on_and_another_may_wait(pair: Pair, where: str) -> None:
    near, _ = pair
    fill(near)
    readiness: Readiness = getattr(near, where)
    calls, resumed = 0, trio.Event()

    def step() -> Readiness | None:
        nonlocal calls
        calls += 1
        return readiness if calls == 1 else None

    async def wait() -> None:
        await pump(step)
        resumed.set()

    readiness.nudge()  # nobody is there
    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert calls == 1
        readiness.nudge()
        nursery.start_soon(readiness.wait)  # at once, before the first has gone on
        await resumed.wait()
        assert calls == 2
        await trio.testing.wait_all_tasks_blocked(0.01)
        with pytest.raises(trio.BusyResourceError):
            await readiness.wait()
        nursery.cancel_scope.cancel()


async def test_only_one_waits(pair: Pair) -> None:
    near, _ = pair
    async with trio.open_nursery() as nursery:
        nursery.start_soon(near.readable.wait)
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(trio.BusyResourceError):
            await near.readable.wait()
        nursery.cancel_scope.cancel()


async def test_others_have_their_turn(pair: Pair) -> None:
    """A step that could go on for ever, beside another stream and a task that does something else."""
    near, far = pair
    over = False
    turns = 0

    def endless() -> Readiness | None:
        nonlocal turns
        turns += 1
        return None if over else TURN

    async with trio.open_nursery() as nursery:
        nursery.start_soon(pump, endless)
        reader = Reader(near, enough=1)
        far.send(b"x")
        with trio.fail_after(5):
            await pump(reader)
            for _ in range(10):
                await trio.lowlevel.checkpoint()
        assert turns > 5
        over = True


@pytest.mark.skipif(
    sys.platform != "linux", reason="tcp(7): SO_OOBINLINE and the mark as Linux has them"
)
async def test_bytes_behind_urgent_data() -> None:
    """A read stops in front of them (a telnet's SYNCH), so it is short although more is there."""
    with tcp_pair() as (near, far):
        reader = Reader(near, enough=6)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pump, reader)
            await trio.testing.wait_all_tasks_blocked()
            far.sock.send(b"one")
            far.sock.send(b"!", socket.MSG_OOB)
            far.sock.send(b"two")
            with trio.fail_after(5):
                while len(reader.got) < 6:  # noqa: ASYNC110 - a step tells nobody
                    await trio.sleep(0.01)
        assert reader.got == b"onetwo"


@contextmanager
def tcp_pair() -> Iterator[tuple[SocketEndpoint, SocketEndpoint]]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        far = SocketEndpoint(socket.create_connection(listening.getsockname()))
        near = SocketEndpoint(listening.accept()[0])
    yield near, far
    near.close()
    far.close()


# -- gates ------------------------------------------------------------------------------------------------------------


@pytest.fixture(params=[True, False])
def has_epoll(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readiness, "HAS_EPOLL", request.param and sys.platform == "linux")


@pytest.mark.usefixtures("has_epoll")
async def test_a_gate_lets_go_on_who_waits() -> None:
    """A step that waits for it is called at `open`, whether that comes from a task or from another step."""
    gate = Gate()
    calls: list[str] = []
    room = False

    def step() -> Readiness | None:
        calls.append("called")
        return None if room else gate

    gate.open()  # nobody waits: nothing is remembered
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pump, step)
        await trio.testing.wait_all_tasks_blocked()
        assert len(calls) == 1
        gate.open()
        await trio.testing.wait_all_tasks_blocked()
        assert len(calls) == 2
        room = True
        gate.open()
    assert len(calls) == 3


@pytest.mark.usefixtures("has_epoll")
async def test_a_gate_that_a_step_opens() -> None:
    one, two = socket.socketpair()
    source = SocketEndpoint(two)
    gate = Gate()
    taken = bytearray()
    room = memoryview(bytearray(65536))

    def take() -> Readiness | None:
        try:
            count = source.recv_into(room)
        except BlockingIOError:
            return source.readable
        taken.extend(room[:count])
        gate.open()
        return source.readable if count else None

    def wait() -> Readiness | None:
        return None if len(taken) == 3 else gate

    async with trio.open_nursery() as nursery:
        nursery.start_soon(pump, wait)
        nursery.start_soon(pump, take)
        for byte in b"abc":
            one.send(bytes([byte]))
            await trio.sleep(0.01)
        one.close()
    source.close()
    assert taken == b"abc"


async def test_two_at_a_gate_cost_the_second_one_only() -> None:
    """A step of the poller's that finds somebody there: the error is its task's, and the other streams go on."""
    gate = Gate()
    one, two = socket.socketpair()
    source = SocketEndpoint(two)
    arrived = False

    def step() -> Readiness | None:
        return gate if arrived else source.readable

    async def second() -> None:
        with pytest.raises(trio.BusyResourceError):
            await pump(step)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(gate.wait)
        nursery.start_soon(second)
        await trio.testing.wait_all_tasks_blocked()
        arrived = True
        one.send(b"x")
        await trio.sleep(0.05)
        gate.open()
    source.close()
    one.close()


@pytest.mark.usefixtures("has_epoll")
async def test_a_gate_has_one_who_waits() -> None:
    gate = Gate()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(gate.wait)
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(trio.BusyResourceError):
            await gate.wait()
        nursery.cancel_scope.cancel()
    with trio.move_on_after(0.01) as scope:
        await gate.wait()
    assert scope.cancelled_caught
