"""What is counted for `/metrics`: nothing of it ever goes down, and all of it is bounded."""

from __future__ import annotations

import json
import random
from typing import TYPE_CHECKING

import pytest
import trio

from trionat.server.tally import (
    MOST_KEPT,
    MOST_SHOWN,
    OTHERS,
    Histogram,
    Sums,
    Tally,
)

if TYPE_CHECKING:
    from trio.testing import MockClock


def test_a_histogram_puts_each_into_one_bucket_its_border_included() -> None:
    histogram = Histogram((0.1, 1.0))
    for seconds in (0.0, 0.1, 0.100001, 1.0, 1.5, 1000.0):
        histogram.note(seconds)
    figures = histogram.figures
    assert (figures.bounds, figures.counts) == ((0.1, 1.0), (2, 2, 2))
    assert figures.seconds == pytest.approx(1002.700001)


def test_those_with_the_most_have_figures_of_their_own() -> None:
    sums, many = Sums(2), 4000
    for number in range(many):
        sums.add(f"user{number}", (number, 1))
    figures = sums.figures
    assert figures.total == (sum(range(many)), many)
    assert set(figures.shown) == {f"user{number}" for number in range(many - MOST_SHOWN, many)}
    assert figures.shown["user3999"] == (3999, 1)
    assert figures.others == (sum(range(many - MOST_SHOWN)), many - MOST_SHOWN)


def test_who_gets_figures_of_his_own_has_all_that_was_counted_for_him() -> None:
    sums = Sums(1)
    for number in range(MOST_SHOWN):
        sums.add(f"user{number}", (100 + 10 * number,))
    sums.add("alice", (1,))
    assert sums.figures.others == (1,)
    sums.add("alice", (500,))
    figures = sums.figures
    assert (figures.shown["alice"], figures.others) == ((501,), (1,))
    assert len(figures.shown) == MOST_SHOWN
    assert "user0" not in figures.shown
    sums.add("user0", (5,))  # with the others from now on
    assert sums.figures.others == (6,)
    sums.add("user0", (1000,))
    assert sums.figures.shown["user0"] == (1105,)


def test_no_figure_goes_down_whoever_comes_and_goes() -> None:
    chance = random.Random(4)
    sums, counted = Sums(1), 0
    seen: dict[str, int] = {}
    for _ in range(60):
        for _ in range(chance.randrange(400)):
            amount = chance.randrange(1, 10 ** chance.randrange(1, 7))
            sums.add(f"user{chance.randrange(9000)}", (amount,))
            counted += amount
        figures = sums.figures
        now = {name: amount for name, (amount,) in figures.shown.items()}
        now |= {OTHERS: figures.others[0], "": figures.total[0]}
        assert {name for name, amount in now.items() if amount < seen.get(name, 0)} == set()
        seen |= now
        assert figures.total == (counted,)
        assert len(now) <= MOST_SHOWN + 2
        assert len(sums._kept) <= MOST_KEPT


def test_memory_is_bounded_where_nobody_looks() -> None:
    sums = Sums(1)
    for number in range(5 * MOST_KEPT):
        sums.add(f"user{number}", (1,))
        assert len(sums._new) + len(sums._kept) <= 3 * MOST_KEPT
    assert sums.figures.total == (5 * MOST_KEPT,)


def test_a_user_called_like_the_others_is_one_of_them() -> None:
    sums = Sums(1)
    sums.add(OTHERS, (5,))
    sums.add("alice", (7,))
    figures = sums.figures
    assert (dict(figures.shown), figures.others, figures.total) == ({"alice": (7,)}, (5,), (12,))


def test_sessions_are_metered_up_to_their_end() -> None:
    tally = Tally()
    tally.begin_session(1)
    tally.begin_session(2)
    tally.meter_session(1, "alice", 10, 20)
    tally.meter_session(2, "alice", 1, 0)
    assert tally.traffic.figures.shown == {"alice": (11, 20)}
    tally.meter_session(1, "alice", 15, 20)
    tally.end_session(1, "alice", 15, 40)
    assert tally.traffic.figures.shown == {"alice": (16, 40)}
    tally.end_session(2, "alice", 1, 0)
    assert tally.traffic.figures.shown == {"alice": (16, 40)}
    assert (tally.sessions, tally._metered) == (2, {})


def test_what_a_worker_has_counted_is_the_parents_from_then_on() -> None:
    parent, first, second = Tally(), Tally(), Tally()
    for worker in (first, second):
        worker.begin_session(1)
        worker.meter_session(1, "alice", 100, 7)
        worker.handshakes["done"] += 2
        worker.first_byte.note(0.02)
        worker.visitor_duration.note(5)
        worker.loop_lag.note(0.001)
        worker.note_request("shop.example.org", 404, 0.3)
        for _ in range(2):  # the second time there is nothing new
            parent.add(json.loads(json.dumps(worker.take())))
    assert parent.sessions == 2
    assert parent.handshakes == {"done": 4}
    assert parent.traffic.figures.shown == {"alice": (200, 14)}
    assert parent.requests.figures.shown == {"shop.example.org": (0, 0, 0, 2, 0)}
    for histogram, seconds in (
        (parent.first_byte, 0.04),
        (parent.visitor_duration, 10),
        (parent.loop_lag, 0.002),
        (parent.request_duration, 0.6),
    ):
        assert sum(histogram.figures.counts) == 2
        assert histogram.figures.seconds == pytest.approx(seconds)
    first.meter_session(1, "alice", 101, 7)
    parent.add(json.loads(json.dumps(first.take())))
    assert parent.traffic.figures.shown == {"alice": (201, 14)}


def test_requests_are_counted_by_class_and_nonsense_is_not() -> None:
    tally = Tally()
    for status in (101, 204, 308, 429, 502, 0, 999):
        tally.note_request("shop.example.org", status, 0.0)
    assert tally.requests.figures.total == (1, 1, 1, 1, 1)
    assert sum(tally.request_duration.figures.counts) == 0


async def test_the_loop_is_measured(autojump_clock: MockClock) -> None:

    tally = Tally()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(tally.measure_lag)
        await trio.sleep(10.1)
        nursery.cancel_scope.cancel()
    assert sum(tally.loop_lag.figures.counts) == 20
    assert tally.loop_lag.figures.counts[0] == 20
