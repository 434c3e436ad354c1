"""When a name is due: the rules, for any clock."""

from __future__ import annotations

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.certificates.made import DAY, certificate
from trionat.server.certificates.schedule import (
    LONGEST_PAUSE,
    LONGEST_WISH,
    NEW_SHARE,
    REST,
    RETRY_SHARE,
    Record,
    Schedule,
    loud_at,
    most_of_account,
    pause_after,
    renew_at,
)

MOMENTS = st.floats(0, 4e9)
LIVES = st.floats(60, 400 * DAY)


def test_a_failing_name_waits_longer_each_time() -> None:
    assert [pause_after(number) / 60 for number in range(1, 10)] == [1, 2, 4, 8, 16, 32, 60, 60, 60]
    assert pause_after(1_000_000) == LONGEST_PAUSE


def test_without_a_wish_it_is_renewed_at_two_thirds_of_its_life() -> None:
    assert renew_at(certificate(1000, 90 * DAY), None) == 1000 + 60 * DAY


@given(begins=MOMENTS, life=LIVES, wish=st.floats(allow_nan=False, allow_infinity=False))
def test_whatever_the_authority_wishes_it_is_renewed_in_its_life(
    begins: float, life: float, wish: float
) -> None:
    one = certificate(begins, life)
    at = renew_at(one, wish)
    assert one.begins + min(REST, life / 3) <= at <= one.ends - one.life / 7
    if one.begins + REST < wish < one.begins + one.life / 2:
        assert at == wish


@given(begins=MOMENTS, life=LIVES)
def test_loud_is_21_days_before_the_end_or_a_third_of_a_short_life(
    begins: float, life: float
) -> None:
    one = certificate(begins, life)
    assert one.ends - loud_at(one) == pytest.approx(min(21 * DAY, life / 3), abs=0.01)
    assert renew_at(one, None) <= loud_at(one) + 0.01


@given(
    failures=st.integers(1, 20),
    now=MOMENTS,
    until=st.none() | st.floats(-1e12, 1e12),
    passes=st.floats(-1e9, 1e9),
)
def test_nobody_waits_for_ever_and_a_clock_that_is_set_back_stops_nothing(
    failures: int, now: float, until: float | None, passes: float
) -> None:
    schedule = Schedule()
    record = schedule.record("a")
    for _ in range(failures):
        schedule.fail("a", now, "dns", "no such name", until)
    assert 60 <= record.pause <= LONGEST_WISH
    left = record.wait(now + passes)
    assert 0 <= left <= record.pause
    if passes < -0.001 or passes > record.pause + 1:
        assert left == 0


def test_the_authority_s_until_is_kept() -> None:
    record = Schedule().fail("a", 1000, "rateLimited", "too many", 1000 + 5 * 3600)
    assert record.wait(1000 + 3600) == 4 * 3600


def test_orders_of_a_day_are_bounded_and_the_last_are_for_renewals() -> None:
    schedule = Schedule()
    for number in range(8):
        assert schedule.orders_left(number, 10, NEW_SHARE) == 8 - number
        assert schedule.orders_left(number, 10, RETRY_SHARE) == max(5 - number, 0)
        schedule.count_order(number)
    assert schedule.orders_left(8, 10, NEW_SHARE) == 0
    assert schedule.orders_left(8, 10) == 2
    assert schedule.orders_left(DAY + 0.5, 10, NEW_SHARE) == 1
    assert Schedule().orders_left(0, 1, RETRY_SHARE) == 1


def test_orders_of_an_account_are_those_of_a_day() -> None:
    schedule = Schedule()
    for number in range(3):
        schedule.count_order(number, "alice")
    schedule.count_order(3, "bob")
    schedule.count_order(4)
    assert schedule.orders_left(5, 10) == 5
    assert [schedule.orders_of_account(name, 5) for name in ("alice", "bob", "carol")] == [3, 1, 0]
    assert schedule.orders_of_account("alice", DAY + 1.5) == 1
    schedule.orders_of_account("alice", 3 * DAY)
    assert not schedule.accounts
    assert [most_of_account(most) for most in (1, 60, 300, 10_000)] == [5, 6, 30, 1000]


def test_a_file_without_accounts_is_read() -> None:
    schedule = Schedule.read(b'{"orders": [1.5], "names": {}}')
    assert (schedule.orders, schedule.accounts) == ([1.5], {})


def test_a_clock_that_is_set_back_gives_no_more_orders() -> None:
    schedule = Schedule()
    schedule.count_order(5000)
    assert schedule.orders_left(1000, 10) == 9


def test_a_window_is_for_the_certificate_that_it_was_asked_for() -> None:
    schedule, old, new = Schedule(), certificate(0), certificate(60 * DAY)
    schedule.note_window("a", old.ends, 100, 55 * DAY, 100 + 5 * 3600)
    assert schedule.wish("a", old) == 55 * DAY
    assert schedule.wish("a", new) is None
    assert not schedule.has_to_ask("a", old, 100 + 4 * 3600)
    assert schedule.has_to_ask("a", old, 100 + 6 * 3600)
    assert schedule.has_to_ask("a", new, 60 * DAY + 1)
    assert not schedule.has_to_ask("a", old, old.ends), "RFC 9773: not of one that has run out"


@pytest.mark.parametrize("again", [None, -1e12, 0, 1e12])
def test_the_authority_is_asked_again_within_a_day_and_not_within_an_hour(
    again: float | None,
) -> None:
    schedule, one = Schedule(), certificate(0)
    schedule.note_window("a", one.ends, 1000, None, again)
    assert not schedule.has_to_ask("a", one, 1000 + 3599)
    assert schedule.has_to_ask("a", one, 1000 + DAY)
    assert schedule.has_to_ask("a", one, 1000 - 2 * DAY), "a clock that was set back"


@given(
    orders=st.lists(MOMENTS, max_size=5),
    records=st.dictionaries(
        st.text(max_size=20),
        st.builds(
            Record,
            failures=st.integers(0, 99),
            failed_at=MOMENTS,
            pause=st.floats(0, LONGEST_WISH),
            code=st.text(max_size=9),
            reason=st.text(max_size=9),
            method=st.sampled_from(["", "http-01"]),
            ends=MOMENTS,
            wish=st.none() | MOMENTS,
            again=MOMENTS,
        ),
        max_size=4,
    ),
    accounts=st.dictionaries(st.text(max_size=20), st.lists(MOMENTS, max_size=5), max_size=4),
)
def test_what_is_written_is_read(
    orders: list[float], records: dict[str, Record], accounts: dict[str, list[float]]
) -> None:
    read = Schedule.read(Schedule(orders, records, accounts).write())
    assert (read.orders, read.records, read.accounts) == (orders, records, accounts)


@given(
    st.binary(max_size=30)
    | st.recursive(
        st.none() | st.integers() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["orders", "names", "accounts", "a", "wish"]), inner, max_size=3
            )
        ),
    ).map(lambda value: json.dumps(value).encode())
)
def test_a_damaged_file_is_told_as_such(content: bytes) -> None:
    with contextlib.suppress(ValueError):
        Schedule.read(content).write()


def test_what_nobody_wants_is_forgotten_but_not_that_it_has_just_failed() -> None:
    schedule = Schedule()
    schedule.fail("failed", 1000, "dns", "")
    schedule.fail("wanted", 1000, "dns", "")
    schedule.succeed("done", "http-01")
    schedule.forget({"wanted"}, 2000)
    assert set(schedule.records) == {"failed", "wanted"}
    schedule.forget({"wanted"}, 1000 + 2 * DAY)
    assert set(schedule.records) == {"wanted"}
