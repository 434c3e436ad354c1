from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest

from trionat.store.month import month_of, parse_month


def test_a_month_is_that_of_utc() -> None:
    assert month_of(datetime(2026, 11, 30, 23, 59, tzinfo=UTC)) == "2026-11"
    west = timezone(timedelta(hours=-5))
    assert month_of(datetime(2026, 11, 30, 23, 59, tzinfo=west)) == "2026-12"


def test_what_is_written_is_read() -> None:
    assert parse_month(month_of(datetime(2027, 1, 1, tzinfo=UTC))) == "2027-01"


@pytest.mark.parametrize("text", ["", "2026-13", "2026-00", "26-11", "2026-11-01", "2026-1", "٢٠٢٦-11", "2026-11\n"])  # fmt: skip
def test_other_text_is_no_month(text: str) -> None:
    with pytest.raises(ValueError, match="is not a valid month: write it as 2026-11"):
        parse_month(text)
