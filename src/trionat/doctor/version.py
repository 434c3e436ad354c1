"""What both sides are, and what they can do together."""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING, Final

from trionat.doctor.finding import Finding, fine, warning
from trionat.protocol.messages import (
    APPROVALS,
    EXAMINE,
    GROUPS,
    NAMES,
    PROTOCOL_VERSION,
    RESUME,
)

if TYPE_CHECKING:
    from trionat.doctor.peer import Peer

_LOST: Final = {
    EXAMINE: "it cannot tell its clock, or whether visitors get in",
    NAMES: "services have no names there",
    APPROVALS: "nobody is asked about visitors",
    GROUPS: "clients cannot share a visit port",
}


async def check_version(peer: Peer) -> list[Finding]:
    """Tell versions and capabilities of both."""
    welcome = peer.welcome
    if welcome is None:
        return []
    software = "trionat" if peer.examined is None else peer.examined.software
    found = [
        fine(
            f"trionat {version('trionat')} here, {software} there; protocol {PROTOCOL_VERSION} and {welcome.version};"
            f" the server names {', '.join(welcome.capabilities)}"
        )
    ]
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
