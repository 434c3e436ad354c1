"""How far this machine's clock is from that of the other side."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from trionat.doctor.finding import Finding, fine, unknown, wrong

if TYPE_CHECKING:
    from trionat.doctor.peer import Peer

MOST_APART: Final = 30.0
"""Seconds. Tickets and certificates end at a minute; chosen."""


def compare_clocks(other: float, here: float, whose: str) -> Finding:
    """Compare two readings of the same moment, in seconds since 1970; `whose` is the other clock."""
    apart = other - here
    if abs(apart) <= MOST_APART:
        return fine(f"{abs(apart):.1f} s from {whose}")
    way = "behind" if apart > 0 else "ahead of"
    return wrong(
        f"this machine's clock is {_span(abs(apart))} {way} {whose}",
        "set whichever is wrong, best by NTP (timedatectl set-ntp true): tickets, accounts and certificates end too early or too late",
    )


def check_clock(peer: Peer) -> list[Finding]:
    """Compare with the server, which has told its clock in the session."""
    if peer.examined is None:
        return [unknown(f"the server's time is not known: {peer.why_not_examined}")]
    return [compare_clocks(peer.examined.time, peer.examined_at, f"that of {peer.control}")]


def _span(seconds: float) -> str:
    for size, unit in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} seconds"
