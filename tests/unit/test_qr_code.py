"""A QR code in a terminal: its blocks are read back into light and dark, as a camera sees them."""

from __future__ import annotations

import io

import pytest
import segno

from trionat.cli.qr_code import qr_code

LIGHT = {"█": (1, 1), "▀": (1, 0), "▄": (0, 1), " ": (0, 0)}
QUIET = 4
"""Light modules around a code, which a reader needs: ISO/IEC 18004."""


def test_the_blocks_are_the_code_with_its_quiet_zone() -> None:
    text = "https://quiet-otter-41.tunnel.example.com"
    rows: list[list[int]] = []
    for line in qr_code(text).split("\n"):
        halves = [LIGHT[character] for character in line]
        rows += [[upper for upper, _ in halves], [lower for _, lower in halves]]
    wanted = [
        [1 - module for module in row]
        for row in segno.make(text, micro=False).matrix_iter(border=QUIET)
    ]
    assert rows[: len(wanted)] == wanted
    assert {len(row) for row in rows} == {len(wanted[0])}


def test_a_ticket_fits_a_terminal_of_80_columns() -> None:
    ticket = "tn1_" + "A" * 140
    assert len(qr_code(ticket).split("\n")[0]) < 80


@pytest.mark.parametrize(("encoding", "told"), [("ascii", True), ("gb18030", False)])
def test_where_standard_output_has_no_blocks_it_says_so(
    encoding: str, told: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(io.BytesIO(), encoding))
    assert (qr_code("x").startswith("no QR code: ") and encoding in qr_code("x")) is told
