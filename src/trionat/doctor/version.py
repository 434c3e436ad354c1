"""What both sides are, and what they can do together."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from trionat.doctor.finding import Finding, fine, warning
from trionat.protocol.messages import (
    APPROVALS,
    CAPABILITIES,
    EXAMINE,
    GROUPS,
    MOVE,
    NAMES,
    PROTOCOL_VERSION,
    RESUME,
    SERVICE_CHANGES,
)
from trionat.version import VERSION

if TYPE_CHECKING:
    from trionat.doctor.peer import Peer

_OURS: Final = (*CAPABILITIES, RESUME, MOVE, GROUPS, NAMES, APPROVALS, EXAMINE, SERVICE_CHANGES)
"""What this side can do; what takes a route, a narrowed ticket or tunnels without TLS is named only where there is one."""

_LOST: Final = {
    EXAMINE: "it cannot tell its clock, or whether visitors get in",
    NAMES: "services have no names there",
    APPROVALS: "nobody is asked about visitors",
    GROUPS: "clients cannot share a visit port",
}


def check_version(peer: Peer) -> list[Finding]:
    """Tell versions and capabilities of both."""
    welcome = peer.welcome
    if welcome is None:
        return []
    software = "trionat" if peer.examined is None else peer.examined.software
    there = set(welcome.capabilities)
    parts = [
        f"trionat {VERSION} here, {software} there, protocol {PROTOCOL_VERSION} and {welcome.version}"
    ]
    for words, names in (
        ("both can", [name for name in _OURS if name in there]),
        ("only this side", [name for name in _OURS if name not in there]),
        ("only the server", sorted(there.difference(_OURS))),
    ):
        if names:
            parts.append(f"{words}: {', '.join(names)}")
    found = [fine("; ".join(parts))]
    lacking = [why for name, why in _LOST.items() if name not in welcome.capabilities]
    if lacking:
        found.append(warning(f"the server is older: {'; '.join(lacking)}", "update it"))
    if RESUME not in welcome.capabilities:
        found.append(
            warning(
                "visitors are cut off when the connection is lost: the server has ResumeWait 0, or is older",
                "set ResumeWait and PortReservation there",
            )
        )
    return found
