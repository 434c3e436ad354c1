"""Raw tunnels: both directions to their own end, resets passed on, bytes counted; in memory and over real sockets."""

from __future__ import annotations

import hashlib
import random
import socket
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING

import attrs
import pytest
import trio
import trio.testing

from tests.unit.memory import CAPACITY, MemoryEndpoint, receive_all, receive_exactly, receive_some
from tests.unit.test_endpoint import tcp_pair
from trionat.protocol.conversation import Side
from trionat.protocol.tunnel_frames import AbortReason
from trionat.relay.liveness import SWEEP_INTERVAL
from trionat.relay.raw_tunnel import RawTunnel
from trionat.relay.stream import VisitorStream
from trionat.transport.endpoint import SocketEndpoint, send_all
from trionat.transport.scratch import SCRATCH_BYTES

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.unit.conftest import Tidy
    from trionat.transport.endpoint import Endpoint


@attrs.define(eq=False)
class Joint:
    """A raw tunnel that runs, with the far ends of what it joins: the visitor, and the peer at the other end of the wire."""

    tunnel: RawTunnel
    visitor: Endpoint
    peer: Endpoint
    ended: trio.Event = attrs.field(factory=trio.Event)

    @property
    def stream(self) -> VisitorStream:
        return self.tunnel.stream

    async def run(self) -> None:
        try:
            await self.tunnel.run()
        finally:
            self.ended.set()

    async def sweep(self) -> None:
        while True:
            await trio.sleep(SWEEP_INTERVAL)
            self.tunnel.sweep()


def pair_of(kind: str, tidy: Tidy, capacity: int = CAPACITY) -> tuple[Endpoint, Endpoint]:
    if kind == "memory":
        return tidy.pair(capacity)
    one, two = tcp_pair()
    return SocketEndpoint(one), SocketEndpoint(two)


@asynccontextmanager
async def open_joint(
    kind: str,
    tidy: Tidy,
    *,
    early: bytes = b"",
    capacity: int = CAPACITY,
    side: Side = Side.SERVER,
    sweep: bool = False,
) -> AsyncIterator[Joint]:
    visitor, plain = pair_of(kind, tidy, capacity)
    peer, wire = pair_of(kind, tidy, capacity)
    joint = Joint(RawTunnel(wire, VisitorStream(1, plain), side, early), visitor, peer)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(joint.run)
            if sweep:
                nursery.start_soon(joint.sweep)
            yield joint
            nursery.cancel_scope.cancel()
    finally:
        visitor.close()
        peer.close()


