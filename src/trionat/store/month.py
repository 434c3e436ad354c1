"""Months, in which traffic is counted and quotas are given: `2026-11`, of UTC."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Final

from trionat.text import quoted

_MONTH: Final = re.compile(r"[0-9]{4}-(0[1-9]|1[0-2])", re.ASCII)


def month_of(moment: datetime) -> str:
    """Return the month of a moment, which knows its time zone. Months are in order as texts, too."""
    return f"{moment.astimezone(UTC):%Y-%m}"


def parse_month(text: str) -> str:
    """Read a month.

    Raises:
        ValueError: It is none; the message says what would be right.
    """
    if not _MONTH.fullmatch(text):
        raise ValueError(f"{quoted(text)} is not a valid month: write it as 2026-11")
    return text
