"""The EXPOSE of a client: what it tells a server of its services, and how many of them one message carries."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trionat.errors import ConfigError, Problem
from trionat.protocol.fields import NAME_CHARACTERS
from trionat.protocol.frames import CONTROL_FRAME_BYTES
from trionat.protocol.messages import MAX_SERVICES, Expose, ServiceRequest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from trionat.config.service import Service


def expose(
    services: Sequence[Service],
    preferred_ports: Sequence[int | None],
    *,
    idle_tunnels: int,
    group: str | None = None,
) -> Expose:
    """Return the message that asks a server for visit ports; `preferred_ports` has one for each service."""
    requests = (
        ServiceRequest(
            name=_label(service.name),
            local=_label(str(service.local)),
            visit_port=service.visit_port,
            preferred_port=preferred,
        )
        for service, preferred in zip(services, preferred_ports, strict=True)
    )
    return Expose(services=tuple(requests), idle_tunnels=idle_tunnels, group=group)


def check_services(services: Sequence[Service], group: str | None = None) -> None:
    """Check that a server can be asked for so many services, in a group of that name.

    Raises:
        ConfigError: They are too many, or their names too long, for one EXPOSE; no server would take it.
    """
    longest = expose(services, (65535,) * len(services), idle_tunnels=65535, group=group)
    if len(services) > MAX_SERVICES:
        reason = (
            f"{len(services)} services are more than the {MAX_SERVICES} that one client may have"
        )
    elif (size := len(longest.payload())) > CONTROL_FRAME_BYTES:
        reason = f"to ask for {len(services)} services takes {size} bytes, and a message has {CONTROL_FRAME_BYTES} at most"
    else:
        return
    raise ConfigError(
        Problem("configuration", f"{reason}: start several clients", "Client.Services")
    )


def _label(text: str) -> str:
    """A path need not be text (PEP 383), nor short; what the server's operator sees of it is both."""
    return text.encode(errors="replace").decode()[:NAME_CHARACTERS]