@pytest.fixture(params=["memory", "tcp"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


async def expect_reset(endpoint: Endpoint) -> None:
    with pytest.raises(ConnectionError):
        await receive_some(endpoint)


async def test_bytes_both_ways_and_both_ends(kind: str, tidy: Tidy) -> None:
    async with open_joint(kind, tidy) as joint:
        joint.visitor.send(b"question")
        assert await receive_exactly(joint.peer, 8) == b"question"
        joint.peer.send(b"an answer")
        assert await receive_exactly(joint.visitor, 9) == b"an answer"
        assert (joint.stream.taken, joint.stream.given) == (8, 9)
        joint.visitor.send_eof()
        assert await receive_all(joint.peer) == b""
        assert not joint.ended.is_set()
        joint.peer.send_eof()
        assert await receive_all(joint.visitor) == b""
        await joint.ended.wait()
        assert joint.stream.over
        assert joint.stream.end == "ended by both sides"


@pytest.mark.parametrize("first", ["visitor", "peer"])
async def test_the_end_of_one_direction_leaves_the_other(kind: str, tidy: Tidy, first: str) -> None:
    async with open_joint(kind, tidy) as joint:
        ends = [joint.visitor, joint.peer]
        one, two = ends if first == "visitor" else reversed(ends)
        one.send(b"all that I have to say")
        one.send_eof()
        assert await receive_all(two) == b"all that I have to say"
        for _ in range(3):
            two.send(b"more")
            assert await receive_exactly(one, 4) == b"more"
        assert not joint.ended.is_set()
        two.send_eof()
        assert await receive_all(one) == b""
        await joint.ended.wait()
        assert joint.stream.over


@pytest.mark.parametrize("first", ["visitor", "peer"])
async def test_half_open_for_as_long_as_it_takes(
    tidy: Tidy, autojump_clock: trio.testing.MockClock, first: str
) -> None:
    async with open_joint("memory", tidy, sweep=True) as joint:
        ends = [joint.visitor, joint.peer]
        one, two = ends if first == "visitor" else reversed(ends)
        one.send_eof()
        assert await receive_all(two) == b""
        await trio.sleep(3600)
        two.send(b"at last")
        assert await receive_exactly(one, 7) == b"at last"
        two.send_eof()
        await joint.ended.wait()
        assert joint.stream.over


async def test_early_bytes_come_first(kind: str, tidy: Tidy) -> None:
    async with open_joint(kind, tidy, early=b"one, ") as joint:
        joint.peer.send(b"two")
        await trio.sleep(0.01)
        assert await receive_exactly(joint.visitor, 8) == b"one, two"
        assert (joint.stream.taken, joint.stream.given) == (0, 8)


# -- resets -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("side", "who", "words"),
    [
        (Side.SERVER, "visitor", "the visitor reset its connection"),
        (Side.CLIENT, "visitor", "the local service reset its connection"),
        (Side.SERVER, "peer", "the tunnel was lost"),
    ],
)
async def test_a_reset_becomes_a_reset(
    kind: str, tidy: Tidy, side: Side, who: str, words: str
) -> None:
    async with open_joint(kind, tidy, side=side) as joint:
        joint.visitor.send(b"x")
        assert await receive_exactly(joint.peer, 1) == b"x"
        ends = [joint.visitor, joint.peer]
        one, two = ends if who == "visitor" else reversed(ends)
        one.reset()
        await expect_reset(two)
        await joint.ended.wait()
        assert not joint.stream.over
        assert joint.stream.end == words


@pytest.mark.parametrize("who", ["visitor", "peer"])
async def test_a_reset_after_ones_own_end_is_swept(kind: str, tidy: Tidy, who: str) -> None:
    """Nobody reads from an end that has ended, so nobody would notice."""
    async with open_joint(kind, tidy) as joint:
        ends = [joint.visitor, joint.peer]
        one, two = ends if who == "visitor" else reversed(ends)
        one.send_eof()
        assert await receive_all(two) == b""
        one.reset()
        await trio.sleep(0.05)
        assert not joint.ended.is_set()
        joint.tunnel.sweep()
        await joint.ended.wait()
        with pytest.raises(ConnectionError):
            for _ in range(3):
                two.send(b"x")
                await trio.sleep(0.01)
        joint.tunnel.sweep()  # one that has ended is left alone
        assert "reset" in joint.stream.end or "lost" in joint.stream.end


@pytest.mark.parametrize("who", ["visitor", "peer"])
async def test_a_reset_while_the_other_end_does_not_read(kind: str, tidy: Tidy, who: str) -> None:
    async with open_joint(kind, tidy) as joint:
        ends = [joint.visitor, joint.peer]
        one, two = ends if who == "visitor" else reversed(ends)
        await fill(one)
        one.reset()
        await trio.sleep(0.05)
        joint.tunnel.sweep()
        await joint.ended.wait()
        assert joint.stream.failure is not None
        with pytest.raises(ConnectionError):  # behind whatever had arrived
            while await receive_some(two):
                pass


@pytest.mark.parametrize("stuck", [False, True])
async def test_reset_by_its_own_side(kind: str, tidy: Tidy, stuck: bool) -> None:
    """As a server does that sends the visitor away: while its bytes are waited for, or cannot be had."""
    async with open_joint(kind, tidy) as joint:
        if stuck:
            await fill(joint.peer)
        joint.stream.fail(AbortReason.OTHER, "sent away")
        joint.stream.plain.reset()
        await joint.ended.wait()
        assert joint.stream.end == "sent away"
        for end in (joint.visitor, joint.peer):
            with pytest.raises(ConnectionError):
                while await receive_some(end):
                    pass


async def fill(endpoint: Endpoint) -> int:
    """Send until nothing moves any more."""
    sent = 0
    while True:
        with trio.move_on_after(0.1) as scope:
            await endpoint.writable.wait()
        if scope.cancelled_caught:
            return sent
        with suppress(BlockingIOError):
            sent += endpoint.send(bytes(10_000))


@pytest.mark.parametrize("who", ["visitor", "peer"])
async def test_a_closed_end_that_gets_more_is_a_reset(kind: str, tidy: Tidy, who: str) -> None:
    """Closing is half-closing at first; what comes back then is answered with a reset."""
    async with open_joint(kind, tidy) as joint:
        ends = [joint.visitor, joint.peer]
        one, two = ends if who == "visitor" else reversed(ends)
        one.close()
        assert await receive_all(two) == b""
        with pytest.raises(ConnectionError):
            for _ in range(10):
                two.send(b"nobody reads this")
                await trio.sleep(0.01)
                joint.tunnel.sweep()
        await joint.ended.wait()
        assert not joint.stream.over


@pytest.mark.parametrize("ticks", range(0, 24, 2))
async def test_cancelled_at_any_point(
    kind: str, tidy: Tidy, autojump_clock: trio.testing.MockClock, ticks: int
) -> None:
    async with open_joint(kind, tidy) as joint:
        joint.visitor.send(b"x" * 1000)
        joint.peer.send(b"y" * 1000)
        joint.visitor.send_eof()
        for _ in range(ticks):
            await trio.lowlevel.checkpoint()
    assert joint.ended.is_set()
    assert not joint.stream.over


async def test_cancelled_resets_both(kind: str, tidy: Tidy) -> None:
    async with open_joint(kind, tidy) as joint:
        joint.visitor.send(b"x")
        assert await receive_exactly(joint.peer, 1) == b"x"
        async with trio.open_nursery() as nursery:
            nursery.start_soon(expect_reset, joint.visitor)
            nursery.start_soon(expect_reset, joint.peer)
            joint.tunnel._scope.cancel()


# -- bulk, backpressure, counts ---------------------------------------------------------------------------------------


async def test_bulk_both_ways(kind: str, tidy: Tidy) -> None:
    size = 20 * 1024 * 1024
    data = random.Random(5).randbytes(size)
    expected = hashlib.sha256(data).digest()

    async def send(endpoint: Endpoint) -> None:
        await send_all(endpoint, data)
        endpoint.send_eof()

    async def receive(endpoint: Endpoint) -> None:
        digest = hashlib.sha256()
        while piece := await receive_some(endpoint):
            digest.update(piece)
        assert digest.digest() == expected

    async with open_joint(kind, tidy, capacity=SCRATCH_BYTES) as joint:
        async with trio.open_nursery() as nursery:
            for end in (joint.visitor, joint.peer):
                nursery.start_soon(send, end)
                nursery.start_soon(receive, end)
        await joint.ended.wait()
        assert joint.stream.over
        assert (joint.stream.taken, joint.stream.given) == (size, size)


async def test_what_waits_for_room_is_not_written_over(tidy: Tidy) -> None:
    """Two tunnels share the buffers that they read into."""
    async with (
        open_joint("memory", tidy, capacity=1000) as slow,
        open_joint("memory", tidy) as quick,
    ):
        for text in (b"fills the other end".ljust(1000), b"has to wait for room".ljust(1000)):
            slow.visitor.send(text)
            slow.peer.send(text)
            await trio.testing.wait_all_tasks_blocked()
        for end, other in ((quick.visitor, quick.peer), (quick.peer, quick.visitor)):
            end.send(b"!" * 2000)
            assert await receive_exactly(other, 2000) == b"!" * 2000
        for end in (slow.visitor, slow.peer):
            assert (await receive_some(end)).rstrip() == b"fills the other end"
            assert (await receive_some(end)).rstrip() == b"has to wait for room"


async def test_a_slow_reader_stops_the_sender(tidy: Tidy) -> None:
    async with open_joint("memory", tidy, capacity=1000) as joint:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send_all, joint.visitor, bytes(100_000))
            await trio.testing.wait_all_tasks_blocked()
            assert joint.stream.taken <= 2000
            joint.peer.send(b"the other direction goes on")
            assert await receive_some(joint.visitor)
            nursery.cancel_scope.cancel()
    for end in tidy.endpoints:
        assert end.most_held <= 1000


