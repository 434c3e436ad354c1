"""RefusalCounters are all counted, and all told, but not at once."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from trionat.server.refusals import INTERVAL, Bound, RefusalCounters

if TYPE_CHECKING:
    from collections.abc import Callable

    from trio.testing import MockClock

CROWD = 4000


@pytest.fixture
def told() -> list[tuple[str, int]]:
    return []


def teller(told: list[tuple[str, int]], name: str) -> Callable[[int], None]:
    return lambda count: told.append((name, count))


async def test_none_of_a_crowd_stays_untold(
    told: list[tuple[str, int]], nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    refusals = RefusalCounters()
    nursery.start_soon(refusals.tell_regularly)
    for number in range(CROWD):
        refusals.count(Bound.VISITORS, teller(told, f"visitor {number}"))
    assert told == [("visitor 0", 1)]
    await trio.sleep(2.5 * INTERVAL)
    assert told == [("visitor 0", 1), (f"visitor {CROWD - 1}", CROWD - 1)]
    assert refusals.counts == {Bound.VISITORS: CROWD}


async def test_a_stream_of_them_is_told_once_a_second(
    told: list[tuple[str, int]], nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    refusals = RefusalCounters()
    nursery.start_soon(refusals.tell_regularly)
    for _ in range(1000):
        refusals.count(Bound.RATE, teller(told, "x"))
        await trio.sleep(INTERVAL / 100)
    await trio.sleep(2.5 * INTERVAL)
    assert len(told) <= 12
    assert sum(count for _, count in told) == 1000


async def test_bounds_and_users_are_told_apart(
    told: list[tuple[str, int]], autojump_clock: MockClock
) -> None:
    refusals = RefusalCounters()
    for bound, user in (
        (Bound.VISITORS, "a"),
        (Bound.VISITORS, "b"),
        (Bound.WAITING_VISITORS, "a"),
    ):
        refusals.count(bound, teller(told, f"{bound} {user}"), user=user)
    assert told == [("MaxVisitors a", 1), ("MaxVisitors b", 1), ("MaxWaitingVisitors a", 1)]
    assert refusals.counts == {Bound.VISITORS: 2, Bound.WAITING_VISITORS: 1}


async def test_the_rest_is_told_at_the_end(
    told: list[tuple[str, int]], autojump_clock: MockClock
) -> None:
    refusals = RefusalCounters()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(refusals.tell_regularly)
        await trio.testing.wait_all_tasks_blocked()
        for _ in range(3):
            refusals.count(Bound.NO_CLIENT, teller(told, "x"))
        nursery.cancel_scope.cancel()
    assert told == [("x", 1), ("x", 2)]


async def test_what_is_told_is_forgotten(
    told: list[tuple[str, int]], nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    refusals = RefusalCounters()
    nursery.start_soon(refusals.tell_regularly)
    for number in range(100):
        refusals.count(Bound.VISITORS, teller(told, "x"), user=f"user {number}")
    await trio.sleep(3.5 * INTERVAL)
    assert not refusals._untold
