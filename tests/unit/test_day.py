from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest

from trionat.store.day import day_of, day_within, days_before, parse_day


def test_a_day_is_that_of_utc() -> None:
    west = timezone(timedelta(hours=-5))
    assert day_of(datetime(2026, 11, 30, 23, 59, tzinfo=UTC)) == "2026-11-30"
    assert day_of(datetime(2026, 11, 30, 23, 59, tzinfo=west)) == "2026-12-01"
    assert parse_day(day_of(datetime(2028, 2, 29, tzinfo=UTC))) == "2028-02-29"


@pytest.mark.parametrize(
    ("month", "moment", "day"),
    [
        ("2026-11", datetime(2026, 11, 29, 23, tzinfo=UTC), "2026-11-29"),
        ("2026-11", datetime(2026, 12, 1, tzinfo=UTC), "2026-11-30"),
        ("2026-12", datetime(2027, 3, 7, tzinfo=UTC), "2026-12-31"),
        ("2028-02", datetime(2028, 3, 1, tzinfo=UTC), "2028-02-29"),
        ("2026-11", datetime(2026, 10, 31, tzinfo=UTC), "2026-11-01"),
    ],
)
def test_a_moment_of_another_month_is_at_the_nearest_end(
    month: str, moment: datetime, day: str
) -> None:
    assert day_within(month, moment) == day


def test_days_go_back_over_the_ends_of_months_and_years() -> None:
    assert days_before("2026-11-29", 29) == "2026-10-31"
    assert days_before("0001-01-05", 29) == "0001-01-01"
    assert days_before("2028-03-01", 1) == "2028-02-29"
    assert days_before("2026-11-29", 400) == "2025-10-25"


@pytest.mark.parametrize("text", ["", "2026-11", "2026-11-31", "2026-02-29", "20261129", "2026-W48-7", "2026-11-29\n", "٢٠٢٦-11-29"])  # fmt: skip
def test_other_text_is_no_day(text: str) -> None:
    with pytest.raises(ValueError, match="is not a valid day: write it as 2026-11-29"):
        parse_day(text)
