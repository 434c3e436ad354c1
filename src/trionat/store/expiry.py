"""When an account ends, as people write and read it. All times are UTC."""

from __future__ import annotations

import re
from datetime import UTC, date, datetime, time, timedelta
from typing import Final

from trionat.text import quoted

NEVER: Final = "never"

_SPAN: Final = re.compile(r"([0-9]{1,9})([dh])", re.ASCII)
_UNITS: Final = {"d": timedelta(days=1), "h": timedelta(hours=1)}


def parse_expiry(text: str, now: datetime) -> datetime | None:
    """Read when an account ends.

    Takes a day (`2027-01-31`: valid through that day, so it ends at the next midnight), a moment (`2027-01-31T12:00`, UTC
    unless it names an offset), a span from now (`30d`, `12h`), or `never`.

    Args:
        text: What was written.
        now: The present, aware.

    Returns:
        The first instant at which the account is no longer valid, aware and UTC; None for never.

    Raises:
        ValueError: It is none of these, or beyond the year 9999.
    """
    if text == NEVER:
        return None
    try:
        if span := _SPAN.fullmatch(text):
            return now.astimezone(UTC) + int(span[1]) * _UNITS[span[2]]
        if "T" not in text:
            day = date.fromisoformat(text) + timedelta(days=1)
            return datetime.combine(day, time(), tzinfo=UTC)
        moment = datetime.fromisoformat(text)
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except (ValueError, OverflowError):
        raise ValueError(
            f"{quoted(text)} is not a valid time: write 2027-01-31 (through that day), 2027-01-31T12:00 (UTC), 30d (days), 12h (hours) or {NEVER}"
        ) from None


def format_time(moment: datetime | None) -> str:
    """Write a time for people, to the minute: `2027-02-01 00:00 UTC`; None is `never`."""
    return NEVER if moment is None else f"{moment.astimezone(UTC):%Y-%m-%d %H:%M} UTC"
