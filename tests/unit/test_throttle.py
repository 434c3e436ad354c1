"""The throttle on a user's streams: the rate, the turns that they take, and what it must not hold up."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from tests.unit.memory import receive_some
from trionat.protocol.conversation import Side
from trionat.protocol.tunnel_frames import AbortReason
from trionat.relay.raw_tunnel import RawTunnel
from trionat.relay.stream import VisitorStream
from trionat.relay.throttle import Throttle
from trionat.transport.endpoint import TLS_RECORD_BYTES, send_all

if TYPE_CHECKING:
    from trio.testing import MockClock

    from tests.unit.conftest import Tidy
    from tests.unit.memory import MemoryEndpoint


async def open_stream(tidy: Tidy, throttle: Throttle) -> VisitorStream:
    far, near = tidy.pair()
    far.close()
    near.close()
    return VisitorStream(1, near, throttle=throttle)


async def test_without_a_rate_nothing_is_held_up(tidy: Tidy, autojump_clock: MockClock) -> None:
    throttle = Throttle(None)
    room = memoryview(bytearray(256 * 1024))
    stream = await open_stream(tidy, throttle)
    started = trio.current_time()
    for _ in range(1000):
        assert len(throttle.portion(room)) == len(room)
        await stream.slow_down(10**12)
    assert trio.current_time() == started
    throttle.rate = 1000  # and what was relayed so far is no debt
    await stream.slow_down(1000)
    assert trio.current_time() - started <= 1


@pytest.mark.parametrize("rate", [1000, 100_000, 10**7, 10**9])
async def test_the_rate_is_kept(tidy: Tidy, autojump_clock: MockClock, rate: int) -> None:
    throttle = Throttle(rate)
    room = memoryview(bytearray(256 * 1024))
    piece = len(throttle.portion(room))
    assert piece >= TLS_RECORD_BYTES
    stream = await open_stream(tidy, throttle)
    started = trio.current_time()
    for _ in range(200):
        await stream.slow_down(piece)
    expected = 199 * piece / rate  # the last one is still to be made up for
    assert expected - 0.27 <= trio.current_time() - started < expected + 0.01


async def test_streams_take_turns(tidy: Tidy, autojump_clock: MockClock) -> None:
    """Whoever has waited goes first, and the sum is the rate; also for one that comes later."""
    throttle = Throttle(100_000)
    relayed = [0, 0, 0, 0]

    async def relay(index: int) -> None:
        stream = await open_stream(tidy, throttle)
        while True:
            relayed[index] += 10_000
            await stream.slow_down(10_000)

    async with trio.open_nursery() as nursery:
        for index in range(3):
            nursery.start_soon(relay, index)
        await trio.sleep(30)
        assert sum(relayed) == pytest.approx(30 * 100_000, rel=0.03)
        assert max(relayed[:3]) - min(relayed[:3]) <= 20_000
        nursery.start_soon(relay, 3)
        before = relayed.copy()
        await trio.sleep(40)
        shares = [now - then for now, then in zip(relayed, before, strict=True)]
        assert max(shares) - min(shares) <= 30_000
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(("rate", "within"), [(None, 0.6), (10**6, 0.7), (20, 498)])
async def test_a_new_rate_counts_for_those_who_wait(
    tidy: Tidy, autojump_clock: MockClock, rate: int | None, within: float
) -> None:
    throttle = Throttle(10)
    stream = await open_stream(tidy, throttle)
    done: list[float] = []

    async def relay() -> None:
        await stream.slow_down(10_000)
        await stream.slow_down(1)
        done.append(trio.current_time())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(relay)
        await trio.sleep(5.25)
        started = trio.current_time()
        assert not done
        throttle.rate = rate
    assert within - 1 <= done[0] - started <= within


async def test_many_short_streams_get_no_more_than_the_rate(
    tidy: Tidy, autojump_clock: MockClock
) -> None:
    throttle = Throttle(100_000)
    relayed = 0

    async def come_and_go() -> None:
        nonlocal relayed
        while True:
            stream = await open_stream(tidy, throttle)
            await stream.slow_down(10_000)
            relayed += 10_000

    async with trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(come_and_go)
        await trio.sleep(30)
        assert relayed == pytest.approx(30 * 100_000, rel=0.03)
        nursery.cancel_scope.cancel()


async def test_one_that_has_failed_goes_on_at_once(tidy: Tidy, autojump_clock: MockClock) -> None:
    stream = await open_stream(tidy, Throttle(1))
    started = trio.current_time()
    async with trio.open_nursery() as nursery:
        await stream.slow_down(1_000_000)
        nursery.start_soon(stream.slow_down, 1)
        await trio.sleep(1)
        stream.fail(AbortReason.RESET, "gone")
    assert trio.current_time() - started == 1
    await stream.slow_down(1_000_000)
    assert trio.current_time() - started == 1


@pytest.mark.parametrize("cut", ["failed", "cancelled"])
async def test_what_is_not_relayed_is_not_owed(
    tidy: Tidy, autojump_clock: MockClock, cut: str
) -> None:
    """300 visitors that send 16 KiB and reset: the next one waits for the piece that was relayed, not for theirs."""
    throttle = Throttle(100_000)
    async with trio.open_nursery() as nursery:
        streams = [await open_stream(tidy, throttle) for _ in range(300)]
        for stream in streams:
            nursery.start_soon(stream.slow_down, 16_384)
        await trio.sleep(0.01)
        if cut == "failed":
            for stream in streams:
                stream.fail(AbortReason.RESET, "gone")
        else:
            nursery.cancel_scope.cancel()
    started = trio.current_time()
    await (await open_stream(tidy, throttle)).slow_down(5)
    assert trio.current_time() - started < 0.5


async def test_a_limit_that_is_lifted_and_set_again_revives_no_debt(
    tidy: Tidy, autojump_clock: MockClock
) -> None:
    throttle = Throttle(1000)
    stream = await open_stream(tidy, throttle)
    await stream.slow_down(1_000_000)
    throttle.rate = None
    throttle.rate = 1000
    started = trio.current_time()
    await stream.slow_down(5)
    assert trio.current_time() == started


async def test_a_lower_rate_makes_up_for_one_record_at_most(
    tidy: Tidy, autojump_clock: MockClock
) -> None:
    throttle = Throttle(10**9)
    stream = await open_stream(tidy, throttle)
    for _ in range(1000):
        await stream.slow_down(256 * 1024)
    throttle.rate = 10_000
    started = trio.current_time()
    await stream.slow_down(5)
    assert trio.current_time() - started <= TLS_RECORD_BYTES / 10_000


async def test_an_idle_user_has_a_quarter_of_a_second_in_store(
    tidy: Tidy, autojump_clock: MockClock
) -> None:
    throttle = Throttle(1000)
    stream = await open_stream(tidy, throttle)
    await trio.sleep(1000)
    started = trio.current_time()
    for count in (250, 1000):
        await stream.slow_down(count)
        assert trio.current_time() == started
    await stream.slow_down(1000)
    assert trio.current_time() - started == 1


async def test_raw_tunnels(tidy: Tidy, autojump_clock: MockClock) -> None:
    """Two of one user, both directions together; a reset passes while it is held up."""
    throttle = Throttle(200_000)
    texts = [random.Random(number).randbytes(4_000_000) for number in range(4)]
    received: list[bytearray] = []
    tunnels: list[RawTunnel] = []
    ends: list[MemoryEndpoint] = []

    async def drain(sink: MemoryEndpoint, into: bytearray) -> None:
        while True:
            into += await receive_some(sink)

    async with trio.open_nursery() as nursery:
        async with trio.open_nursery() as talking:
            for number in range(2):
                (visitor, plain), (peer, wire) = tidy.pair(), tidy.pair()
                tunnels.append(
                    RawTunnel(wire, VisitorStream(1, plain, throttle=throttle), Side.SERVER)
                )
                nursery.start_soon(tunnels[number].run)
                for end, text in ((visitor, texts[2 * number]), (peer, texts[2 * number + 1])):
                    ends.append(end)
                    received.append(bytearray())
                    talking.start_soon(send_all, end, text)
                    talking.start_soon(drain, end, received[-1])
            await trio.sleep(30)
            talking.cancel_scope.cancel()
        sizes = [len(each) for each in received]
        assert sum(sizes) == pytest.approx(30 * 200_000, rel=0.05)
        assert max(sizes) - min(sizes) <= 50_000
        for number, tunnel in enumerate(tunnels):
            to_visitor, to_peer = received[2 * number : 2 * number + 2]
            assert texts[2 * number].startswith(to_peer)
            assert texts[2 * number + 1].startswith(to_visitor)
            assert tunnel.stream.taken - TLS_RECORD_BYTES == len(to_peer)  # and one that waits
            assert tunnel.stream.given == len(to_visitor)
        started = trio.current_time()
        for visitor, tunnel in zip(ends[::2], tunnels, strict=True):
            visitor.reset()
            tunnel.sweep()
    assert trio.current_time() == started
    for peer in ends[1::2]:
        peer.close()
