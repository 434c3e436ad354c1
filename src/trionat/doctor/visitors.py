"""Whether visitors get in: is the firewall before the visit ports open, and does the public address lead to the server."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trionat.doctor.finding import Finding, fine, unknown, wrong

if TYPE_CHECKING:
    from trionat.doctor.peer import Peer


def check_visitors(peer: Peer) -> list[Finding]:
    """Tell what came of two visits to the same port: one from here, one from the server to its own public address."""
    visit, examined = peer.visit, peer.examined
    if visit is None:
        return [unknown("there was no session to be visited")]
    own = None if examined is None else examined.failure
    if not visit.failure:
        if own:
            # Behind many a router a server does not reach its own public address.
            return [
                fine(
                    f"{visit.address} is open from here; the server itself does not get there ({own}), which nobody needs"
                )
            ]
        also = "" if own is None else " and from the server itself"
        return [fine(f"{visit.address} is open, from here{also}")]
    if own is None:
        return [
            wrong(
                f"{visit.address} cannot be visited from here: {visit.failure}",
                f"open port {visit.address.port} in the firewall of the server (the visit ports, all of them), or correct its PublicAddr",
            )
        ]
    if not own:
        return [
            wrong(
                f"{visit.address} cannot be visited from here: {visit.failure}; the server itself gets there",
                f"a firewall is in between: open port {visit.address.port}, and the other visit ports, in that of the server (and of its provider)",
            )
        ]
    there = visit.address if examined is None else examined.dialled
    return [
        wrong(
            f"{visit.address} leads to no service: {visit.failure} from here, and from the server itself: {own} ({there})",
            "does PublicAddr of the server lead to it? Else open the visit ports in its firewall",
        )
    ]
