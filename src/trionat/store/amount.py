"""Amounts of bytes, as people write and read them."""

from __future__ import annotations

import re
from typing import Final

from trionat.text import quoted

MAX_AMOUNT: Final = 2**63 - 1
"""What a column of a database holds."""

_UNITS: Final = {
    "": 1,
    **{unit: 1000**power for power, unit in enumerate("kMGT", 1)},
    **{f"{unit}i": 1024**power for power, unit in enumerate("KMGT", 1)},
}
_AMOUNT: Final = re.compile(r"([0-9]{1,19})(?:\.([0-9]{1,12}))?(|[kMGT]|[KMGT]i)", re.ASCII)


def parse_amount(text: str) -> int:
    """Read a number of bytes: `1500`, `10M` (decimal), `1.5Gi` (binary); parts of a byte are cut off.

    Raises:
        ValueError: It is none, below 1, or above `MAX_AMOUNT`.
    """
    found = _AMOUNT.fullmatch(text)
    amount = 0
    if found:
        parts = found[2] or ""
        amount = int(found[1] + parts) * _UNITS[found[3]] // 10 ** len(parts)
    if not 1 <= amount <= MAX_AMOUNT:
        raise ValueError(
            f"{quoted(text)} is not a valid amount: write a number above 0 and k, M, G or T, or Ki, Mi, Gi or Ti, such as 10M or 1.5Gi"
        )
    return amount


def write_amount(amount: int) -> str:
    """Write a number of bytes exactly, in the largest unit that divides it: `parse_amount` reads it again."""
    factor, unit = max((factor, unit) for unit, factor in _UNITS.items() if amount % factor == 0)
    return f"{amount // factor}{unit}"


def format_amount(amount: int) -> str:
    """Write a number of bytes for people, to about three digits, in decimal units: `999 B`, `1.5 kB`, `12.3 GB`, `1234.5 TB`."""
    value, units = float(amount), ["B", "kB", "MB", "GB", "TB"]
    while value >= 999.95 and len(units) > 1:  # what would be written as 1000.0
        value /= 1000
        del units[0]
    return f"{value:.1f} {units[0]}" if amount > 999 else f"{amount} B"
