from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trionat.store.amount import MAX_AMOUNT, format_amount, parse_amount, write_amount


@pytest.mark.parametrize(
    ("text", "amount"),
    [
        ("1500", 1500),
        ("10M", 10_000_000),
        ("1.5Gi", 1536 * 1024 * 1024),
        ("0.0015k", 1),
        ("2T", 2 * 10**12),
        ("8Ki", 8192),
        (str(MAX_AMOUNT), MAX_AMOUNT),
    ],
)
def test_amounts_are_read(text: str, amount: int) -> None:
    assert parse_amount(text) == amount


@pytest.mark.parametrize(
    "text",
    ["", "0", "0.5", "-1", "10m", "10 M", "1e3", "k", ".5k", "1.k", "1KB", "9223372036854775808", "99999999T", "\u0661M"],
)  # fmt: skip
def test_what_is_no_amount_is_told(text: str) -> None:
    with pytest.raises(
        ValueError, match="is not a valid amount: write a number above 0 and k, M"
    ) as caught:
        parse_amount(text)
    assert str(caught.value).startswith(repr(text))


@given(st.integers(1, MAX_AMOUNT))
def test_what_is_written_is_read_again(amount: int) -> None:
    assert parse_amount(write_amount(amount)) == amount


@pytest.mark.parametrize(
    ("amount", "written", "shown"),
    [
        (999, "999", "999 B"),
        (1000, "1k", "1.0 kB"),
        (1024, "1Ki", "1.0 kB"),
        (999_949, "999949", "999.9 kB"),
        (999_950, "999950", "1.0 MB"),
        (10_485_760, "10Mi", "10.5 MB"),
        (100 * 10**9, "100G", "100.0 GB"),
        (MAX_AMOUNT, str(MAX_AMOUNT), "9223372.0 TB"),
    ],
)
def test_amounts_are_written(amount: int, written: str, shown: str) -> None:
    assert (write_amount(amount), format_amount(amount)) == (written, shown)


def test_nothing_is_no_bytes() -> None:
    assert format_amount(0) == "0 B"
