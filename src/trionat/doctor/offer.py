"""Whether the server would give the services what they ask for: it is asked, and gives nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

from trionat.client.native.expose import check_services, expose
from trionat.doctor.finding import Finding, fine, unknown, wrong
from trionat.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from trionat.config.service import Service
    from trionat.doctor.peer import Peer
    from trionat.protocol.messages import ServiceRequest


def wishes(services: Sequence[Service]) -> tuple[ServiceRequest, ...]:
    """Return what services ask a server for, without what is nobody's concern before it is needed: where they are, and passwords. Nothing, where that is more than one message has room for."""
    try:
        check_services(services)
    except ConfigError:
        return ()
    requests = expose(services, (None,) * len(services), idle_tunnels=0).services
    return tuple(
        attrs.evolve(
            request,
            name="",
            local="",
            publish=None
            if request.publish is None
            else attrs.evolve(request.publish, basic_auth=()),
        )
        for request in requests
    )


def check_offer(peer: Peer) -> list[Finding]:
    """Tell what the server has said of the services.

    Raises:
        ConfigError: They are more than any server can be asked for.
    """
    check_services(peer.services, peer.config.group)
    examined, user = peer.examined, peer.server.username or "NAME"
    if examined is None:
        return [unknown(f"{peer.control} has not said what it offers: {peer.why_not_examined}")]
    if examined.refusal is None:
        return [unknown(f"{peer.control} has not said what it offers: it is older")]
    if examined.refusal:
        return [
            wrong(
                f"{peer.control} refuses what is asked for: {examined.refusal}",
                f"ask for something else, or have the server's operator allow it (there: VisitPort, Domain, or trionat user limit {user})",
            )
        ]
    return [fine(f"{peer.control} has the visit ports and names that are asked for")]
