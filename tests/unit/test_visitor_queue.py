"""The line in which visitors wait for tunnels, and tunnels for visitors."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from tests.unit.memory import MemoryEndpoint, receive_all, receive_some
from trionat.address import TCPAddress
from trionat.relay.stream import VisitorStream
from trionat.server.accounts.limits import UserLimits
from trionat.server.refusals import Bound
from trionat.server.visitors.queue import Place, VisitorQueue
from trionat.server.visitors.visitor import Visitor
from trionat.store.base import Limits

if TYPE_CHECKING:
    from trio.testing import MockClock

    from tests.unit.conftest import Tidy

ADDRESS = TCPAddress("192.0.2.1", 1)


class Crowd:
    """Visitors with their far ends."""

    def __init__(self, tidy: Tidy, line: VisitorQueue) -> None:
        self.tidy = tidy
        self.line = line
        self.far: dict[int, MemoryEndpoint] = {}

    def visitor(self) -> Visitor:
        number = len(self.far) + 1
        self.far[number], near = self.tidy.pair()
        return Visitor(number, near, ADDRESS, 0, ADDRESS)

    def come(self) -> Visitor:
        visitor = self.visitor()
        self.line.put(visitor)
        return visitor

    def go(self) -> None:
        for end in self.far.values():
            end.peer.close()
            end.close()


@pytest.fixture
def line() -> VisitorQueue:
    return VisitorQueue(3, 5, UserLimits("alice", Limits()))


@pytest.fixture
async def crowd(tidy: Tidy, line: VisitorQueue) -> Crowd:
    return Crowd(tidy, line)


async def numbers(line: VisitorQueue, count: int) -> list[int]:
    found = [await line.next() for _ in range(count)]
    return [visitor.number for visitor in found if visitor is not None]


async def test_who_has_waited_longest_goes_first(line: VisitorQueue, crowd: Crowd) -> None:
    for _ in range(3):
        crowd.come()
    assert (line.waiting, line.present) == (3, 3)
    assert await numbers(line, 3) == [1, 2, 3]
    assert (line.waiting, line.present) == (0, 3)
    crowd.go()


async def test_the_tunnel_used_last_is_used_next(line: VisitorQueue, crowd: Crowd) -> None:
    served: list[tuple[int, int]] = []

    async def tunnel(name: int) -> None:
        visitor = await line.next()
        assert visitor is not None
        served.append((visitor.number, name))

    async with trio.open_nursery() as nursery:
        for name in range(3):
            nursery.start_soon(tunnel, name)
            await trio.testing.wait_all_tasks_blocked()
        assert line.idle == 3
        for _ in range(3):
            crowd.come()
    assert sorted(served) == [(1, 2), (2, 1), (3, 0)]
    crowd.go()


async def test_one_that_is_put_back_is_first_again(line: VisitorQueue, crowd: Crowd) -> None:
    for _ in range(3):
        crowd.come()
    first = await line.next()
    assert first is not None
    line.put_back(first)
    assert line.present == 3
    assert await numbers(line, 3) == [1, 2, 3]
    crowd.go()


async def test_one_that_is_put_back_goes_to_an_idle_tunnel(
    line: VisitorQueue, crowd: Crowd
) -> None:
    visitor = crowd.come()
    assert await line.next() is visitor
    async with trio.open_nursery() as nursery:

        async def tunnel() -> None:
            assert await line.next() is visitor

        nursery.start_soon(tunnel)
        await trio.testing.wait_all_tasks_blocked()
        line.put_back(visitor)
        assert (line.waiting, line.idle, line.present) == (0, 0, 1)
    crowd.go()


async def test_one_that_is_put_back_too_late_is_reset(line: VisitorQueue, crowd: Crowd) -> None:
    visitor = crowd.come()
    assert await line.next() is visitor
    line.close("over")
    line.put_back(visitor)
    assert line.present == 0
    with pytest.raises(ConnectionResetError):
        await receive_some(crowd.far[1])
    crowd.go()


@pytest.mark.parametrize("steps", range(4))
async def test_cancelled_places_lose_nobody(line: VisitorQueue, crowd: Crowd, steps: int) -> None:
    """Whoever was given out is held by the caller or back in the line."""
    held: list[Visitor] = []

    async def tunnel() -> None:
        visitor = await line.next()
        assert visitor is not None
        held.append(visitor)

    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(tunnel)
            for _ in range(steps):
                await trio.lowlevel.checkpoint()
            scope.cancel()
            visitor = crowd.come()
    assert line.idle == 0
    if held:
        assert held == [visitor]
        assert line.waiting == 0
    else:
        assert await line.next() is visitor
    crowd.go()


async def test_a_tunnel_that_is_withheld_gets_nobody(line: VisitorQueue, crowd: Crowd) -> None:
    place, served = Place(), list[Visitor | None]()

    async def tunnel() -> None:
        served.append(await line.next(place))

    line.withhold(place)  # nobody waits there: nothing is done
    for number in (1, 2):  # the place is used again and again
        async with trio.open_nursery() as nursery:
            nursery.start_soon(tunnel)
            await trio.testing.wait_all_tasks_blocked()
            assert line.idle == 1
            line.withhold(place)
            visitor = crowd.come()
            await trio.testing.wait_all_tasks_blocked()
            assert (line.idle, line.waiting, len(served)) == (0, 1, number - 1)
            line.restore(place)
            assert (line.idle, line.waiting) == (0, 0)
        assert served[-1] is visitor
        line.restore(place)  # it was not withheld
    assert line.idle == 0
    crowd.go()


async def test_a_tunnel_that_is_restored_waits_where_nobody_does(line: VisitorQueue) -> None:
    place = Place()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(line.next, place)
        await trio.testing.wait_all_tasks_blocked()
        line.withhold(place)
        line.restore(place)
        assert line.idle == 1
        line.withhold(place)
        nursery.cancel_scope.cancel()
    line.restore(place)  # too late
    assert line.idle == 0


async def test_limits(line: VisitorQueue, crowd: Crowd) -> None:
    for _ in range(4):
        crowd.come()
    assert line.present == line.waiting == 3
    assert await receive_all(crowd.far[4]) == b""  # too many wait
    first = await line.next()
    assert first is not None
    assert await numbers(line, 2) == [2, 3]
    for _ in range(3):
        crowd.come()
    assert line.present == 5
    assert await receive_all(crowd.far[7]) == b""  # too many are there
    line.leave(first)
    crowd.come()
    assert (line.present, line.waiting) == (5, 3)
    crowd.go()


async def test_patience(line: VisitorQueue, crowd: Crowd, autojump_clock: MockClock) -> None:
    for _ in range(3):
        crowd.come()
        await trio.sleep(1)
    old = await line.next()
    assert old is not None
    old.since = trio.current_time()
    line.put_back(old)  # begins to wait anew
    line.expire(wait=1.5, resume_wait=1.5)
    assert await receive_all(crowd.far[2]) == b""  # although it does not stand at the head
    assert (line.waiting, line.present) == (2, 2)
    assert line.refusals.counts == {Bound.WAIT: 1}
    assert await line.next() is old
    crowd.go()


async def test_who_refuses_nobody_is_not_counted(line: VisitorQueue) -> None:
    line.close("over")
    assert not line.refusals.counts.keys()


async def test_close_dismisses_who_waits_and_admits_nobody(
    line: VisitorQueue, crowd: Crowd
) -> None:
    crowd.come()
    assert await numbers(line, 1) == [1]
    crowd.come()
    line.close("over")
    crowd.come()
    for number in (2, 3):
        assert await receive_all(crowd.far[number]) == b""
    assert (line.waiting, line.present) == (0, 1)
    with pytest.raises(BlockingIOError):
        crowd.far[1].recv_into(memoryview(bytearray(20_000)))
    crowd.go()


async def test_who_has_begun_waits_on_while_it_drains(line: VisitorQueue, crowd: Crowd) -> None:
    """Another tunnel may come, until the end."""
    begun, new = crowd.come(), crowd.come()
    begun.stream = VisitorStream(begun.number, begun.endpoint)
    line.drain("the client is leaving")
    assert await receive_all(crowd.far[new.number]) == b""
    crowd.come()
    assert await receive_all(crowd.far[3]) == b""
    assert (line.waiting, line.present) == (1, 1)
    assert await line.next() is begun
    line.put_back(begun)
    assert await line.next() is begun
    line.close("over")
    line.put_back(begun)
    assert (line.waiting, line.present) == (0, 0)
    with pytest.raises(ConnectionResetError):
        await receive_some(crowd.far[begun.number])
    crowd.go()


async def test_only_who_was_never_served_counts_as_refused(
    line: VisitorQueue, crowd: Crowd, caplog: pytest.LogCaptureFixture
) -> None:
    """What was moved of each is told, and why it was closed, also of one that comes back when it is over."""
    caplog.set_level("INFO", logger="trionat")
    late, served, kicked = (crowd.come() for _ in range(3))
    for visitor in (late, served, kicked):
        visitor.stream = VisitorStream(visitor.number, visitor.endpoint, taken=5, given=7)
        visitor.tries = 1
    assert await line.next() is late
    new = crowd.come()
    assert line.kick(kicked.number, "sent away")
    assert not line.kick(kicked.number, "sent away")
    assert line.waiting == 3
    assert line.waiting_visitors == (served, new)
    line.close("the server stops")
    line.close("another reason")
    line.put_back(late)
    assert line.refusals.counts == {Bound.LEAVING: 1}
    told = [message for message in caplog.messages if message.startswith("visitor closed")]
    for message, visitor, reason, received, sent in zip(
        told,
        (kicked, served, new, late),
        ("sent away", "the server stops", "the server stops", "the server stops"),
        (5, 5, 0, 5),
        (7, 7, 0, 7),
        strict=True,
    ):
        assert f" visitor={visitor.number} " in message
        assert f"reason='{reason}'" in message
        assert f"received={received} sent={sent}" in message
    crowd.go()


async def test_who_was_reset_while_it_waited_is_passed_over(
    line: VisitorQueue, crowd: Crowd
) -> None:
    for _ in range(3):
        crowd.come()
    crowd.far[1].reset()
    assert await numbers(line, 2) == [2, 3]
    assert line.present == 2
    crowd.go()


async def test_tunnels_that_were_idle_longest_go_home(line: VisitorQueue) -> None:
    home: list[int] = []

    async def tunnel(name: int) -> None:
        assert await line.next() is None
        home.append(name)

    async with trio.open_nursery() as nursery:
        for name in range(4):
            nursery.start_soon(tunnel, name)
            await trio.testing.wait_all_tasks_blocked()
        line.retire(0)
        await trio.testing.wait_all_tasks_blocked()
        assert home == []
        line.retire(2)
        await trio.testing.wait_all_tasks_blocked()
        assert sorted(home) == [0, 1]
        assert line.idle == 2
        line.retire(9)
    assert sorted(home) == [0, 1, 2, 3]


async def test_wait_empty(line: VisitorQueue, crowd: Crowd) -> None:
    await line.wait_empty()
    one, two = crowd.come(), crowd.come()
    done = trio.Event()

    async def wait() -> None:
        await line.wait_empty()
        done.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        nursery.start_soon(line.wait_empty)
        await numbers(line, 2)
        line.leave(one)
        await trio.testing.wait_all_tasks_blocked()
        assert not done.is_set()
        line.leave(two)
    crowd.go()