async def test_counts_are_right_while_it_waits(tidy: Tidy) -> None:
    async with open_joint("memory", tidy, capacity=100) as joint:
        joint.peer.send(b"x" * 100)
        await trio.testing.wait_all_tasks_blocked()
        joint.peer.send(b"y" * 100)
        await trio.testing.wait_all_tasks_blocked()
        assert joint.stream.given == 100  # the other 100 are read, and not delivered
        await receive_some(joint.visitor)
        await trio.testing.wait_all_tasks_blocked()
        assert joint.stream.given == 200


async def test_others_get_their_turn(tidy: Tidy) -> None:
    """One that always has bytes to read and room to write takes a checkpoint after every read."""
    visitor, plain = tidy.pair(80 * SCRATCH_BYTES)
    peer, wire = tidy.pair(80 * SCRATCH_BYTES)
    visitor.send(bytes(80 * SCRATCH_BYTES))
    most = 0

    async def watch() -> None:
        nonlocal most
        seen = 0
        while True:
            await trio.lowlevel.checkpoint()
            most, seen = max(most, stream.taken - seen), stream.taken

    stream = VisitorStream(1, plain)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch)
        nursery.start_soon(RawTunnel(wire, stream, Side.SERVER).run)
        while stream.taken < 80 * SCRATCH_BYTES:  # noqa: ASYNC110 - who counts the turns of others takes turns
            await trio.lowlevel.checkpoint()
        nursery.cancel_scope.cancel()
    assert most <= 2 * SCRATCH_BYTES
    visitor.close()
    peer.close()


