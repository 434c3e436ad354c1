"""Days, of which totals of traffic are kept for a while: `2026-11-29`, of UTC."""

from __future__ import annotations

import re
from datetime import UTC, date, datetime, timedelta
from typing import Final

import attrs

from trionat.text import quoted

DAYS_KEPT: Final = 400
"""So that every month can be looked at day by day for a year after it."""

_DAY: Final = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", re.ASCII)


@attrs.frozen(kw_only=True)
class DayTotal:
    """The bytes of a user on one day, both directions added."""

    day: str
    user: str
    amount: int


def day_of(moment: datetime) -> str:
    """Return the day of a moment, which knows its time zone. Days are in order as texts, too."""
    return f"{moment.astimezone(UTC):%Y-%m-%d}"


def day_within(month: str, moment: datetime) -> str:
    """Return the day of a moment, or the nearest one in that month (`2026-11`)."""
    first = date.fromisoformat(f"{month}-01")
    last = (first + timedelta(days=31)).replace(day=1) - timedelta(days=1)
    return min(max(day_of(moment), first.isoformat()), last.isoformat())


def days_before(day: str, number: int) -> str:
    """Return which day was so many days before, or the first one that there is."""
    start = date.fromisoformat(day)
    return (start - min(timedelta(days=number), start - date.min)).isoformat()


def parse_day(text: str) -> str:
    """Read a day.

    Raises:
        ValueError: It is none; the message says what would be right.
    """
    try:
        if _DAY.fullmatch(text):
            return date.fromisoformat(text).isoformat()
    except ValueError:
        pass
    raise ValueError(f"{quoted(text)} is not a valid day: write it as 2026-11-29")