@pytest.mark.parametrize("seed", range(40))
async def test_ends_and_resets_that_cross(
    tidy: Tidy, autojump_clock: trio.testing.MockClock, seed: int
) -> None:
    """Whatever both far ends do and when, it ends, and nothing is left."""
    rng = random.Random(seed)

    async def behave(end: Endpoint) -> None:
        assert isinstance(end, MemoryEndpoint)
        end.largest_write = rng.randint(1, 50)
        with suppress(OSError, trio.ClosedResourceError):
            for _ in range(rng.randint(0, 5)):
                end.send(rng.randbytes(20))
                await trio.sleep(rng.random())
            if rng.random() < 0.5:
                end.send_eof()
                await receive_all(end)
        end.close() if rng.random() < 0.7 else end.reset()

    async with open_joint("memory", tidy, capacity=rng.randint(1, 60), sweep=True) as joint:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(behave, joint.visitor)
            nursery.start_soon(behave, joint.peer)
        with trio.fail_after(10):
            await joint.ended.wait()


async def test_a_service_on_a_unix_socket(tidy: Tidy) -> None:
    one, two = socket.socketpair()
    peer, wire = tidy.pair()
    service = SocketEndpoint(two)
    stream = VisitorStream(1, SocketEndpoint(one))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(RawTunnel(wire, stream, Side.CLIENT).run)
        peer.send(b"x")
        assert await receive_exactly(service, 1) == b"x"
        peer.reset()
        assert await receive_all(service) == b""  # a Unix socket knows no reset
    service.close()
    assert stream.end == "the tunnel was lost"
